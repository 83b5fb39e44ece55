"""Decoding steps as graphs: when they are captured, what a replay reads and yields, what they take, and what if not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from fake_device import FakeDevice, FakePool
from torch import Tensor

from octavo.execution.batch import Batch
from octavo.execution.graphs import Captured, graph_sizes
from octavo.layers.attention.backend import AttentionMetadata

MOST = 16


class Attention:
    """Prepares each step with the host's means, which a graph could not hold."""

    def __init__(self, device: FakeDevice) -> None:
        self.planned: list[int] = []
        self._device = device

    def plan(self, metadata: AttentionMetadata) -> None:
        self._device.event().record()
        self.planned.append(metadata.longest_context)


class Steps:
    """A model whose hidden states are 3 id + position, and the steps that it is given, always at the same place."""

    def __init__(self, sizes: list[int]) -> None:
        self.device = FakeDevice()
        self.attention = Attention(self.device)
        self.runs = 0
        self.captured: Captured = Captured(self, self.attention, [], self.device, sizes, context=99)  # type: ignore[arg-type]
        self._ids, self._positions = torch.zeros(MOST, dtype=torch.int64), torch.zeros(MOST, dtype=torch.int64)

    def __call__(self, ids_T: Tensor, positions_T: Tensor, attention: Attention, caches: list[Any]) -> Tensor:
        self.runs += 1
        return (3 * ids_T + positions_T).float()[:, None].expand(-1, 2).contiguous()

    @torch.inference_mode()
    def step(self, ids: list[int], rows: int | None = None) -> list[float]:
        tokens = len(ids)
        self._ids[:tokens] = torch.tensor(ids)
        self._positions[:tokens] = torch.arange(tokens)
        rows = tokens if rows is None else rows
        metadata = AttentionMetadata(
            torch.zeros(rows + 1), torch.zeros(rows), torch.zeros(rows, 1), torch.zeros(tokens), longest_context=7
        )
        hidden_TE = self.captured.replay(Batch(self._ids[:tokens], self._positions[:tokens], metadata, None))  # type: ignore[arg-type]
        assert hidden_TE.shape == (tokens, 2)
        assert hidden_TE[:, 0].tolist() == [3 * each + place for place, each in enumerate(ids)]
        assert torch.equal(hidden_TE[:, 0], hidden_TE[:, 1])
        self.captured.prepare()
        return hidden_TE[:, 0].tolist()


def test_a_size_asked_for_twice_becomes_a_graph() -> None:
    steps = Steps([1, 2, 4])
    steps.step([5, 6])
    assert steps.device.captures == 0
    steps.step([1, 2])
    assert (steps.device.captures, steps.device.replays, steps.runs) == (1, 0, 3)
    steps.step([8, 9])
    steps.step([3, 4])
    assert (steps.device.captures, steps.device.replays, steps.runs) == (1, 2, 3)
    for _ in range(3):
        steps.step([7])
        steps.step([7, 8, 9, 10])
    assert (steps.device.captures, steps.device.replays) == (3, 4)


def test_steps_between_do_not_disturb_a_graph() -> None:
    steps = Steps([2])
    for ids in ([1, 2], [3, 4], [5, 6, 7], [8, 9], [1], [6, 6]):
        steps.step(ids)
    assert steps.device.replays == 2


def test_attention_prepares_each_step_outside_of_the_graph_for_any_context() -> None:
    steps = Steps([2])
    for _ in range(4):
        steps.step([1, 2])
    assert steps.attention.planned == [99] * 5  # two op by op, for the capture, two replays
    steps.step([1, 2, 3])
    assert steps.attention.planned[-1] == 7


def test_only_steps_of_one_token_a_row_are_captured() -> None:
    steps = Steps([1, 2, 4])
    for _ in range(4):
        steps.step([1, 2, 3, 4], rows=2)
        steps.step([1, 2], rows=1)
    assert steps.device.captures == 0


def test_steps_are_filled_up_to_a_size() -> None:
    captured = Steps([8, 2, 4]).captured
    assert [captured.padded(rows, rows) for rows in (1, 2, 3, 5, 8, 9)] == [2, 2, 4, 8, 8, 9]
    assert captured.padded(3, 10) == 3


def test_what_cannot_be_captured_runs_op_by_op(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    steps = Steps([2, 4])

    def fail() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(FakePool, "capture", lambda *_: fail())
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            steps.step([1, 2])
            steps.step([1, 2, 3, 4])
    assert caplog.text.count("cannot be captured") == 1
    assert steps.captured.padded(3, 3) == 3, "nothing is filled up any more"


def test_graphs_outlive_a_failed_capture(monkeypatch: Any) -> None:
    steps = Steps([2, 4])
    for _ in range(2):
        steps.step([1, 2])

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(FakePool, "capture", full)
    for _ in range(3):
        steps.step([1, 2, 3, 4])
    steps.step([1, 2])
    assert (steps.device.captures, steps.device.replays) == (1, 1)
    assert [steps.captured.padded(rows, rows) for rows in (1, 3)] == [2, 3]


def test_memory_that_graphs_take_is_measured_and_foretold(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps([1, 2, 4, 8])
    assert steps.captured.reserve() == 0
    free = iter([1000, 700, 700, 690])
    steps.device.memory = lambda: (next(free) * 2**20, 0)  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        for ids in ([1] * 8, [1] * 8, [1], [1]):
            steps.step(ids)
    assert steps.captured.taken == {8: 300 * 2**20, 1: 10 * 2**20}
    assert steps.captured.reserve() == (300 + 3 * 10) * 2**20
    assert "the graph of steps of 8 sequences" in caplog.text
    assert "300.0 MiB; 1 of 4 sizes" in caplog.text


def test_sizes() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert graph_sizes(256) == graph_sizes(1000) == [1, 2, 4, *range(8, 257, 8)]
    assert graph_sizes(8, [4, 1, 4]) == [1, 4]
