"""The `usage` of an answer."""

from __future__ import annotations

from msgspec import UNSET

from octavo.api.desk import Tally
from octavo.api.openai.types import CompletionTokensDetails, Cost, PoolingUsage, PromptTokensDetails, Usage


def usage(tally: Tally) -> Usage:
    details = CompletionTokensDetails(reasoning_tokens=tally.reasoning_tokens)
    answer = Usage(
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        total_tokens=tally.prompt_tokens + tally.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=tally.cached_tokens),
        completion_tokens_details=details if tally.reasoning_tokens else UNSET,
    )
    if tally.costs_are_shown:
        answer.cost = _cost(tally)
    return answer


def pooling_usage(tally: Tally) -> PoolingUsage:
    """Of an answer without tokens."""
    cost = _cost(tally) if tally.costs_are_shown else UNSET
    return PoolingUsage(prompt_tokens=tally.prompt_tokens, total_tokens=tally.prompt_tokens, cost=cost)


def _cost(tally: Tally) -> Cost:
    energy = UNSET if tally.energy_joules is None else tally.energy_joules
    return Cost(queue_seconds=tally.queue_seconds, compute_seconds=tally.compute_seconds, energy_joules=energy)
