"""Harmony, in which gpt-oss writes everything: messages on channels, some of them to a tool.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>commentary to=functions.f
    <|constrain|>json<|message|>{…}<|call|>   …   <|start|>assistant<|channel|>final<|message|>the answer<|return|>

The analysis channel is reasoning, whichever reasoning format is chosen.
"""

from __future__ import annotations

import re

from octavo.api.reading import Kind, Piece, Steps, Text, attempt, held
from octavo.api.tool_calls.format import Known, Lark
from octavo.api.tool_calls.json_calls import is_name, json_arguments

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_END = "<|end|>"
_ENDS = (_END, "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL_NAME = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")


class Harmony:
    markers = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)

    def read(self, text: Text, known: Known) -> Steps[None]:
        while found := (yield from text.until(_START, _CHANNEL, *_ENDS)):
            if found in _ENDS:
                yield from text.take(found)
            else:
                yield from attempt(text, self._message(text, known))

    def grammar(self, lark: Lark) -> str:
        """One call: the model's turn is over then."""
        to = "commentary to=functions."
        return lark.call(lambda name: lark.text(_CHANNEL, f"{to}{name} ", _CONSTRAIN, "json", _MESSAGE))

    def thought(self, lark: Lark) -> str:
        """Reasoning, maybe, before something else."""
        thought = lark.up_to("thought", _END)
        return f"({lark.text(_CHANNEL, 'analysis', _MESSAGE)} {thought} {lark.text(_START, 'assistant')})?"

    def content(self, lark: Lark, expression: str) -> str:
        """An answer of this form."""
        return f"{lark.text(_CHANNEL, 'final', _MESSAGE)} {expression}"

    def _message(self, text: Text, known: Known) -> Steps[None]:
        header, _ = yield from held(text.until(_MESSAGE, *_ENDS))
        yield from text.expect(_MESSAGE)
        text.release()
        channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
        if known and recipient and is_name(recipient[1]):
            yield Piece("call", recipient[1])
            yield from text.space()
            if (yield from text.peek()) == "{":
                yield from json_arguments(text)
                yield from held(text.until(_START, _CHANNEL, *_ENDS))
                return
            body, _ = yield from held(text.until(_START, _CHANNEL, *_ENDS))
            yield Piece("arguments", body or "{}")
            return
        kind: Kind = "reasoning" if channel and channel[1] == "analysis" else "content"
        yield from text.until(_START, _CHANNEL, *_ENDS, kind=kind)


HARMONY = Harmony()
FORMATS = {"openai": HARMONY}
