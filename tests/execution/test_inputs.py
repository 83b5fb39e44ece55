"""A plan's rows on a device against the same rows on a CPU, plan after plan, with everything in flight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_device import FakeDevice, Misuse
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.execution.batch import BlockTables
from octavo.execution.inputs import Inputs
from octavo.execution.staging import Staging
from octavo.plan import DRAWN, Row, SequenceSpec, StepPlan
from octavo.request import SamplingParams

BLOCK, MAX_BLOCKS, SEATS = 4, 10, 5


def plan_of(added=(), rows=(), removed=()) -> StepPlan:
    specs = [SequenceSpec(each, [1], 1, SamplingParams(), 0, [], []) for each in added]
    return StepPlan(0, specs, list(rows), [], list(removed))


def inputs(device: FakeDevice, padded=lambda rows, tokens: rows) -> Inputs:
    return Inputs(device, SEATS, 64, MAX_BLOCKS, BLOCK, padded)


@settings(max_examples=60)
@given(st.data())
def test_batches_as_on_a_cpu(data: st.DataObject) -> None:
    """Sequences come and go, their tables grow at the end or are written again from some entry on."""
    device = FakeDevice()
    ours, theirs = inputs(device, lambda rows, tokens: rows + 2 if rows == tokens < 4 else rows), BlockTables(16, BLOCK)
    lengths: dict[int, int] = {}
    known: dict[int, int] = {}  # entries of its table that were sent
    for step in range(data.draw(st.integers(1, 5))):
        removed = [each for each in lengths if data.draw(st.booleans())]
        for each in removed:
            del lengths[each], known[each]
        added = [step * SEATS + number for number in range(data.draw(st.integers(0, SEATS - len(lengths))))]
        lengths |= dict.fromkeys(added, 0)
        known |= dict.fromkeys(added, 0)
        rows = []
        for number, start in lengths.items():
            count = data.draw(st.integers(0, min(8, BLOCK * MAX_BLOCKS - start)))
            if not count:
                continue
            entries = -(-(start + count) // BLOCK)
            first = data.draw(st.integers(min(start // BLOCK, known[number]), known[number]))
            blocks = data.draw(st.lists(st.integers(0, 99), min_size=entries - first, max_size=entries - first))
            rows.append(Row(number, start, [step * 10 + number] * count, first, blocks))
            lengths[number], known[number] = start + count, entries
        plan = plan_of(added, rows, removed)
        ours.apply(plan)
        theirs.apply(plan)
        if rows:
            compare(ours, theirs, rows)
    device.synchronize()


def compare(ours: Inputs, theirs: BlockTables, rows: list[Row]) -> None:
    also = [np.arange(3, dtype=np.int64), np.array([], dtype=np.int64)]
    (got, others), (expected, _) = ours.batch(rows, also), theirs.batch(rows)
    count, tokens = len(rows), len(expected.token_ids_T)
    assert [each.tolist() for each in others] == [[0, 1, 2], []]
    assert torch.equal(got.token_ids_T[:tokens], expected.token_ids_T)
    assert torch.equal(got.positions_T[:tokens], expected.positions_T)
    assert got.last_R.tolist() == expected.last_R.tolist()
    mine, other = got.metadata, expected.metadata
    assert torch.equal(mine.slots[:tokens], other.slots)
    assert torch.equal(mine.seq_lens[:count], other.seq_lens)
    assert torch.equal(mine.query_start[: count + 1], other.query_start)
    for row, length in enumerate(other.seq_lens.tolist()):
        entries = -(-length // BLOCK)
        assert torch.equal(mine.block_tables[row, :entries], other.block_tables[row, :entries])
    assert mine.longest_query == other.query_start.diff().max()
    assert mine.longest_context == other.seq_lens.max()
    padding = mine.seq_lens.size(0) - count
    assert padding == (2 if count == tokens < 4 else 0)
    assert mine.slots[tokens:].tolist() == [-1] * padding
    assert mine.seq_lens[count:].tolist() == [0] * padding
    assert mine.query_start[count:].tolist() == list(range(tokens, tokens + padding + 1))
    for device, host in ((mine.query_start, mine.query_start_host), (mine.seq_lens, mine.seq_lens_host)):
        assert torch.equal(device, host)


def test_a_drawn_token_never_leaves_the_device() -> None:
    ours = inputs(FakeDevice())
    first = [Row(7, 0, [1, 2], 0, [0], draws=1), Row(8, 0, [3], 0, [1], draws=2), Row(9, 0, [4], 0, [2], draws=1)]
    ours.apply(plan_of(added=[7, 8, 9], rows=first))
    slots = np.array([ours.slot(row) for row in first for _ in range(row.draws)])
    _, (slot_D,) = ours.batch(first, [slots])
    ours.remember(torch.tensor([70, 80, 81, 90]), slot_D)
    later = [Row(9, 1, [DRAWN], 1, [], draws=1), Row(8, 1, [81], 1, []), Row(7, 2, [DRAWN], 1, [])]
    ours.apply(plan_of(rows=later))
    assert ours.batch(later)[0].token_ids_T.tolist() == [90, 81, 70]


@pytest.mark.parametrize("size", [16, 4096])
def test_staging_waits_for_its_readers_and_finds_room(size: int) -> None:
    device = FakeDevice()
    staging = Staging(device, size)
    for step in range(1, 6):
        sent = [np.full((step, 40), step, dtype=np.int32), np.arange(step, dtype=np.int64)]
        for array, there in zip(sent, staging.put(sent), strict=True):
            assert there.storage_offset() * there.itemsize % 16 == 0
            assert there.tolist() == array.tolist()
    device.synchronize()


def test_staging_without_memory_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    staging = Staging(device, 16)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", full)
            patch.setattr(device, "pinned", lambda *_: torch.zeros(4096, dtype=torch.uint8))
            with pytest.raises(torch.OutOfMemoryError):
                staging.put([np.arange(400)])
    assert staging.put([np.arange(400)])[0].tolist() == list(range(400))


def test_staging_is_watched() -> None:
    """The test above can fail: a single buffer is written while it is read."""
    device = FakeDevice()
    staging = Staging(device, 256)
    staging._buffers[1] = staging._buffers[0]
    staging._buffers[0].free.synchronize = lambda: None
    for step in range(3):
        staging.put([np.full(4, step, dtype=np.int32)])
    with pytest.raises(Misuse):
        device.synchronize()
