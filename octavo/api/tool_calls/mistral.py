"""Mistral: `[TOOL_CALLS]` and a JSON list of calls, or since its eleventh tokenizer `f[ARGS]{…}`, maybe with an id."""

from __future__ import annotations

import re

from octavo.api.reading import NotACall, Piece, Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import call_head, json_arguments, json_calls

_TAG, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[^\s\[\]{}]*")


class Mistral:
    markers = (_TAG, _ID, _ARGUMENTS)

    def read(self, text: Text, _known: Known) -> Steps[None]:
        while (yield from text.until(_TAG)):
            yield from attempt(text, self._calls(text))

    def grammar(self, lark: Lark) -> str:
        """As old or as new models write: which this is, it knows itself."""
        tag, arguments = lark.text(_TAG), lark.text(_ARGUMENTS)
        old = lark.call(lambda name: lark.text(call_head(name)), lark.text("}"), "old_call")
        new = lark.call(lambda name: f"{lark.text(_TAG, name)} {arguments}?", rule="new_call")
        return f"{tag} {lark.text('[')} {lark.calls(old, lark.text(', '))} {lark.text(']')} | {lark.calls(new, '')}"

    def _calls(self, text: Text) -> Steps[None]:
        yield from text.expect(_TAG)
        yield from text.space()
        if (yield from text.peek()) in ("[", "{"):
            yield from json_calls(text)
            return
        name = yield from text.while_in(_NAME)
        if not name:
            raise NotACall
        while name:
            if (yield from text.take(_ID)):
                yield from text.while_in(_NAME)
            yield from text.take(_ARGUMENTS)
            yield from text.space()
            if (yield from text.peek()) != "{":
                raise NotACall
            text.release()
            yield Piece("call", name)
            yield from json_arguments(text)
            text.mark()
            yield from text.space()
            yield from text.take(",")
            yield from text.space()
            name = yield from text.while_in(_NAME)


FORMATS = {"mistral": Mistral()}
