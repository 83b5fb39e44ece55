"""A turn's parts as a Response: in one piece, or as a stream's events, whose last one holds the same."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from msgspec import Raw, json

from octavo.api.conversation import Part, Turn
from octavo.api.desk import Tally
from octavo.api.openai.logprobs import chat_logprobs
from octavo.api.openai.types import TokenLogprob
from octavo.api.responses.types import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentAdded,
    ContentDone,
    Event,
    FunctionCallItem,
    IncompleteDetails,
    InputTokensDetails,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    OutputTokensDetails,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponsesRequest,
    ResponseUsage,
    TextConfig,
    TextFormat,
)
from octavo.api.segments import Change, Segment, Segments
from octavo.errors import OctavoError

_PREFIXES = {"text": "msg", "reasoning": "rs", "tool_call": "fc"}


class Answer:
    """Of one turn; ask it once, either for `whole` or for `events`."""

    def __init__(self, turn: Turn, request: ResponsesRequest) -> None:
        self._turn = turn
        self._echo = _echo(turn, request)
        self._segments = Segments()
        self._logprobs: dict[int, list[TokenLogprob]] = {}  # of the segments with text
        self._unsaid: list[TokenLogprob] = []  # of tokens whose text is still to come
        self._cut = False  # the answer ended before its end

    async def whole(self) -> Response:
        async with aclosing(self._turn.parts()) as parts:
            async for part in parts:
                for _ in self._events_of(part):
                    pass
        return self._final()

    async def events(self) -> AsyncGenerator[Event, None]:
        number = 0
        async with aclosing(self._events()) as events:
            async for event in events:
                event.sequence_number = number
                number += 1
                yield event

    async def _events(self) -> AsyncGenerator[Event, None]:
        begun = False
        try:
            async with aclosing(self._turn.parts()) as parts:
                async for part in parts:
                    if not begun:
                        yield ResponseCreated(response=self._response(status="in_progress", output=[]))
                        yield ResponseInProgress(response=self._response(status="in_progress", output=[]))
                        begun = True
                    for event in self._events_of(part):
                        yield event
        except OctavoError as error:
            if begun:  # else there is no stream yet, only an error
                wrong = ResponseError(code=error.code or error.type, message=error.message)
                yield ResponseFailed(response=self._response(status="failed", output=self._output(), error=wrong))
            raise
        final = self._final()
        yield ResponseIncomplete(response=final) if self._cut else ResponseCompleted(response=final)

    # ---- the whole ----

    def _final(self) -> Response:
        tally, now = self._turn.call.tally, int(time.time())
        usage = _usage(tally)
        if self._cut:
            details = IncompleteDetails(reason="max_output_tokens")
            return self._response(status="incomplete", output=self._output(), usage=usage, incomplete_details=details)
        return self._response(status="completed", output=self._output(), usage=usage, completed_at=now)

    def _response(self, **fields: Any) -> Response:
        return Response(**fields, **self._echo)

    def _output(self) -> list[OutputItem]:
        return [self._item(segment, self._status(segment)) for segment in self._segments.all]

    def _status(self, segment: Segment) -> ItemStatus:
        if not segment.closed:
            return "in_progress"
        last = segment.index == len(self._segments.all) - 1
        return "incomplete" if self._cut and last else "completed"

    def _item(self, segment: Segment, status: ItemStatus) -> OutputItem:
        """With everything it says so far; empty while it has just begun."""
        common: dict[str, Any] = {"id": self._id(segment), "status": status}
        match segment.kind:
            case "text":
                return OutputMessage(**common, content=[self._text(segment)] if segment.text else [])
            case "reasoning":
                content = [ReasoningText(text=segment.text)] if segment.text else []
                return ReasoningItem(**common, content=content)
            case "tool_call":
                return FunctionCallItem(**common, call_id=segment.id, name=segment.name, arguments=segment.text)

    def _text(self, segment: Segment) -> OutputText:
        return OutputText(text=segment.text, logprobs=self._logprobs.get(segment.index, []))

    def _id(self, segment: Segment) -> str:
        return f"{_PREFIXES[segment.kind]}_{self._turn.call.request_id}_{segment.index}"

    # ---- piece by piece ----

    def _events_of(self, part: Part) -> Iterator[Event]:
        self._cut = part.finish_reason == "length"
        fresh = self._token_logprobs(part)
        for change in self._segments.add(part):
            if change.kind == "grow" and change.segment.kind == "text":
                self._logprobs.setdefault(change.segment.index, []).extend(fresh)
                yield from self._grown(change, fresh)
                fresh = []
            elif change.kind == "open":
                yield from self._opened(change.segment)
            elif change.kind == "grow":
                yield from self._grown(change, [])
            else:
                self._logprobs.setdefault(change.segment.index, []).extend(fresh)
                yield from self._closed(change.segment)

    def _token_logprobs(self, part: Part) -> list[TokenLogprob]:
        """Those that belong to what the part says as text."""
        request = self._turn.request
        if not request.logprobs or part.logprobs is None:
            return []
        wire = chat_logprobs(part.token_ids, part.logprobs, request.top_logprobs or 0, self._turn.engine.tokenizer)
        self._unsaid += wire.content
        if not (part.content or part.reasoning or part.tool_calls or part.finish_reason):
            return []
        said, self._unsaid = self._unsaid, []
        return said if part.content or not (part.reasoning or part.tool_calls) else []

    def _opened(self, segment: Segment) -> Iterator[Event]:
        place = {"output_index": segment.index}
        begun = Segment(index=segment.index, kind=segment.kind, id=segment.id, name=segment.name)
        yield ItemAdded(**place, item=self._item(begun, "in_progress"))
        if segment.kind == "text":
            yield ContentAdded(**place, item_id=self._id(segment), part=OutputText(text=""))
        elif segment.kind == "reasoning":
            yield ContentAdded(**place, item_id=self._id(segment), part=ReasoningText(text=""))

    def _grown(self, change: Change, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        place: dict[str, Any] = {"output_index": change.segment.index, "item_id": self._id(change.segment)}
        match change.segment.kind:
            case "text":
                yield OutputTextDelta(**place, delta=change.text, logprobs=logprobs)
            case "reasoning":
                yield ReasoningDelta(**place, delta=change.text)
            case "tool_call":
                yield ArgumentsDelta(**place, delta=change.text)

    def _closed(self, segment: Segment) -> Iterator[Event]:
        place: dict[str, Any] = {"output_index": segment.index, "item_id": self._id(segment)}
        match segment.kind:
            case "text":
                text = self._text(segment)
                yield OutputTextDone(**place, text=text.text, logprobs=text.logprobs)
                yield ContentDone(**place, part=text)
            case "reasoning":
                yield ReasoningDone(**place, text=segment.text)
                yield ContentDone(**place, part=ReasoningText(text=segment.text))
            case "tool_call":
                yield ArgumentsDone(**place, name=segment.name, arguments=segment.text)
        yield ItemDone(output_index=segment.index, item=self._item(segment, self._status(segment)))


def _echo(turn: Turn, request: ResponsesRequest) -> dict[str, Any]:
    """What an answer repeats of its request."""
    text = request.text or TextConfig()
    return {
        "id": f"resp_{turn.call.request_id}",
        "created_at": int(time.time()),
        "model": turn.name,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": request.reasoning or Reasoning(),
        "safety_identifier": request.safety_identifier,
        "temperature": turn.job.params.temperature,
        "text": TextConfig(format=text.format or TextFormat(type="text"), verbosity=text.verbosity),
        "tool_choice": request.tool_choice or "auto",
        "tools": [Raw(json.encode(tool)) for tool in request.tools or ()],  # once: a stream tells them more than once
        "top_logprobs": request.top_logprobs or 0,
        "top_p": getattr(turn.job.params, "top_p", None),
        "user": request.user,
        "metadata": request.metadata or {},
    }


def _usage(tally: Tally) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=tally.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=tally.cached_tokens),
        output_tokens=tally.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=tally.reasoning_tokens),
        total_tokens=tally.prompt_tokens + tally.completion_tokens,
    )
