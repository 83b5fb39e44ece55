"""StepGraph: how a step's tensor program is run. Today op by op; a captured graph or a native program fits here.

The seam is narrow on purpose: everything a step needs is in its `Batch`, everything it yields is the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from octavo.execution.batch import Batch
from octavo.layers.attention.backend import AttentionBackend, LayerCache
from octavo.models.decoder import Decoder


class StepGraph(Protocol):
    def replay(self, batch: Batch) -> Tensor:
        """Hidden states of the step's tokens, [T, hidden_size]; writes the KV cache."""
        ...


class Eager:
    """Runs the model's Python, op by op."""

    def __init__(self, model: Decoder, attention: AttentionBackend, caches: Sequence[LayerCache]) -> None:
        self._model = model
        self._attention = attention
        self._caches = caches

    def replay(self, batch: Batch) -> Tensor:
        self._attention.plan(batch.metadata)
        hidden_TE: Tensor = self._model(batch.token_ids_T, batch.positions_T, self._attention, self._caches)
        return hidden_TE
