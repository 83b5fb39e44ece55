"""JSON calls between marks: `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`, as Hermes and Qwen write them.

Granite and Phi-4-mini do the same with other marks and lists of calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo.api.reading import Steps, Text, attempt
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import call_head, json_calls

_LEFT_OVER = re.compile(r"[\s}\]]*")  # brackets too many


@dataclass(frozen=True, slots=True)
class Marked:
    opening: str
    closing: str | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening,) if self.closing is None else (self.opening, self.closing)

    def read(self, text: Text, _known: Known) -> Steps[None]:
        while (yield from text.until(self.opening)):
            yield from attempt(text, self.calls(text))

    def grammar(self, lark: Lark) -> str:
        """A pair of marks for each call; where there is no closing mark, a list after the opening one."""
        if self.closing is None:
            call = lark.call(lambda name: lark.text(call_head(name)), lark.text("}"))
            return f"{lark.text(self.opening, '[')} {lark.calls(call, lark.text(', '))} {lark.text(']')}"
        end = lark.text("}\n", self.closing)
        call = lark.call(lambda name: lark.text(self.opening, "\n" + call_head(name)), end)
        return lark.calls(call, lark.text("\n"))

    def calls(self, text: Text) -> Steps[None]:
        """What `read` attempts at each opening. Raises NotACall."""
        yield from text.expect(self.opening)
        yield from text.space()
        yield from json_calls(text)
        yield from text.while_in(_LEFT_OVER)
        if self.closing is not None:
            yield from text.take(self.closing)


FORMATS = {
    "hermes": Marked("<tool_call>", "</tool_call>"),
    "granite": Marked("<|tool_call|>"),
    "phi4_mini_json": Marked("functools"),
}
