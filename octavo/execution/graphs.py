"""StepGraph: how a step's tensor program is run: op by op, or recorded once and replayed by one native call.

The seam is narrow on purpose: everything a step needs is in its `Batch`, everything it yields is the hidden states.
A captured CUDA graph fits here too.

Shape letters: T tokens of the step, E hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.execution.batch import Batch
from octavo.kernels import cpu
from octavo.layers.attention.backend import AttentionBackend, AttentionMetadata, LayerCache
from octavo.layers.attention.paged import PagedAttention
from octavo.models.registry import Model

logger = logging.getLogger(__name__)


class StepGraph(Protocol):
    def replay(self, batch: Batch) -> Tensor:
        """Hidden states of the step's tokens, [T, E], valid until the next step; writes the KV cache."""
        ...


class Eager:
    """Runs the model's Python, op by op."""

    def __init__(self, model: Model, attention: AttentionBackend, caches: Sequence[LayerCache]) -> None:
        self._model = model
        self._attention = attention
        self._caches = caches

    def replay(self, batch: Batch) -> Tensor:
        self._attention.plan(batch.metadata)
        hidden_TE: Tensor = self._model(batch.token_ids_T, batch.positions_T, self._attention, self._caches)
        return hidden_TE


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
