"""Whether a model can do what it is asked; and which texts are compared with which."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.errors import InvalidRequest
from octavo.plan import Ability
from octavo.request import Task, TextPair

_ENDPOINTS: dict[Task, tuple[str, str]] = {
    "generate": ("generates no text", "/v1/chat/completions or /v1/completions"),
    "embed": ("makes no embeddings", "/v1/embeddings"),
    "classify": ("has no classifier", "/v1/rerank or /v1/score"),
}


def check_task(ability: Ability, task: Task) -> None:
    """Raises InvalidRequest, which says what the model can do instead."""
    if task not in ability.tasks:
        able = " or ".join(_ENDPOINTS[each][1] for each in ability.tasks)
        message = f"This model {_ENDPOINTS[task][0]}; use {able} with it."
        raise InvalidRequest(message, param="model", code="unsupported_task")


def pair_up(first: str | Sequence[str], second: str | Sequence[str]) -> list[TextPair]:
    """One text with each of the others, or each with its mate. Raises InvalidRequest."""
    many, others = ([texts] if isinstance(texts, str) else list(texts) for texts in (first, second))
    if len(many) == 1:
        many *= len(others)
    if len(many) != len(others):
        message = f"one text can be compared with many, or as many with as many, but not {len(many)} with {len(others)}"
        raise InvalidRequest(message, param="text_2", code="invalid_value")
    return list(zip(many, others, strict=True))


def check_scores(ability: Ability) -> None:
    """Raises InvalidRequest where the head of a classifier says more than one number."""
    if ability.classes != 1:
        message = (
            f"This model tells {ability.classes} classes apart; texts are compared by one that has a single score."
        )
        raise InvalidRequest(message, param="model", code="unsupported_task")
