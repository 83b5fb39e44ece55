"""How models mark their reasoning, by the names that `--reasoning-parser` takes.

Reasoning comes first, then what tool formats read. A chat template may open it already, at the end of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.api.reading import SPACE, NotACall, Piece, Steps, Text


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """`always`: an answer begins with reasoning even where nothing opens it."""

    opening: str = "<think>"
    closing: str = "</think>"
    always: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.opening, self.closing)

    def begins_inside(self, prompt: str) -> bool:
        """Whether the answer to this prompt begins with reasoning that is open already."""
        end = prompt.rstrip(SPACE)
        return end.endswith(self.opening) or (self.always and not end.endswith(self.closing))

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
#: gpt-oss writes everything in one format, which `octavo.api.tool_calls.openai` reads, tools or not.
HARMONY = ReasoningFormat("<|channel|>analysis<|message|>", "<|end|>")

_FORMATS: dict[str, ReasoningFormat | None] = {
    "none": None,
    "think": THINK,
    "qwen3": THINK,
    "deepseek_r1": ReasoningFormat(always=True),
    "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "openai_gptoss": HARMONY,
}
NAMES = tuple(_FORMATS)
_SIGNS = {
    "<|channel|>": "openai_gptoss",
    "[THINK]": "mistral",
    "<seed:think>": "seed_oss",
    "Here is my thought process:": "granite",
}


def reasoning_format(name: str, template: str | None = None) -> ReasoningFormat | None:
    """The format of that name; "auto" is the one that the chat template speaks of, else `<think>`."""
    if name == "auto":
        name = next((each for sign, each in _SIGNS.items() if sign in (template or "")), "think")
    return _FORMATS[name]
