"""The sampler: a row of logits and its request's SamplingParams become tokens. Each row stands alone.

Order, as vLLM's users know it: mask, allowed ids, bad words, min tokens, logit bias, penalties; then greedy, or
temperature, min-p, top-k, top-p and one draw. A draw inverts the cumulative distribution at a number keyed by (seed,
position), so it never depends on the batch. Log-probabilities are those of the model, before any of this; those of
beams, what they are ranked by.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from octavo.kernels import ops
from octavo.kernels.draws import Draws
from octavo.plan import Row, RowResult, SequenceSpec, fork_seed
from octavo.request import Logprobs

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NONE: Mapping[int, bytes] = {}


class Drawn(Protocol):
    """What was drawn in a step: on a GPU still to come when it is handed over."""

    @property
    def tokens(self) -> Tensor:
        """One per draw, in the rows' order (int64): for the next step, whoever has seen them by then."""
        ...

    def results(self) -> list[RowResult]:
        """One per row. Not before the device has done all that was enqueued up to the call of `sample`."""
        ...


class Sampler(Protocol):
    """Keeps, per sequence, what sampling needs to remember between steps."""

    def add(self, spec: SequenceSpec) -> None: ...
    def remove(self, sequence_id: int) -> None: ...
    def spec(self, sequence_id: int) -> SequenceSpec: ...
    def sample(self, rows: list[Row], logits_RV: Tensor, masks: Mapping[int, bytes] = _NONE) -> Drawn:
        """Draws for every row, waiting for nothing. The logits may be changed in place. masks: as in `StepPlan`.

        A row that cannot be sampled gets an error, the others their tokens.
        """
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """Drawn by the host: the results are there at once."""

    tokens: Tensor
    rows: list[RowResult]

    def results(self) -> list[RowResult]:
        return self.rows


class HostSampler:
    """A `Sampler` that computes at once, and knows every token that a row is given."""

    def __init__(self) -> None:
        self._history: dict[int, History] = {}

    def add(self, spec: SequenceSpec) -> None:
        self._history[spec.sequence_id] = History(spec)

    def remove(self, sequence_id: int) -> None:
        del self._history[sequence_id]

    def spec(self, sequence_id: int) -> SequenceSpec:
        return self._history[sequence_id].spec

    def sample(self, rows: list[Row], logits_RV: Tensor, masks: Mapping[int, bytes] = _NONE) -> Known:
        """The logits are changed in place unless log-probabilities of a changed row are wanted."""
        histories = [self._history[row.sequence_id] for row in rows]
        raw_RV = logits_RV
        changes = zip(rows, histories, strict=True)
        if any(history.reports and (history.adjusts or row.sequence_id in masks) for row, history in changes):
            logits_RV = logits_RV.clone()
        faults = [
            contained(row, partial(history.prepare, row, logits_V, masks.get(row.sequence_id)))
            for row, history, logits_V in zip(rows, histories, logits_RV, strict=True)
        ]
        draws = _draws(rows, histories)
        tokens, peaks = ops.sample(logits_RV, draws)
        drawn = [tokens[begin:end] for begin, end in pairwise(draws.first_R1.tolist())]
        turns = map(Turn, rows, histories, raw_RV, logits_RV, drawn, peaks)
        results = [contained(turn.row, turn.result) for turn in turns]
        known = [fault or result for fault, result in zip(faults, results, strict=True)]
        return Known(torch.tensor(tokens, dtype=torch.int64), known)


def _draws(rows: list[Row], histories: list[History]) -> Draws:
    params = [history.spec.params for history in histories]
    counts = [0 if history.spec.candidates else row.draws for row, history in zip(rows, histories, strict=True)]
    seeds = [
        fork_seed(history.spec.seed, index)
        for history, count in zip(histories, counts, strict=True)
        for index in range(count)
    ]
    return Draws(
        np.array([each.temperature for each in params], dtype=np.float32),
        np.array([each.min_p for each in params], dtype=np.float32),
        np.array([each.top_p for each in params], dtype=np.float32),
        np.array([each.top_k for each in params], dtype=np.int64),
        np.array([row.start + len(row.token_ids) for row in rows], dtype=np.int64),
        np.array([0, *accumulate(counts)], dtype=np.int64),
        np.array(seeds, dtype=np.uint64),
    )


def contained(row: Row, work: Callable[[], T]) -> T | RowResult:
    """What the work yields. Whatever goes wrong for one row ends that row's request and no other."""
    try:
        return work()
    except Exception:
        logger.exception("a row could not be sampled")
        return RowResult(row.sequence_id, [], error="sampling failed; see the server's log")


@dataclass(frozen=True, slots=True)
class Turn:
    """One row sampled: the model's logits, the adjusted ones, what was drawn from them, the best of them."""

    row: Row
    history: History
    raw_V: Tensor
    logits_V: Tensor
    tokens: list[int]
    peak: float

    def result(self) -> RowResult:
        row, spec = self.row, self.history.spec
        if (refused := refusal(row, self.peak)) is not None:
            return refused
        if spec.candidates:
            return beam_candidates(row, spec, self.logits_V)
        if spec.params.logprobs is None:
            return RowResult(row.sequence_id, self.tokens)
        return RowResult(row.sequence_id, self.tokens, logprobs(self.raw_V, self.tokens, spec.params.logprobs))


def refusal(row: Row, peak: float) -> RowResult | None:
    """Why nothing can be drawn where the best adjusted logit is `peak`."""
    if peak == -math.inf:
        reason = "the request allows no token at this position"
        return RowResult(row.sequence_id, [], error=reason, fault="invalid")
    if not math.isfinite(peak):
        return RowResult(row.sequence_id, [], error="the model's logits are not finite")
    return None


class History:
    """What one sequence has said so far, as far as its parameters care."""

    def __init__(self, spec: SequenceSpec) -> None:
        self.spec = spec
        self.tokens = list(spec.token_ids)
        params = spec.params
        self._penalizes = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._output: Counter[int] = Counter(self.tokens[spec.prompt_length :]) if self._penalizes else Counter()
        self._seen = set(self.tokens) if self._penalizes else set()
        self.reports = params.logprobs is not None
        self.adjusts = bool(
            self._penalizes
            or spec.bad_words
            or params.allowed_token_ids is not None
            or params.logit_bias
            or (params.min_tokens and spec.end_token_ids)
        )

    # Index tensors are made once, as a request may allow most of a vocabulary, and where a fault is contained.

    @cached_property
    def _allowed(self) -> Tensor:
        return torch.tensor(sorted({*(self.spec.params.allowed_token_ids or ())}), dtype=torch.int64)

    @cached_property
    def _ends(self) -> Tensor:
        return torch.tensor(sorted({*self.spec.end_token_ids}), dtype=torch.int64)

    @cached_property
    def _biased(self) -> Tensor:
        return torch.tensor(list(self.spec.params.logit_bias or {}), dtype=torch.int64)

    @cached_property
    def _bias(self) -> Tensor:
        return torch.tensor(list((self.spec.params.logit_bias or {}).values()))

    def follow(self, row: Row) -> None:
        """The row's tokens are known now; those that are new were drawn in the step before."""
        fresh = row.token_ids[max(len(self.tokens) - row.start, 0) :]
        self.tokens.extend(fresh)
        if self._penalizes:
            self._output.update(fresh)
            self._seen.update(fresh)

    def prepare(self, row: Row, logits_V: Tensor, mask: bytes | None) -> None:
        """Take in the row's tokens; apply, in place, what does not depend on temperature."""
        self.follow(row)
        if mask is not None:
            _forbid(logits_V, mask)
        if self.adjusts:
            self._adjust(logits_V)

    def _adjust(self, logits_V: Tensor) -> None:
        params = self.spec.params
        device = logits_V.device
        if params.allowed_token_ids is not None:
            allowed = self._allowed.to(device)
            kept = logits_V[allowed]
            logits_V.fill_(-math.inf)
            logits_V[allowed] = kept
        if forbidden := self._forbidden_words():
            logits_V[torch.tensor(forbidden, device=device)] = -math.inf
        if len(self.tokens) - self.spec.prompt_length < params.min_tokens:
            logits_V[self._ends.to(device)] = -math.inf
        if params.logit_bias:
            logits_V[self._biased.to(device)] += self._bias.to(device)
        if self._penalizes:
            self._penalize(logits_V)

    def _forbidden_words(self) -> list[int]:
        """Last tokens of the bad words whose other tokens were just produced."""
        output = self.tokens[self.spec.prompt_length :]
        return [
            word[-1]
            for word in self.spec.bad_words
            if len(word) == 1 or (len(output) >= len(word) - 1 and output[1 - len(word) :] == word[:-1])
        ]

    def _penalize(self, logits_V: Tensor) -> None:
        params = self.spec.params
        if params.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen), device=logits_V.device)
            values = logits_V[ids]
            penalty = params.repetition_penalty
            logits_V[ids] = torch.where(values > 0, values / penalty, values * penalty)
        if self._output:
            ids = torch.tensor(list(self._output), device=logits_V.device)
            counts = torch.tensor(list(self._output.values()), dtype=torch.float32, device=logits_V.device)
            logits_V[ids] -= params.frequency_penalty * counts + params.presence_penalty


#: What a byte of a mask adds to the logits of its eight tokens.
_PENALTIES = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf)
_PENALTIES = _PENALTIES.astype(np.float32)


def _forbid(logits_V: Tensor, mask: bytes) -> None:
    """All tokens whose bit is not set: bit i of byte j is that of token 8j + i."""
    packed = np.frombuffer(mask.ljust(-(-len(logits_V) // 8), b"\0"), dtype=np.uint8)
    penalties_V = np.take(_PENALTIES, packed, axis=0).reshape(-1)[: len(logits_V)]
    if logits_V.is_cpu:
        values_V = logits_V.numpy()  # so short a sum is not worth waking torch's threads
        np.add(values_V, penalties_V, out=values_V)
    else:
        logits_V += torch.from_numpy(penalties_V).to(logits_V.device)


def logprobs(raw_V: Tensor, tokens: list[int], count: int) -> list[Logprobs]:
    """For each drawn token: its own log-probability and rank, then the `count` best (-1: all)."""
    values_V = raw_V.log_softmax(-1)
    top, ids = values_V.topk(len(values_V) if count == -1 else min(count, len(values_V)))
    best_ids, best_values = ids.tolist(), top.tolist()
    found = []
    for token in tokens:
        own = values_V[token]
        rank = int((values_V > own).sum()) + 1
        ranks = [rank, *range(1, len(best_ids) + 1)]
        found.append(Logprobs([token, *best_ids], [own.item(), *best_values], ranks))
    return found


def beam_candidates(row: Row, spec: SequenceSpec, logits_V: Tensor) -> RowResult:
    """The best tokens of a beam and their log-probabilities, which its successors are ranked by."""
    temperature = spec.params.temperature or 1.0
    values, ids = (logits_V / temperature).log_softmax(-1).topk(min(spec.candidates, len(logits_V)))
    count = len(ids)
    best = ids.tolist()
    return RowResult(row.sequence_id, best, [Logprobs(best, values.tolist(), list(range(1, count + 1)))])
