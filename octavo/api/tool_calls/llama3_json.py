"""Llama 3: `{"name": "f", "parameters": {…}}` as the answer, or anywhere after `<|python_tag|>`; `;` between two."""

from __future__ import annotations

from collections.abc import Collection

from octavo.api.reading import Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import call_head, json_calls

_TAG = "<|python_tag|>"


class Llama3Json:
    markers = (_TAG,)

    def read(self, text: Text, known: Known) -> Steps[None]:
        yield from attempt(text, self._calls(text, known))
        while (yield from text.until(_TAG)):
            yield from attempt(text, self._tagged(text))

    def grammar(self, lark: Lark) -> str:
        call = lark.call(lambda name: lark.text(call_head(name, "parameters")), lark.text("}"))
        return lark.calls(call, lark.text("; "))

    def _tagged(self, text: Text) -> Steps[None]:
        yield from text.expect(_TAG)
        yield from self._calls(text)

    def _calls(self, text: Text, known: Collection[str] | None = None) -> Steps[None]:
        more = True
        while more:
            yield from text.space()
            yield from json_calls(text, known)
            text.mark()
            yield from text.space()
            more = yield from text.take(";")


FORMATS = {"llama3_json": Llama3Json()}
