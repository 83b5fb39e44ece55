"""Runs one device's share of a step: the plan's rows through the model, the last positions through the sampler.

Shape letters: T tokens of the step, D rows that draw, V vocabulary, E hidden size.
"""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import torch
from torch import Tensor

from octavo.execution.batch import Batch, BlockTables
from octavo.execution.graphs import make_graph
from octavo.execution.kv_cache import KVCache
from octavo.execution.pooler import Pooler
from octavo.execution.sampler import HostSampler, Sampler, contained, logprobs
from octavo.layers.attention.paged import PagedAttention
from octavo.models.decoder import Decoder
from octavo.models.registry import Model
from octavo.plan import Row, RowResult, StepPlan, StepResult
from octavo.request import Logprobs

_PROMPT_LOGPROB_CHUNK = 128  # positions whose logits are held at once: a vocabulary is large


class ModelRunner:
    """Holds what lives between steps: block tables, sampling histories, the KV cache."""

    @torch.inference_mode()
    def __init__(self, model: Model, cache: KVCache, max_model_len: int, max_tokens: int, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._tables = BlockTables(-(-max_model_len // cache.block_size), device, cache.block_size)
        self._sampler: Sampler = HostSampler()
        self._pooler = Pooler(model)
        self._graph = make_graph(model, PagedAttention(), cache.caches, max_tokens)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        for sequence_id in plan.removed:
            (self._pooler if sequence_id in self._pooler else self._sampler).remove(sequence_id)
        for spec in plan.added:
            (self._sampler if spec.pooling is None else self._pooler).add(spec)
        self._tables.apply(plan)
        self._cache.copy(plan.copies)
        if not plan.rows:
            return StepResult(plan.step, [])
        batch = self._tables.batch(plan.rows)
        self._pooler.mark(plan.rows, batch)
        hidden_TE = self._graph.replay(batch)
        results = self._with_prompt_logprobs(plan.rows, self._draw(plan, batch, hidden_TE), hidden_TE, batch)
        return StepResult(plan.step, results + self._pooler.pool(plan.rows, batch, hidden_TE))

    def _draw(self, plan: StepPlan, batch: Batch, hidden_TE: Tensor) -> dict[int, RowResult]:
        places = [place for place, row in enumerate(plan.rows) if row.draws]
        if not places:
            return {}
        drawing = [plan.rows[place] for place in places]
        last_D = torch.from_numpy(batch.last_R[places].astype(np.int64)).to(hidden_TE.device)
        logits_DV = self._logits(hidden_TE[last_D])
        drawn = self._sampler.sample(drawing, logits_DV, plan.masks)
        return {result.sequence_id: result for result in drawn.results()}

    def _logits(self, hidden_RE: Tensor) -> Tensor:
        assert isinstance(self._model, Decoder)
        return self._model.logits(hidden_RE)

    def _with_prompt_logprobs(
        self, rows: list[Row], results: dict[int, RowResult], hidden_TE: Tensor, batch: Batch
    ) -> list[RowResult]:
        for row, last in zip(rows, batch.last_R.tolist(), strict=True):
            if row.sequence_id in self._pooler:
                continue
            spec = self._sampler.spec(row.sequence_id)
            count = spec.params.prompt_logprobs
            predicted = spec.token_ids[row.start + 1 : min(row.start + len(row.token_ids) + 1, spec.prompt_length)]
            if count is None or not predicted:
                continue
            first = last + 1 - len(row.token_ids)
            drawn = results.get(row.sequence_id, RowResult(row.sequence_id, []))
            hidden_PE = hidden_TE[first : first + len(predicted)]
            result = contained(row, partial(self._with_logprobs, drawn, hidden_PE, predicted, count))
            assert result is not None
            results[row.sequence_id] = result
        return list(results.values())

    def _with_logprobs(self, drawn: RowResult, hidden_PE: Tensor, predicted: list[int], count: int) -> RowResult:
        return msgspec.structs.replace(drawn, prompt_logprobs=self._prompt_logprobs(hidden_PE, predicted, count))

    def _prompt_logprobs(self, hidden_PE: Tensor, predicted: list[int], count: int) -> list[Logprobs]:
        found: list[Logprobs] = []
        for begin in range(0, len(predicted), _PROMPT_LOGPROB_CHUNK):
            end = begin + _PROMPT_LOGPROB_CHUNK
            for logits_V, token in zip(self._logits(hidden_PE[begin:end]), predicted[begin:end], strict=True):
                found += logprobs(logits_V, [token], count)
        return found
