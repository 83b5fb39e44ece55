"""How the text of one turn is marked up, and what sampling must do so that it can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from octavo.api.openai.tools import ToolUse
from octavo.api.openai.types import ChatRequest
from octavo.api.reading import Steps, Text
from octavo.api.reasoning import HARMONY, ReasoningFormat, reasoning_format
from octavo.api.tool_calls import ToolFormat, tool_format
from octavo.face import Engine, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Markup:
    """`calls` reads what comes after the reasoning; None: all of it is content."""

    reasoning: ReasoningFormat | None
    begins_inside: bool  # the prompt has opened the reasoning
    calls: ToolFormat | None
    tools: ToolUse | None
    shows_reasoning: bool
    skips_special_tokens: bool

    @classmethod
    def of(cls, engine: Engine, request: ChatRequest, tools: ToolUse | None, prompt: str) -> Self:
        config, template = engine.config.model, engine.chat_template.source
        reasoning = reasoning_format(config.reasoning_parser, template)
        calls = None
        if reasoning is HARMONY:
            calls, reasoning = tool_format("openai"), None
        elif tools is not None:
            calls = tool_format(config.tool_call_parser, template)
        content = request.messages[-1].content
        continued = content if request.continue_final_message and isinstance(content, str) else None
        return cls(
            reasoning=reasoning,
            begins_inside=reasoning is not None and reasoning.begins_inside(prompt, continued),
            calls=calls,
            tools=tools,
            shows_reasoning=request.include_reasoning is not False,
            skips_special_tokens=request.skip_special_tokens is not False,
        )

    @property
    def parallel(self) -> bool:
        return self.tools is not None and self.tools.parallel

    def read(self, text: Text) -> Steps[None]:
        if self.reasoning is not None:
            yield from self.reasoning.read(text, self.begins_inside)
        if self.calls is not None:
            yield from self.calls.read(text, self.tools.known if self.tools else {})
        yield from text.until()

    def sampling(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Changes of sampling parameters: what the text is marked up with must not be skipped."""
        visible = sorted(self._visible(tokenizer))
        return {"visible_special_token_ids": visible} if visible else {}

    def hidden(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Tokens that the text does not show."""
        return tokenizer.special_ids - self._visible(tokenizer) if self.skips_special_tokens else frozenset()

    def _visible(self, tokenizer: Tokenizer) -> frozenset[int]:
        if not self.skips_special_tokens:
            return frozenset()
        markers = [mark for part in (self.reasoning, self.calls) if part is not None for mark in part.markers]
        ids = (tokenizer.encode(mark, add_special_tokens=False) for mark in markers)
        return tokenizer.special_ids.intersection(found[0] for found in ids if len(found) == 1)
