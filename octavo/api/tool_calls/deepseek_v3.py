"""DeepSeek: calls between special tokens, since V3.1 just a name and arguments, before with a fence around these.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
… <｜tool▁call▁begin｜>function<｜tool▁sep｜>f⏎```json⏎{…}⏎```<｜tool▁call▁end｜> …
"""

from __future__ import annotations

import re

from octavo.api.reading import NotACall, Piece, Steps, Text
from octavo.api.tool_calls.format import Known, Lark, framed
from octavo.api.tool_calls.json_calls import json_arguments

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_WORD = re.compile(r"[^\s<{`]*")
_LEFT_OVER = re.compile(r"[\s`}]*")


class DeepSeek:
    markers = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)

    def read(self, text: Text, _known: Known) -> Steps[None]:
        return framed(text, (_ALL, _ALL_END), _ONE, self._call)

    def grammar(self, lark: Lark) -> str:
        """As old or as new models write: which this is, it knows itself."""
        old = lark.call(
            lambda name: lark.text(_ONE, "function", _SEPARATOR, f"{name}\n```json\n"),
            lark.text("\n```", _ONE_END),
            "old",
        )
        new = lark.call(lambda name: lark.text(_ONE, name, _SEPARATOR), lark.text(_ONE_END), "new")
        either = f"({lark.calls(old, lark.text(chr(10)))} | {lark.calls(new, '')})"
        return f"{lark.text(_ALL)} {either} {lark.text(_ALL_END)}"

    def _call(self, text: Text) -> Steps[None]:
        yield from text.expect(_ONE)
        yield from text.space()
        name = yield from text.while_in(_WORD)
        yield from text.expect(_SEPARATOR)
        yield from text.space()
        if (yield from text.peek()) != "{":
            name = yield from text.while_in(_WORD)
            yield from text.space()
            yield from text.take("```json")
            yield from text.space()
        if not name or (yield from text.peek()) != "{":
            raise NotACall
        text.release()
        yield Piece("call", name)
        yield from json_arguments(text)
        yield from text.while_in(_LEFT_OVER)
        yield from text.take(_ONE_END)


FORMATS = {"deepseek_v3": DeepSeek()}
