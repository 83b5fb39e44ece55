"""What a chat answer consists of: a `Choice` reads the engine's deltas and gives `Part`s, which fold to a `Message`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.api.desk import Tally
from octavo.api.generation import Delta, Opening
from octavo.api.markup import Markup
from octavo.api.openai.types import TurnFinish
from octavo.api.reading import Piece, Reading, Text
from octavo.api.reasoning import ReasoningTokens
from octavo.face import Tokenizer
from octavo.request import Logprob


@dataclass(slots=True, kw_only=True)
class ToolCallPart:
    """What is new in one tool call. Its first part has the id and the name, with or without arguments."""

    index: int  # which of the choice's calls: 0, 1, …
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # the next piece of a JSON text


@dataclass(slots=True, kw_only=True)
class Part:
    """What is new in one choice, in this order: reasoning, content, tool calls.

    A choice begins with a part that has nothing but its opening, and ends with the one that has a finish reason. A part
    may hold tokens without any text: it will come with a later one.
    """

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPart] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: TurnFinish | None = None
    stop_reason: int | str | None = None
    opening: Opening | None = None


@dataclass(slots=True, kw_only=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # a JSON text; cut off where the answer was


@dataclass(slots=True, kw_only=True)
class Message:
    """A whole choice: its parts folded. `content` is None where there are only tool calls."""

    index: int
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: TurnFinish | None = None
    stop_reason: int | str | None = None
    opening: Opening | None = None

    def add(self, part: Part) -> None:
        if part.content:
            self.content = (self.content or "") + part.content
        if part.reasoning:
            self.reasoning = (self.reasoning or "") + part.reasoning
        for new in part.tool_calls:
            if new.id is not None and new.name is not None:
                self.tool_calls.append(ToolCall(id=new.id, name=new.name, arguments=""))
            self.tool_calls[new.index].arguments += new.arguments
        self.token_ids += part.token_ids
        if part.logprobs is not None:
            self.logprobs = [] if self.logprobs is None else self.logprobs
            self.logprobs += part.logprobs
        self.finish_reason = part.finish_reason or self.finish_reason
        self.stop_reason = self.stop_reason if part.stop_reason is None else part.stop_reason
        self.opening = part.opening or self.opening
        if part.finish_reason is not None and self.content is None and not self.tool_calls:
            self.content = ""


class Choice:
    """One choice of a turn while it comes."""

    def __init__(self, index: int, markup: Markup, tokenizer: Tokenizer, tally: Tally, request_id: str) -> None:
        self._index = index
        self._markup = markup
        self._tally = tally
        self._request_id = request_id
        text = Text()
        self._reading = Reading(text, markup.read(text))
        self._reasoning_tokens = ReasoningTokens(tokenizer, markup.hidden(tokenizer))
        self._calls = 0

    def take(self, delta: Delta) -> list[Part]:
        """What is new, in more than one part if the order of things demands it."""
        if delta.opening is not None:
            return [Part(index=self._index, opening=delta.opening)]
        if self._reading.plain:
            return [self._plain(delta)]
        pieces = self._reading.feed(delta.text)
        if delta.finish_reason is not None:
            pieces += self._reading.finish()
        self._tally.reasoning_tokens += self._reasoning_tokens.add(delta.token_ids, self._reading)
        parts = self._parts(pieces)
        parts[0].token_ids, parts[0].logprobs = delta.token_ids, delta.logprobs
        called = self._calls > 0 and delta.finish_reason == "stop"
        parts[-1].finish_reason = "tool_calls" if called else delta.finish_reason
        parts[-1].stop_reason = delta.stop_reason
        return parts

    def _plain(self, delta: Delta) -> Part:
        return Part(
            index=self._index,
            content=delta.text,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _parts(self, pieces: Sequence[Piece]) -> list[Part]:
        parts = [Part(index=self._index)]
        for piece in pieces:
            last = parts[-1]
            late = last.tool_calls if piece.kind == "content" else last.tool_calls or last.content
            if late and piece.kind in ("content", "reasoning"):
                last = Part(index=self._index)
                parts.append(last)
            match piece.kind:
                case "content":
                    last.content += piece.text
                case "reasoning":
                    last.reasoning += piece.text if self._markup.shows_reasoning else ""
                case "call":
                    self._calls += 1
                    if self._wanted:
                        last.tool_calls.append(self._call(piece.text))
                case "arguments" if self._wanted:
                    self._argue(last.tool_calls, piece.text)
        return parts

    @property
    def _wanted(self) -> bool:
        """Whether the call that comes is passed on."""
        return self._calls == 1 or self._markup.parallel

    def _call(self, name: str) -> ToolCallPart:
        """Its id is the same whenever the same request is made again with the same id."""
        index = self._calls - 1
        digest = hashlib.sha256(f"{self._request_id}/{self._index}/{index}".encode()).hexdigest()
        return ToolCallPart(index=index, id=f"call_{digest[:24]}", name=name)

    def _argue(self, calls: list[ToolCallPart], text: str) -> None:
        if not calls:
            calls.append(ToolCallPart(index=self._calls - 1))
        calls[-1].arguments += text
