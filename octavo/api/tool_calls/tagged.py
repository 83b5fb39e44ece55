"""Calls with a tag around each argument, as Qwen3-Coder, MiniMax-M2 and GLM-4.5 write them.

    <tool_call><function=f><parameter=city>Paris</parameter></function></tool_call>
    <minimax:tool_call><invoke name="f"><parameter name="city">Paris</parameter></invoke></minimax:tool_call>
    <tool_call>f⏎<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>

An argument is a string unless the tool's schema, or for want of one its look, says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.api.reading import NotACall, Piece, Steps, Text, attempt, held
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import dumps, is_name, loads

_NAME = re.compile(r"[^<>\"\s{}\[\]]*")
_KEY = re.compile(r"[^<>\"\n]*")
_WORDS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """What stands around calls, before and after a call's name and at its end, and the same for an argument."""

    around: tuple[str, str]
    call: tuple[str, str, str]
    argument: tuple[str, str, str]  # white space in it may be any

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(" ".join((*self.around, *self.call, *self.argument)).split())

    def read(self, text: Text, known: Known) -> Steps[None]:
        starts = tuple(filter(None, (self.around[0], self.call[0])))
        inside = False
        while found := (yield from text.until(*starts, *self.around[1:] * inside)):
            if found == self.around[1]:
                yield from text.take(found)
                inside = False
            elif (yield from attempt(text, self._call(text, known))):
                inside = True

    def grammar(self, _lark: Lark) -> None:
        return None

    def _call(self, text: Text, known: Known) -> Steps[None]:
        yield from text.take(self.around[0])
        yield from text.space()
        before, after, _ = self.call
        yield from text.expect(before)
        name = yield from text.while_in(_NAME)
        yield from text.space()
        yield from text.expect(after)
        yield from text.space()
        if not is_name(name) or (yield from text.peek()) != "<":
            raise NotACall
        text.release()
        yield Piece("call", name)
        yield from self._arguments(text, known.get(name, {}).get("properties") or {})

    def _arguments(self, text: Text, schemas: Mapping[str, Any]) -> Steps[None]:
        before, middle, after = self.argument
        end = self.call[2]
        written = "{"
        while (yield from text.take(before)):
            key = yield from text.while_in(_KEY)
            for mark in middle.split():
                yield from text.space()
                yield from text.take(mark)
            raw, ended = yield from held(text.until(after, before, end))
            if ended is None:  # cut off
                return
            yield from text.take(after)
            yield from text.space()
            value = _value(raw.removeprefix("\n").removesuffix("\n"), schemas.get(key))
            yield Piece("arguments", f"{written}{dumps(key)}: {value}")
            written = ", "
        if (yield from text.take(end)) or (yield from text.peek()):
            yield Piece("arguments", "{}" if written == "{" else "}")


def _value(raw: str, schema: Any) -> str:
    types = _types(schema)
    if "string" in types and not (raw == "null" and "null" in types):
        return dumps(raw)
    try:
        return dumps(loads(_WORDS.get(raw.strip(), raw)))
    except ValueError:
        return dumps(raw)


def _types(schema: Any) -> set[str]:
    """The types that a schema names outright."""
    if not isinstance(schema, Mapping):
        return set()
    named, options = schema.get("type"), schema.get("anyOf")
    found = named if isinstance(named, list) else [named]
    if isinstance(options, list):
        found = [*found, *(option.get("type") for option in options if isinstance(option, Mapping))]
    return {each for each in found if isinstance(each, str)}


FORMATS = {
    "qwen3_coder": Tagged(
        around=("<tool_call>", "</tool_call>"),
        call=("<function=", ">", "</function>"),
        argument=("<parameter=", ">", "</parameter>"),
    ),
    "minimax_m2": Tagged(
        around=("<minimax:tool_call>", "</minimax:tool_call>"),
        call=('<invoke name="', '">', "</invoke>"),
        argument=('<parameter name="', '">', "</parameter>"),
    ),
    "glm45": Tagged(
        around=("<tool_call>", "</tool_call>"),
        call=("", "", "</tool_call>"),
        argument=("<arg_key>", "</arg_key> <arg_value>", "</arg_value>"),
    ),
}
