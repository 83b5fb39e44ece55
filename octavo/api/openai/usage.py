"""The `usage` of an answer."""

from __future__ import annotations

from octavo.api.desk import Tally
from octavo.api.openai.types import PromptTokensDetails, Usage


def usage(tally: Tally) -> Usage:
    return Usage(
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        total_tokens=tally.prompt_tokens + tally.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=tally.cached_tokens),
    )
