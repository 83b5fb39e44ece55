"""How a client's program says what it found: one JSON line a check, on standard output.

    with check("a streamed answer says what a whole one does"):
        assert ...

What a check raises is its failure, and the checks after it run all the same.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Mistake = TypeVar("Mistake", bound=Exception)

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}


@contextmanager
def check(name: str) -> Iterator[list[str]]:
    """What is appended to the list that it gives stands beside the check's name in the report."""
    notes: list[str] = []
    result: dict[str, Any] = {"check": name, "ok": True}
    try:
        yield notes
    except Exception as error:  # the report says what it was
        result |= {"ok": False, "why": f"{type(error).__name__}: {error}"[:2000]}
        traceback.print_exc(file=sys.stderr)
    sys.stdout.write(json.dumps({**result, "note": "; ".join(notes)}) + "\n")
    sys.stdout.flush()


def raised(kind: type[Mistake], work: Callable[[], object]) -> Mistake:
    """The exception of this kind that the work must end with."""
    try:
        work()
    except kind as error:
        return error
    raise AssertionError("accepted")
