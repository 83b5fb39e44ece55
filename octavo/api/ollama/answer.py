"""Parts of an answer as Ollama tells them: in one piece, or as a stream of pieces which fold to the same.

Texts come as the model says them, a tool call when it is complete. One that was cut off, or is no object, is told as
the text it is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import DecodeError, Raw, Struct, json

from octavo.api.conversation import Part
from octavo.api.desk import Call
from octavo.api.ollama.types import (
    Answer,
    AnsweredCall,
    AnswerMessage,
    CallToMake,
    ChatAnswer,
    CommonFields,
    GenerateAnswer,
)
from octavo.api.openai.logprobs import chat_logprobs
from octavo.api.openai.types import TokenLogprob
from octavo.api.segments import Segment, Segments
from octavo.face import Tokenizer


def rfc3339(moment: float | None = None) -> str:
    """A moment in seconds since 1970; None is now."""
    at = datetime.now(UTC) if moment is None else datetime.fromtimestamp(moment, UTC)
    return at.isoformat().replace("+00:00", "Z")


class Clock:
    """Nanoseconds that an answer takes, in its three stretches."""

    def __init__(self) -> None:
        self._began = self._prepared = self._spoke = time.monotonic_ns()

    def prepared(self) -> None:
        """The model is there and the prompt is ready."""
        self._prepared = self._spoke = time.monotonic_ns()

    def spoke(self) -> None:
        """The prompt has been read and the first token is there."""
        self._spoke = time.monotonic_ns()

    def fields(self) -> dict[str, int]:
        now = time.monotonic_ns()
        return {
            "total_duration": now - self._began,
            "load_duration": self._prepared - self._began,
            "prompt_eval_duration": self._spoke - self._prepared,
            "eval_duration": now - self._spoke,
        }


class Said(Struct, kw_only=True):
    """What is new."""

    content: str = ""
    thinking: str = ""
    calls: list[AnsweredCall] = []
    logprobs: list[TokenLogprob] = []

    def add(self, later: Said) -> None:
        self.content += later.content
        self.thinking += later.thinking
        self.calls += later.calls
        self.logprobs += later.logprobs

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.calls or self.logprobs)


Shape = Callable[..., Answer]  # of what is said, with the fields that all answers have


def chat_answer(said: Said, **fields: Any) -> ChatAnswer:
    message = AnswerMessage(role="assistant", content=said.content, thinking=said.thinking, tool_calls=said.calls)
    return ChatAnswer(message=message, **fields)


def generate_answer(said: Said, **fields: Any) -> GenerateAnswer:
    return GenerateAnswer(response=said.content, thinking=said.thinking, **fields)


class Telling:
    """Of one request's parts, in one shape; ask it once, either for `whole` or for `pieces`."""

    def __init__(
        self,
        call: Call,
        request: CommonFields,
        parts: AsyncGenerator[Part, None],
        tokenizer: Tokenizer,
        shape: Shape,
        clock: Clock,
    ) -> None:
        self._call = call
        self._request = request
        self._parts = parts
        self._tokenizer = tokenizer
        self._shape = shape
        self._clock = clock
        self._segments = Segments()
        self._finish: Literal["stop", "length"] = "stop"
        self._calls = 0

    async def whole(self) -> Answer:
        everything = Said()
        async with aclosing(self._said()) as parts:
            async for said in parts:
                everything.add(said)
        return self._last(everything)

    async def pieces(self) -> AsyncGenerator[Answer, None]:
        async with aclosing(self._said()) as parts:
            async for said in parts:
                if said:
                    yield self._piece(said, done=False)
        yield self._last(Said())

    async def _said(self) -> AsyncGenerator[Said, None]:
        async with aclosing(self._parts) as parts:
            async for part in parts:
                if part.opening is not None:
                    self._clock.spoke()
                if part.finish_reason is not None:
                    self._finish = "length" if part.finish_reason == "length" else "stop"
                yield self._of_part(part)

    def _of_part(self, part: Part) -> Said:
        said = Said(logprobs=self._logprobs(part))
        for change in self._segments.add(part):
            match change.kind, change.segment.kind:
                case "grow", "text":
                    said.content += change.text
                case "grow", "reasoning":
                    said.thinking += change.text
                case "close", "tool_call":
                    self._add_call(said, change.segment)
        return said

    def _add_call(self, said: Said, segment: Segment) -> None:
        try:
            is_object = isinstance(json.decode(segment.text), dict)
        except (DecodeError, RecursionError):
            is_object = False
        if not is_object:
            said.content += segment.text
            return
        function = CallToMake(index=self._calls, name=segment.name, arguments=Raw(segment.text.encode()))
        said.calls = [*said.calls, AnsweredCall(id=segment.id, function=function)]
        self._calls += 1

    def _logprobs(self, part: Part) -> list[TokenLogprob]:
        if not self._request.logprobs or part.logprobs is None:
            return []
        top = self._request.top_logprobs or 0
        return chat_logprobs(part.token_ids, part.logprobs, top, self._tokenizer).content

    def _piece(self, said: Said, **fields: Any) -> Answer:
        common = {"model": self._request.model, "created_at": rfc3339(), "logprobs": said.logprobs or None}
        return self._shape(said, **common, **fields)

    def _last(self, said: Said) -> Answer:
        tally = self._call.tally
        counts = {"prompt_eval_count": tally.prompt_tokens, "eval_count": tally.completion_tokens}
        return self._piece(said, done=True, done_reason=self._finish, **counts, **self._clock.fields())
