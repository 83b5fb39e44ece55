"""Which texts are compared with which, and whether a model's head can say how well they go together."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.errors import InvalidRequest
from octavo.plan import Ability
from octavo.request import TextPair


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
