"""A plan's rows as tensors, against the same thing said token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.execution.batch import BlockTables
from octavo.plan import Row, SequenceSpec, StepPlan
from octavo.request import SamplingParams

BLOCK = 4
MAX_BLOCKS = 8


def plan_of(added=(), rows=(), removed=()) -> StepPlan:
    specs = [SequenceSpec(each, [1], 1, SamplingParams(), 0, [], []) for each in added]
    return StepPlan(0, specs, list(rows), [], list(removed))


sequences = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 9), st.permutations(range(100))), min_size=1, max_size=20
)


@given(sequences)
def test_every_token_knows_its_position_row_and_slot(sequences):
    tables = BlockTables(MAX_BLOCKS, BLOCK)
    rows, expected = [], []
    for number, (start, count, blocks) in enumerate(sequences):
        needed = blocks[: -(-(start + count) // BLOCK)]
        rows.append(Row(number, start, list(range(number, number + count)), 0, needed))
        for place, position in enumerate(range(start, start + count)):
            slot = needed[position // BLOCK] * BLOCK + position % BLOCK
            expected.append((number + place, position, slot))
    tables.apply(plan_of(added=range(len(rows)), rows=rows))
    batch, _ = tables.batch(rows)
    got = zip(batch.token_ids_T.tolist(), batch.positions_T.tolist(), batch.metadata.slots.tolist(), strict=True)
    assert list(got) == expected
    assert batch.metadata.seq_lens.tolist() == [start + count for start, count, _ in sequences]
    counts = batch.metadata.query_start.diff().tolist()
    assert counts == [count for _, count, _ in sequences]
    assert batch.last_R.tolist() == [sum(counts[: place + 1]) - 1 for place in range(len(counts))]
    for row, table in zip(rows, batch.metadata.block_tables.tolist(), strict=True):
        assert table[: len(row.block_ids)] == row.block_ids


def test_a_table_grows_is_rewritten_and_forgotten_as_the_plan_says():
    tables = BlockTables(MAX_BLOCKS, BLOCK)
    first = [Row(7, 0, [1] * 6, 0, [10, 11]), Row(8, 0, [1] * 2, 0, [20])]
    tables.apply(plan_of(added=[7, 8], rows=first))
    grown = Row(7, 6, [1] * 3, 1, [12, 13])  # block 11 was shared and is copied
    tables.apply(plan_of(rows=[grown]))
    assert tables.batch([grown])[0].metadata.block_tables.tolist() == [[10, 12, 13]]
    again = [Row(9, 0, [1], 0, [30])]
    tables.apply(plan_of(removed=[7], added=[9], rows=again))
    batch, _ = tables.batch([*again, Row(8, 2, [1], 1, [])])
    assert batch.metadata.block_tables[:, 0].tolist() == [30, 20]
