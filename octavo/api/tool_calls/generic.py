"""Any model: JSON calls anywhere, in `<tool_call>` tags, in a fence or bare.

What has no tags counts only if it calls a tool that the request offers. Models that were not trained on tools are asked
to write the tags; see `octavo.api.tool_prompt`.
"""

from __future__ import annotations

import re

from octavo.api.reading import Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.hermes import Marked
from octavo.api.tool_calls.json_calls import json_calls

_TAGGED = Marked("<tool_call>", "</tool_call>")
_FENCE = "```"
_LANGUAGE = re.compile(r"[\w-]*")


class Generic:
    markers = _TAGGED.markers

    def read(self, text: Text, known: Known) -> Steps[None]:
        while found := (yield from text.until(_TAGGED.opening, _FENCE, "{", "[")):
            if found == _TAGGED.opening:
                yield from attempt(text, _TAGGED.calls(text))
            else:
                yield from attempt(text, self._calls(text, known))

    def grammar(self, lark: Lark) -> str:
        return _TAGGED.grammar(lark)

    def _calls(self, text: Text, known: Known) -> Steps[None]:
        fenced = yield from text.take(_FENCE)
        if fenced:
            yield from text.while_in(_LANGUAGE)
            yield from text.space()
        yield from json_calls(text, known)
        if fenced:
            yield from text.space()
            yield from text.take(_FENCE)


FORMATS = {"generic": Generic()}
