"""StepGraph: how a step's tensor program is run: op by op, or recorded once and replayed by one call.

The seam is narrow on purpose: everything a step needs is in its `Batch`, everything it yields is the hidden states.
What comes of these, which rows draw and how, changes from step to step: it is never part of a program.

Shape letters: T tokens of the step, P rows with padding, E hidden size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.execution.batch import Batch
from octavo.execution.device import Device, Graph
from octavo.kernels import cpu
from octavo.layers.attention.backend import AttentionBackend, AttentionMetadata, LayerCache
from octavo.layers.attention.paged import PagedAttention
from octavo.models.registry import Model

logger = logging.getLogger(__name__)

WORTH_A_GRAPH = 2  # steps of a size, before one is captured: a capture costs about what one run op by op does
_LADDER = (1, 2, 4, *range(8, 257, 8))


class StepGraph(Protocol):
    def replay(self, batch: Batch) -> Tensor:
        """Hidden states of the step's tokens, [T, E], valid until the next step; writes the KV cache."""
        ...

    def prepare(self) -> None:
        """Between steps: time for whatever will make those to come quicker."""

    def reserve(self) -> int:
        """Bytes of the device that this will take in the end, as far as the steps so far tell."""
        ...


class Eager:
    """Runs the model's Python, op by op."""

    def __init__(self, model: Model, attention: AttentionBackend, caches: Sequence[LayerCache]) -> None:
        self._model = model
        self._attention = attention
        self._caches = caches

    def replay(self, batch: Batch) -> Tensor:
        self._attention.plan(batch.metadata)
        return self.run(batch)

    def run(self, batch: Batch) -> Tensor:
        """A step that attention has planned."""
        hidden_TE: Tensor = self._model(batch.token_ids_T, batch.positions_T, self._attention, self._caches)
        return hidden_TE

    def prepare(self) -> None:
        pass

    def reserve(self) -> int:
        return 0


class Recorded:
    """The model's layers as a native program: recorded for `max_tokens`, replayed for any number up to that.

    Raises NotRecordable, as for a model that computes anything outside `octavo.kernels.ops`.
    """

    def __init__(self, model: Model, caches: Sequence[LayerCache], max_tokens: int, otherwise: StepGraph) -> None:
        from octavo.kernels.recording import Recorder

        self._model = model
        self._otherwise = otherwise
        self._recorder = Recorder()
        none = torch.zeros(1, dtype=torch.int64)
        sample_TE = model.embedding(none, none)
        attention = PagedAttention()
        attention.plan(_placeholder())
        self._residual_TE = self._recorder.empty((max_tokens, sample_TE.size(1)), sample_TE.dtype)
        hidden_TE = model.stack(self._residual_TE, none, attention, caches)
        self._residual_TE, self._hidden_TE = (each.as_subclass(Tensor) for each in (self._residual_TE, hidden_TE))

    def replay(self, batch: Batch) -> Tensor:
        tokens = batch.token_ids_T.size(0)
        if tokens > self._recorder.most_tokens:
            return self._otherwise.replay(batch)
        self._residual_TE[:tokens] = self._model.embedding(batch.token_ids_T, batch.positions_T)
        step = batch.metadata
        self._recorder.program.run(
            tokens,
            step.seq_lens.size(0),
            batch.positions_T.data_ptr(),
            step.slots.data_ptr(),
            step.query_start.data_ptr(),
            step.seq_lens.data_ptr(),
            step.block_tables.data_ptr(),
            step.block_tables.stride(0),
        )
        return self._hidden_TE[:tokens]

    def prepare(self) -> None:
        pass

    def reserve(self) -> int:
        return 0


def _placeholder() -> AttentionMetadata:
    """Stands for a step while recording; a program takes the real one at each replay."""
    empty = torch.zeros((1, 1), dtype=torch.int32)
    return AttentionMetadata(empty[0], empty[0], empty, torch.zeros(1, dtype=torch.int64))


def make_graph(model: Model, attention: AttentionBackend, caches: Sequence[LayerCache], max_tokens: int) -> StepGraph:
    """The fastest way to run this model's steps on the device its caches are on."""
    eager = Eager(model, attention, caches)
    if not (caches[0].k.is_cpu and cpu.available()):
        return eager
    from octavo.kernels.recording import NotRecordable

    try:
        return Recorded(model, caches, max_tokens, eager)
    except NotRecordable as error:
        logger.info("steps run op by op: %s", error)
        return eager


class Captured:
    """Steps in which every row has one token, as graphs on a GPU: one for each of `sizes`, all other steps op by op.

    Batches are laid out at the same place each time, padded to a size. A graph is captured once traffic has asked twice
    for its size: before, nobody waits for it; the steps run op by op meanwhile, which also is the run that compiles
    kernels and makes a capture possible. `context`: tokens that a row may come to.
    """

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        caches: Sequence[LayerCache],
        device: Device,
        sizes: Sequence[int],
        context: int,
    ) -> None:
        self._eager = Eager(model, attention, caches)
        self._attention = attention
        self._device = device
        self._pool = device.graph_pool()
        self._sizes = sorted(sizes)
        self._context = context
        self._graphs: dict[int, Graph] = {}
        self._asked: dict[int, int] = {}
        self._next: Batch | None = None  # what was just run op by op and is worth a graph
        self._hidden_PE: Tensor | None = None
        self.taken: dict[int, int] = {}  # bytes that each graph took

    def padded(self, rows: int, tokens: int) -> int:
        """How many rows to lay out for a step of so many."""
        return next((size for size in self._sizes if size >= rows), rows) if rows == tokens else rows

    def replay(self, batch: Batch) -> Tensor:
        rows, tokens = batch.metadata.seq_lens.size(0), batch.token_ids_T.size(0)
        if rows != tokens or rows not in self._sizes:
            return self._eager.replay(batch)
        batch.metadata.longest_context = self._context  # whatever it is in the steps to come
        if (graph := self._graphs.get(rows)) is not None:
            assert self._hidden_PE is not None
            self._attention.plan(batch.metadata)
            graph.replay()
            return self._hidden_PE[:rows]
        hidden_PE = self._eager.replay(batch)
        self._asked[rows] = self._asked.get(rows, 0) + 1
        if self._asked[rows] >= WORTH_A_GRAPH:
            self._next = batch
        if self._hidden_PE is None:
            self._hidden_PE = hidden_PE.new_empty((self._sizes[-1], hidden_PE.size(1)))
        return hidden_PE

    def prepare(self) -> None:
        """Captures at most one graph; the memory it takes is told in the log and in `taken`."""
        batch, self._next = self._next, None
        if batch is None:
            return
        rows = batch.metadata.seq_lens.size(0)
        started = time.monotonic()
        try:
            graph, bytes_ = self._captured(batch)
        except RuntimeError as error:  # torch has no narrower one
            logger.warning("steps of %d sequences, and others, cannot be captured as graphs: %s", rows, error)
            self._sizes = sorted(self._graphs)  # those go on as they are
            return
        self._graphs[rows], self.taken[rows] = graph, bytes_
        logger.info(
            "captured the graph of steps of %d sequences: %.1f s, %.1f MiB; %d of %d sizes",
            rows, time.monotonic() - started, bytes_ / 2**20, len(self._graphs), len(self._sizes),
        )  # fmt: skip

    def _captured(self, batch: Batch) -> tuple[Graph, int]:
        assert self._hidden_PE is not None
        hidden_PE = self._hidden_PE[: batch.metadata.seq_lens.size(0)]

        def run() -> None:
            hidden_PE.copy_(self._eager.run(batch))

        self._device.synchronize()
        self._device.empty_cache()
        before, _ = self._device.memory()
        self._attention.plan(batch.metadata)
        graph = self._pool.capture(run)
        return graph, max(before - self._device.memory()[0], 0)

    def reserve(self) -> int:
        if not self.taken:
            return 0
        largest, *others = sorted(self.taken.values(), reverse=True)
        return largest + (len(self._sizes) - 1) * (max(others) if others else largest)


def graph_sizes(most: int, asked: Sequence[int] = ()) -> list[int]:
    """Sizes worth a graph where up to `most` sequences run: those asked for, else small ones and multiples of 8."""
    return sorted({*asked}) or sorted({*(size for size in _LADDER if size < most), min(most, _LADDER[-1])})
