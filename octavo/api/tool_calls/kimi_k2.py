"""Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` in a section of calls."""

from __future__ import annotations

import re

from octavo.api.reading import NotACall, Piece, Steps, Text
from octavo.api.tool_calls.format import Known, Lark, framed
from octavo.api.tool_calls.json_calls import json_arguments

_ALL, _ALL_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_ONE, _ONE_END = "<|tool_call_begin|>", "<|tool_call_end|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_ID = re.compile(r"[^\s<{]*")
_NUMBER = re.compile(r":\d+$")
_LEFT_OVER = re.compile(r"[\s}]*")


class KimiK2:
    markers = (_ALL, _ALL_END, _ONE, _ONE_END, _ARGUMENTS)

    def read(self, text: Text, _known: Known) -> Steps[None]:
        return framed(text, (_ALL, _ALL_END), _ONE, self._call)

    def grammar(self, lark: Lark) -> str:
        number = lark.rule("NUMBER", "/[0-9]{1,3}/")
        call = lark.call(
            lambda name: f"{lark.text(_ONE, f'functions.{name}:')} {number} {lark.text(_ARGUMENTS)}",
            lark.text(_ONE_END),
        )
        return f"{lark.text(_ALL)} {lark.calls(call, '')} {lark.text(_ALL_END)}"

    def _call(self, text: Text) -> Steps[None]:
        yield from text.expect(_ONE)
        yield from text.space()
        name = _NUMBER.sub("", (yield from text.while_in(_ID)).removeprefix("functions."))
        yield from text.space()
        yield from text.expect(_ARGUMENTS)
        yield from text.space()
        if not name or (yield from text.peek()) != "{":
            raise NotACall
        text.release()
        yield Piece("call", name)
        yield from json_arguments(text)
        yield from text.while_in(_LEFT_OVER)
        yield from text.take(_ONE_END)


FORMATS = {"kimi_k2": KimiK2()}
