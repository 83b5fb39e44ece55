"""The `usage` of an answer."""

from __future__ import annotations

from msgspec import UNSET

from octavo.api.desk import Tally
from octavo.api.openai.types import CompletionTokensDetails, Cost, PromptTokensDetails, Usage


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
        answer.cost = Cost(queue_seconds=tally.queue_seconds, compute_seconds=tally.compute_seconds)
        if tally.energy_joules is not None:
            answer.cost.energy_joules = tally.energy_joules
    return answer
