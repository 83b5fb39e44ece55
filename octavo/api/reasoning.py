"""How models mark their reasoning, by the names that `--reasoning-parser` takes.

Reasoning comes first, then what tool formats read. A chat template may open it already, at the end of the prompt.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.api.reading import SPACE, NotACall, Piece, Reading, Steps, Text
from octavo.api.tool_calls.format import Lark
from octavo.api.tool_calls.openai import HARMONY, Harmony
from octavo.face import Tokenizer

_GAP = r" /[ \r\n]{0,4}/"  # of white space, in a grammar


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """`always`: an answer begins with reasoning even where nothing opens it."""

    opening: str = "<think>"
    closing: str = "</think>"
    always: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    def begins_inside(self, prompt: str, continued: str | None = None) -> bool:
        """Whether the answer to this prompt begins with reasoning that is open already.

        continued: the assistant's own words that it goes on with. What a prompt says elsewhere does not count.
        """
        if continued is not None:
            return continued.rfind(self.opening) > continued.rfind(self.closing)
        end = prompt.rstrip(SPACE)
        return end.endswith(self.opening) or (self.always and not end.endswith(self.closing))

    def may_begin(self, prompt: str, template: str) -> bool:
        """Whether a model of this chat template may reason after this prompt."""
        return self.opening in template and not prompt.rstrip(SPACE).endswith(self.closing)

    def thought(self, lark: Lark, inside: bool) -> str:
        """A grammar's expression of reasoning that is open already, or else may come, before something else."""
        if inside:
            return lark.up_to("thought", self.closing) + _GAP
        return f"({lark.text(self.opening)} {lark.up_to('thought', self.closing)}{_GAP})?"

    def read(self, text: Text, inside: bool) -> Steps[None]:
        """The reasoning that the text begins with, if it does."""
        text.mark()
        try:
            yield from text.space()
            if not (yield from text.take(self.opening)) and not inside:
                raise NotACall
        except NotACall:
            if unread := text.release():
                yield Piece("content", unread)
            return
        text.release()
        yield from text.until(self.closing, kind="reasoning")
        yield from text.take(self.closing)


THINK = ReasoningFormat()

_FORMATS: dict[str, ReasoningFormat | Harmony | None] = {
    "none": None,
    "think": THINK,
    "qwen3": THINK,
    "deepseek_r1": ReasoningFormat(always=True),
    "cohere": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "openai_gptoss": HARMONY,
}
NAMES = tuple(_FORMATS)
_SIGNS = {
    "<|channel|>": "openai_gptoss",
    "[THINK]": "mistral",
    "<|START_THINKING|>": "cohere",
    "<seed:think>": "seed_oss",
    "Here is my thought process:": "granite",
}


def reasoning_format(name: str, template: str | None = None) -> ReasoningFormat | Harmony | None:
    """The format of that name; "auto" is the one that the chat template speaks of, else `<think>`.

    gpt-oss writes everything in one format, which reads reasoning, content and calls.
    """
    if name == "auto":
        name = next((each for sign, each in _SIGNS.items() if sign in (template or "")), "think")
    return _FORMATS[name]


class ReasoningTokens:
    """Counts the tokens of one choice that end within its reasoning. `hidden`: tokens without text."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = 0
        self._unread: deque[int] = deque()  # where tokens end of which not all was read

    def add(self, token_ids: Sequence[int], reading: Reading) -> int:
        """The next tokens, after their text was read as far as it goes; how many more are known to be reasoning."""
        for token_id in token_ids:
            raw = b"" if token_id in self._hidden else self._tokenizer.token_bytes(token_id)
            self._end += len(self._decoder.decode(raw))
            self._unread.append(self._end)
        count = 0
        while self._unread and self._unread[0] <= reading.offset:
            count += reading.is_reasoning(self._unread.popleft())
        return count
