"""The pooler: hidden states of a prompt become one vector. Beside the sampler, for requests that want no output.

A prompt may come in pieces: what a piece contributes is kept in float64, so that where it was cut does not show. The
vector is cut to the dimensions asked for, then brought to length 1; or the model's classifier reads it.

Shape letters: T tokens of the step, P tokens of a piece, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.execution.batch import Batch
from octavo.execution.prompt_logprobs import Fetch
from octavo.execution.sampler import contained
from octavo.models.encoder import Encoder
from octavo.models.registry import Model
from octavo.plan import Row, RowResult, SequenceSpec
from octavo.request import PoolingParams


@dataclass(slots=True)
class _Prompt:
    params: PoolingParams
    length: int
    so_far_E: Tensor | None = None  # float64; of the mean, the sum


Late = Callable[[], RowResult]


class Pooler:
    """Keeps, per sequence, what its prompt has come to so far."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._prompts: dict[int, _Prompt] = {}

    def add(self, spec: SequenceSpec) -> None:
        assert spec.pooling is not None
        self._prompts[spec.sequence_id] = _Prompt(spec.pooling, spec.prompt_length)

    def remove(self, sequence_id: int) -> None:
        del self._prompts[sequence_id]

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._prompts

    def mark(self, rows: Sequence[Row], batch: Batch) -> None:
        """The embedding knows the second texts of pairs by their ids, which count from the vocabulary's end on."""
        for row, last in zip(rows, batch.last_R.tolist(), strict=True):
            prompt = self._prompts.get(row.sequence_id)
            if prompt is not None and prompt.params.second is not None:
                end = last + 1
                begin = max(end - len(row.token_ids), end - row.start - len(row.token_ids) + prompt.params.second)
                batch.token_ids_T[begin:end] += self._model.vocab_size

    def pool(self, rows: Sequence[Row], batch: Batch, hidden_TE: Tensor, fetch: Fetch) -> Sequence[Late]:
        """For each of its rows whose prompt is computed to the end: its result, to be asked for when the step is."""
        found = []
        for row, last in zip(rows, batch.last_R.tolist(), strict=True):
            if (prompt := self._prompts.get(row.sequence_id)) is not None:
                hidden_PE = hidden_TE[last + 1 - len(row.token_ids) : last + 1]
                vector_E = contained(row, partial(self._pooled, prompt, row, hidden_PE, fetch))
                if vector_E is not None:
                    found.append(partial(_told, row, vector_E))
        return found

    def _pooled(self, prompt: _Prompt, row: Row, hidden_PE: Tensor, fetch: Fetch) -> Tensor | None:
        _take_in(prompt, row, hidden_PE)
        complete = row.start + len(row.token_ids) >= prompt.length
        return fetch(self._finished(prompt).float()) if complete else None

    def _finished(self, prompt: _Prompt) -> Tensor:
        params, vector_E = prompt.params, prompt.so_far_E
        assert vector_E is not None
        if params.pooling == "mean":
            vector_E = vector_E / prompt.length
        if params.task == "classify":
            assert isinstance(self._model, Encoder)
            return self._model.classify(vector_E)
        vector_E = vector_E[: params.dimensions]
        return F.normalize(vector_E, dim=0) if params.normalize else vector_E


def _take_in(prompt: _Prompt, row: Row, hidden_PE: Tensor) -> None:
    match prompt.params.pooling:
        case "mean":
            sum_E = hidden_PE.sum(0, dtype=torch.float64)
            prompt.so_far_E = sum_E if prompt.so_far_E is None else prompt.so_far_E + sum_E
        case "cls":
            prompt.so_far_E = hidden_PE[0].double() if row.start == 0 else prompt.so_far_E
        case "last":
            prompt.so_far_E = hidden_PE[-1].double()


def _told(row: Row, vector_E: Tensor | RowResult) -> RowResult:
    if isinstance(vector_E, RowResult):
        return vector_E
    if not vector_E.isfinite().all():
        return RowResult(row.sequence_id, [], error="the model's hidden states are not finite")
    return RowResult(row.sequence_id, [], pooled=vector_E.numpy().astype("<f4").tobytes())
