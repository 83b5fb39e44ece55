"""Llama 3: `{"name": "f", "parameters": {…}}` as the answer, or anywhere after `<|python_tag|>`; `;` between two."""

from __future__ import annotations

from collections.abc import Collection

from octavo.api.reading import Piece, Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import call_head, json_calls

_TAG = "<|python_tag|>"


class Llama3Json:
    markers = (_TAG,)

    def read(self, text: Text, known: Known) -> Steps[None]:
        text.mark()
        yield from text.space()
        if (yield from text.peek()) in ("{", "["):
            yield from self._calls(text, known)
        elif space := text.release():
            yield Piece("content", space)
        while (yield from text.until(_TAG)):
            text.mark()
            yield from text.take(_TAG)
            yield from text.space()
            yield from self._calls(text)

    def grammar(self, lark: Lark) -> str:
        call = lark.call(lambda name: lark.text(call_head(name, "parameters")), lark.text("}"))
        return lark.calls(call, lark.text("; "))

    def _calls(self, text: Text, known: Collection[str] | None = None) -> Steps[None]:
        while (yield from attempt(text, json_calls(text, known))):
            yield from text.space()
            if not (yield from text.take(";")):
                return
            yield from text.space()


FORMATS = {"llama3_json": Llama3Json()}
