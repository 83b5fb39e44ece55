"""Runs one device's share of a step: the plan's rows through the model, the last positions through the sampler.

The same for every device: what differs is in the parts, of which `cpu_runner` and `gpu_runner` choose. On a GPU a step
is enqueued, and nothing here waits for it; what is to be known of it is read when its result is asked for.

Shape letters: T tokens of the step, P positions of a piece of a prompt, D rows that draw, V vocabulary, E hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from octavo.execution.batch import Batch, BlockTables
from octavo.execution.device import Device
from octavo.execution.device_sampler import DeviceSampler
from octavo.execution.graphs import Captured, StepGraph, make_graph
from octavo.execution.inputs import Inputs
from octavo.execution.kv_cache import KVCache
from octavo.execution.pooler import Pooler
from octavo.execution.prompt_logprobs import Piece, piece, score
from octavo.execution.sampler import Drawn, HostSampler, Sampler, contained
from octavo.layers.attention.backend import AttentionBackend, Event
from octavo.layers.attention.paged import PagedAttention
from octavo.models.decoder import Decoder
from octavo.models.registry import Model
from octavo.plan import Computed, Pending, Row, RowResult, StepPlan, StepResult
from octavo.request import Logprobs

logger = logging.getLogger(__name__)

Read = Callable[[], list[Logprobs]]


class StepInputs(Protocol):
    """Keeps the block tables."""

    def apply(self, plan: StepPlan) -> None: ...

    def batch(self, rows: Sequence[Row], also: Sequence[np.ndarray]) -> tuple[Batch, list[Tensor]]:
        """The rows as tensors, in their order, and other arrays; valid until the next call."""
        ...

    def slot(self, row: Row) -> int:
        """A number for `remember`."""
        ...

    def remember(self, tokens_D: Tensor, slot_D: Tensor) -> None:
        """The tokens just drawn, for rows of later steps that say DRAWN."""


class Completion(Protocol):
    """How a step is begun, and how the host comes to know what it brought."""

    def begin(self) -> None:
        """To be called before anything of a step is enqueued."""

    def fetch(self, x: Tensor) -> Tensor:
        """The tensor on the host, to be read when the step is done."""
        ...

    def pending(self, read: Callable[[], StepResult]) -> Pending:
        """To be called when all of the step is enqueued."""
        ...


class _Step(NamedTuple):
    """A plan, laid out."""

    plan: StepPlan
    batch: Batch
    drawing: list[Row]
    last_D: Tensor  # where their last hidden states are
    slot_D: Tensor  # for `remember`
    pieces: list[tuple[Row, Piece]]
    predicted: list[Tensor]  # tokens of each piece


class ModelRunner:
    """Holds what lives between steps: block tables, sampling histories, the KV cache."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        inputs: StepInputs,
        graph: StepGraph,
        sampler: Sampler,
        completion: Completion,
    ) -> None:
        self._model = model
        self._cache = cache
        self._inputs = inputs
        self._graph = graph
        self._sampler = sampler
        self._completion = completion
        self._pooler = Pooler(model)

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> Pending:
        """Begin a step, behind those begun before. Its result may be awaited in another thread."""
        if (step := self._take_in(plan)) is None:
            return Computed(StepResult(plan.step, []))
        # Whatever happens to this step from here on, tables and copied blocks are right for those to come.
        try:
            pending = self._completion.pending(self._compute(step))
        except torch.OutOfMemoryError as error:
            return Computed(_out_of_memory(plan, error))
        self._graph.prepare()
        return pending

    @torch.inference_mode()
    def rehearse(self, plan: StepPlan) -> None:
        """Compute a step whose results nobody wants. Raises torch.OutOfMemoryError."""
        if (step := self._take_in(plan)) is not None:
            self._completion.pending(self._compute(step)).result()
            self._graph.prepare()

    def graphs_reserve(self) -> int:
        """Bytes that graphs will take, as far as steps so far tell."""
        return self._graph.reserve()

    def _take_in(self, plan: StepPlan) -> _Step | None:
        """Do all that the plan says but compute; None: nothing is to be computed."""
        self._completion.begin()
        for sequence_id in plan.removed:
            (self._pooler if sequence_id in self._pooler else self._sampler).remove(sequence_id)
        for spec in plan.added:
            (self._sampler if spec.pooling is None else self._pooler).add(spec)
        self._inputs.apply(plan)
        self._cache.swap_out(plan.swaps_out)
        self._cache.swap_in(plan.swaps_in)
        self._cache.copy(plan.copies)
        return self._lay_out(plan) if plan.rows else None

    def _lay_out(self, plan: StepPlan) -> _Step:
        rows = plan.rows
        drawing = [(place, row) for place, row in enumerate(rows) if row.draws]
        last_R = np.cumsum([len(row.token_ids) for row in rows]) - 1
        pieces = self._pieces(rows, last_R)
        batch, (last_D, slot_D, *predicted) = self._inputs.batch(
            rows,
            [
                last_R[[place for place, _ in drawing]],
                np.array([self._inputs.slot(row) for _, row in drawing for _ in range(self._draws(row))], np.int64),
                *(np.array(asked.predicted, dtype=np.int64) for _, asked in pieces),
            ],
        )
        self._pooler.mark(rows, batch)
        return _Step(plan, batch, [row for _, row in drawing], last_D, slot_D, pieces, predicted)

    def _compute(self, step: _Step) -> Callable[[], StepResult]:
        """What its result is to be read by."""
        plan = step.plan
        hidden_TE = self._graph.replay(step.batch)
        drawn: Drawn | None = None
        if step.drawing:
            drawn = self._sampler.sample(step.drawing, self._logits(hidden_TE[step.last_D]), plan.masks)
            self._inputs.remember(drawn.tokens, step.slot_D)
        reads = [
            (row, contained(row, partial(self._score, hidden_TE, asked, predicted_P)))
            for (row, asked), predicted_P in zip(step.pieces, step.predicted, strict=True)
        ]
        pooled = self._pooler.pool(plan.rows, step.batch, hidden_TE, self._completion.fetch)
        return partial(_collect, plan.step, drawn, reads, pooled)

    def _pieces(self, rows: Sequence[Row], last_R: np.ndarray) -> list[tuple[Row, Piece]]:
        found = [
            (row, piece(row, last, self._sampler.spec(row.sequence_id)))
            for row, last in zip(rows, last_R.tolist(), strict=True)
            if row.sequence_id not in self._pooler
        ]
        return [(row, asked) for row, asked in found if asked is not None]

    def _draws(self, row: Row) -> int:
        """Tokens drawn for it: beams are not drawn."""
        return 0 if self._sampler.spec(row.sequence_id).candidates else row.draws

    def _score(self, hidden_TE: Tensor, asked: Piece, predicted_P: Tensor) -> Read:
        hidden_PE = hidden_TE[asked.first : asked.first + len(asked.predicted)]
        return score(hidden_PE, predicted_P, asked.count, self._logits, self._completion.fetch)

    def _logits(self, hidden_RE: Tensor) -> Tensor:
        assert isinstance(self._model, Decoder)
        return self._model.logits(hidden_RE)


def _collect(
    step: int,
    drawn: Drawn | None,
    reads: Sequence[tuple[Row, Read | RowResult]],
    pooled: Sequence[Callable[[], RowResult]],
) -> StepResult:
    """What a step brought, when all of it is there."""
    results = {result.sequence_id: result for result in drawn.results()} if drawn is not None else {}
    for row, read in reads:
        known = results.get(row.sequence_id, RowResult(row.sequence_id, []))
        results[row.sequence_id] = contained(row, partial(_with_prompt_logprobs, known, read))
    return StepResult(step, [*results.values(), *(result() for result in pooled)])


def _with_prompt_logprobs(known: RowResult, read: Read | RowResult) -> RowResult:
    return read if isinstance(read, RowResult) else msgspec.structs.replace(known, prompt_logprobs=read())


def _out_of_memory(plan: StepPlan, error: torch.OutOfMemoryError) -> StepResult:
    """The requests of the step end, and no others: what they did not write into the cache is never read."""
    logger.error("a step of %d tokens found no memory: %s", plan.token_count, error)
    reason = "the GPU ran out of memory; lower --gpu-memory-utilization or --max-num-batched-tokens"
    return StepResult(plan.step, [RowResult(row.sequence_id, [], error=reason) for row in plan.rows])


class AtOnce:
    """The host computes: nothing is to be waited for."""

    def begin(self) -> None:
        pass

    def fetch(self, x: Tensor) -> Tensor:
        return x

    def pending(self, read: Callable[[], StepResult]) -> Pending:
        return Computed(read())


class ByEvent:
    """A device computes: what it sends to pinned memory is there once it has passed the step's event."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def begin(self) -> None:
        self._device.use()  # whichever thread it is

    def fetch(self, x: Tensor) -> Tensor:
        return self._device.pinned(tuple(x.shape), x.dtype).copy_(x, non_blocking=True)

    def pending(self, read: Callable[[], StepResult]) -> Pending:
        event = self._device.event()
        event.record()
        return _InFlight(event, read)


class _InFlight:
    def __init__(self, event: Event, read: Callable[[], StepResult]) -> None:
        self._event = event
        self._read = read

    def result(self) -> StepResult:
        self._event.synchronize()
        with torch.inference_mode():
            return self._read()


@torch.inference_mode()
def cpu_runner(model: Model, cache: KVCache, max_model_len: int, max_tokens: int) -> ModelRunner:
    """max_tokens: of a step."""
    inputs = BlockTables(-(-max_model_len // cache.block_size), cache.block_size)
    graph = make_graph(model, PagedAttention(), cache.caches, max_tokens)
    return ModelRunner(model, cache, inputs, graph, HostSampler(), AtOnce())


@torch.inference_mode()
def gpu_runner(
    model: Model,
    cache: KVCache,
    device: Device,
    attention: AttentionBackend,
    *,
    max_model_len: int,
    max_tokens: int,
    max_rows: int,
    graph_sizes: Sequence[int],
) -> ModelRunner:
    """max_tokens and max_rows: of a step. graph_sizes: numbers of sequences whose decoding steps become graphs."""
    graph = Captured(model, attention, cache.caches, device, graph_sizes, max_model_len)
    max_blocks = -(-max_model_len // cache.block_size)
    inputs = Inputs(device, max_rows, max_tokens, max_blocks, cache.block_size, graph.padded)
    return ModelRunner(model, cache, inputs, graph, DeviceSampler(device, model.vocab_size), ByEvent(device))
