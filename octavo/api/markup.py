"""How the text of one turn is marked up: what reads it, and what sampling must do so that it can be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from octavo.api.openai.structured import structured_outputs
from octavo.api.openai.tools import ToolUse
from octavo.api.openai.types import ChatRequest
from octavo.api.reading import Steps, Text
from octavo.api.reasoning import ReasoningFormat, reasoning_format
from octavo.api.tool_calls import tool_format
from octavo.api.tool_calls.format import Lark, ToolFormat
from octavo.api.tool_calls.openai import Harmony
from octavo.api.tool_prompt import teaches
from octavo.engine.grammar import lark_expression
from octavo.errors import InvalidRequest
from octavo.face import Engine, Tokenizer
from octavo.request import StructuredOutputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Markup:
    """`calls` reads what comes after the reasoning; None: all of that is content.

    structure: the form of all the text, reasoning and calls included; None: what the request asks for is it.
    """

    reasoning: ReasoningFormat | None
    begins_inside: bool  # the prompt has opened the reasoning
    may_reason: bool
    calls: ToolFormat | None
    tools: ToolUse | None
    structure: StructuredOutputs | None = None
    shows_reasoning: bool
    skips_special_tokens: bool

    @classmethod
    def of(cls, engine: Engine, request: ChatRequest, tools: ToolUse | None, prompt: str) -> Self:
        """Raises InvalidRequest where tools and the form of the content exclude each other."""
        config, template = engine.config.model, engine.chat_template.source or ""
        reasoning = reasoning_format(config.reasoning_parser, template)
        calls: ToolFormat | None = None
        if tools is not None:
            taught = teaches(prompt, tools.shown)  # another format than the template's
            calls = tool_format(config.tool_call_parser, None if taught else template)
        if isinstance(reasoning, Harmony):
            reasoning, calls = None, reasoning
        content = request.messages[-1].content
        continued = content if request.continue_final_message and isinstance(content, str) else None
        markup = cls(
            reasoning=reasoning,
            begins_inside=reasoning is not None and reasoning.begins_inside(prompt, continued),
            may_reason=reasoning is not None and continued is None and reasoning.may_begin(prompt, template),
            calls=calls,
            tools=tools,
            shows_reasoning=request.include_reasoning is not False,
            skips_special_tokens=request.skip_special_tokens is not False,
        )
        wanted = structured_outputs(request)
        if wanted is None and not (tools and tools.required):
            return markup
        return markup._structured(wanted, engine.tokenizer)

    def _structured(self, wanted: StructuredOutputs | None, tokenizer: Tokenizer) -> Self:
        """With the form of all the text, of which `wanted` is only the content's."""
        lark = Lark(tokenizer, self.tools.known if self.tools else {}, parallel=self.parallel)
        calls = self.calls
        answers = []
        if wanted is not None and not (self.tools and self.tools.required):
            expression = lark_expression(wanted)
            if expression is None and self.tools is not None:
                message = "A grammar of the content cannot be combined with tools; send a JSON schema or a regex."
                raise InvalidRequest(message, param="structured_outputs", code="invalid_value")
            if expression is None:  # it takes all the text
                return replace(self, reasoning=None, calls=None)
            answers.append(calls.content(lark, expression) if isinstance(calls, Harmony) else expression)
        if self.tools is not None:
            assert calls is not None
            written = calls.grammar(lark)
            if written is None:
                calls = tool_format("generic")
                written = calls.grammar(lark)
            answers.append(f"{written}")
        if isinstance(calls, Harmony):
            before = calls.thought(lark)
        elif self.reasoning is not None and (self.begins_inside or self.may_reason):
            before = self.reasoning.thought(lark, self.begins_inside)
        elif self.tools is None:
            return self
        else:
            before = ""
        grammar = lark.grammar(f"{before} ({' | '.join(answers)})")
        return replace(self, calls=calls, structure=StructuredOutputs(grammar=grammar))

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
        changes: dict[str, Any] = {}
        if visible := sorted(self._visible(tokenizer)):
            changes["visible_special_token_ids"] = visible
        if self.structure is not None:
            changes["structured_outputs"] = self.structure
        return changes

    def hidden(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Tokens that the text does not show."""
        return tokenizer.special_ids - self._visible(tokenizer) if self.skips_special_tokens else frozenset()

    def _visible(self, tokenizer: Tokenizer) -> frozenset[int]:
        if not self.skips_special_tokens:
            return frozenset()
        markers = [mark for part in (self.reasoning, self.calls) if part is not None for mark in part.markers]
        ids = (tokenizer.encode(mark, add_special_tokens=False) for mark in markers)
        return tokenizer.special_ids.intersection(found[0] for found in ids if len(found) == 1)
