"""What a format of tool calls is: it reads calls that a model wrote, and may say which texts are calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from octavo.api.reading import Steps, Text, attempt
from octavo.engine.grammar import DEFAULT_WHITESPACE, Tokens, lark_text

Known = Mapping[str, Mapping[str, Any]]  # names of tools → JSON schemas of their parameters

_MOST_CALLS = 32  # that a grammar allows: small models do not stop by themselves
_ANY_TEXT = r"ANY_TEXT: /(.|\n)*/"


class ToolFormat(Protocol):
    @property
    def markers(self) -> tuple[str, ...]:
        """What calls are written with; a tokenizer may count some of it as special and hide it."""

    def read(self, text: Text, known: Known, /) -> Steps[None]:
        """What comes after the reasoning, content included, up to the text's end."""

    def grammar(self, lark: Lark, /) -> str | None:
        """An expression of one or more calls; None where the arguments are not written as JSON."""


def framed(text: Text, frame: tuple[str, ...], one: str, call: Callable[[Text], Steps[None]]) -> Steps[None]:
    """What lies between `frame`'s markers, which say nothing, where each call that `call` reads begins with `one`."""
    while found := (yield from text.until(*frame, one)):
        yield from attempt(text, call(text)) if found == one else text.take(found)


class Lark:
    """A grammar of texts in which the arguments of each call follow the schema of its parameters.

    Formats make expressions with it. `known`: the tools that may be called; `parallel`: maybe more than one call.
    """

    def __init__(self, tokenizer: Tokens, known: Known, *, parallel: bool) -> None:
        self._tokenizer = tokenizer
        self._known = known
        self._parallel = parallel
        self._rules: list[str] = []

    def text(self, *pieces: str) -> str:
        """These texts one after the other; a special token has to be a piece of its own."""
        return " ".join(lark_text(self._tokenizer, piece) for piece in pieces if piece)

    def rule(self, name: str, expression: str) -> str:
        self._rules.append(f"{name}: {expression}")
        return name

    def call(self, before: Callable[[str], str], after: str = "", rule: str = "call") -> str:
        """A call of any tool: the expression that `before` makes of its name, its arguments, `after`."""
        options = [f"{before(name)} {_arguments(schema)} {after}" for name, schema in self._known.items()]
        return self.rule(rule, " | ".join(self.rule(f"{rule}_{place}", each) for place, each in enumerate(options)))

    def calls(self, call: str, separator: str) -> str:
        """One call, or as many as may be."""
        return f"{call} ({separator} {call}){{0,{_MOST_CALLS - 1}}}" if self._parallel else call

    def up_to(self, name: str, ending: str) -> str:
        """Any text that ends with `ending`, which does not come before."""
        end = self.text(ending)
        if _ANY_TEXT not in self._rules:
            self._rules.append(_ANY_TEXT)
        lazy = "" if end.startswith("<") else "[lazy]"  # any text holds no special token
        self._rules.append(f"{name}{lazy}: ANY_TEXT {end}")
        return name

    def grammar(self, start: str) -> str:
        return "\n".join((f"start: {start}", *self._rules))


def _arguments(schema: Any) -> str:
    """Nothing but what the schema names, unless it says otherwise."""
    closed = {"type": "object", "additionalProperties": False, **schema}
    return "%json " + json.dumps({**closed, "x-guidance": {"whitespace_pattern": DEFAULT_WHITESPACE}})
