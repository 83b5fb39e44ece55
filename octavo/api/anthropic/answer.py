"""A turn's parts as Anthropic's message: in one piece, or as a stream's events, which fold to the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import DecodeError, Raw, Struct, json

from octavo.api.anthropic.types import (
    BlockDelta,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputDetails,
    Ping,
    StopDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from octavo.api.conversation import Part, Turn
from octavo.api.desk import Tally
from octavo.api.segments import Change, Segment, Segments

_NOTHING = Raw(b"{}")


class Answer:
    """Of one turn; ask it once, either for `whole` or for `events`."""

    def __init__(self, turn: Turn, max_tokens: int) -> None:
        self._turn = turn
        self._max_tokens = max_tokens
        self._segments = Segments()

    async def whole(self) -> Message:
        last: Part | None = None
        async with aclosing(self._turn.parts()) as parts:
            async for part in parts:
                self._segments.add(part)
                last = part
        assert last is not None
        return self._message([_block(segment) for segment in self._segments.all], self._stop(last))

    async def events(self) -> AsyncGenerator[Struct, None]:
        last: Part | None = None
        async with aclosing(self._turn.parts()) as parts:
            async for part in parts:
                if last is None:  # now the prompt's tokens are known
                    yield MessageStart(message=self._message([], None))
                    yield Ping()
                for change in self._segments.add(part):
                    yield _event(change)
                last = part
        assert last is not None
        yield MessageDelta(delta=self._stop(last), usage=_usage(self._turn.call.tally))
        yield MessageStop()

    def _message(self, content: list[TextBlock | ThinkingBlock | ToolUseBlock], stop: StopDelta | None) -> Message:
        return Message(
            id=f"msg_{self._turn.call.request_id}",
            model=self._turn.name,
            content=content,
            stop_reason=None if stop is None else stop.stop_reason,
            stop_sequence=None if stop is None else stop.stop_sequence,
            usage=_usage(self._turn.call.tally),
        )

    def _stop(self, last: Part) -> StopDelta:
        """Why the answer ended with this part."""
        stopped_by = last.stop_reason
        sequence = stopped_by if isinstance(stopped_by, str) and stopped_by in (self._turn.request.stop or ()) else None
        reason: StopReason = "end_turn"
        if last.finish_reason == "tool_calls":
            reason = "tool_use"
        elif last.finish_reason == "length":
            full = self._turn.call.tally.completion_tokens < self._max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
        elif sequence is not None:
            reason = "stop_sequence"
        return StopDelta(stop_reason=reason, stop_sequence=sequence)


def _usage(tally: Tally) -> MessageUsage:
    return MessageUsage(
        input_tokens=tally.prompt_tokens - tally.cached_tokens,
        cache_read_input_tokens=tally.cached_tokens,
        output_tokens=tally.completion_tokens,
        output_tokens_details=OutputDetails(thinking_tokens=tally.reasoning_tokens),
    )


def _event(change: Change) -> BlockStart | BlockDelta | BlockStop:
    index = change.segment.index
    match change.kind:
        case "open":
            empty = Segment(index=index, kind=change.segment.kind, id=change.segment.id, name=change.segment.name)
            return BlockStart(index=index, content_block=_block(empty))
        case "grow":
            return BlockDelta(index=index, delta=_delta(change))
        case "close":
            return BlockStop(index=index)


def _delta(change: Change) -> TextDelta | ThinkingDelta | InputJsonDelta:
    match change.segment.kind:
        case "text":
            return TextDelta(text=change.text)
        case "reasoning":
            return ThinkingDelta(thinking=change.text)
        case "tool_call":
            return InputJsonDelta(partial_json=change.text)


def _block(segment: Segment) -> TextBlock | ThinkingBlock | ToolUseBlock:
    match segment.kind:
        case "text":
            return TextBlock(text=segment.text)
        case "reasoning":
            return ThinkingBlock(thinking=segment.text)
        case "tool_call":
            return ToolUseBlock(id=segment.id, name=segment.name, input=_input(segment.text))


def _input(arguments: str) -> Raw:
    """The arguments as the object they are; one that was cut off is empty."""
    try:
        is_object = isinstance(json.decode(arguments), dict)
    except (DecodeError, RecursionError):
        is_object = False
    return Raw(arguments.encode()) if is_object else _NOTHING
