"""POST /v1/chat/completions: a `Turn` in OpenAI's JSON, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.api.conversation import Message, Part, ToolCallPart, Turn
from octavo.api.desk import Call
from octavo.api.generation import Opening
from octavo.api.openai.logprobs import chat_logprobs, wire_prompt_logprobs
from octavo.api.openai.models import fingerprint
from octavo.api.openai.types import (
    CHAT_UNSUPPORTED,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatFinish,
    ChatLogprobs,
    ChatRequest,
    FunctionCall,
    FunctionCallDelta,
    StreamOptions,
    ToolCallDelta,
    TurnFinish,
    WireToolCall,
)
from octavo.api.openai.usage import usage
from octavo.api.operation import Operation
from octavo.api.stream import EventStream
from octavo.api.wire import json_response
from octavo.request import Logprob


async def chat_completions(call: Call) -> ASGIApp:
    request = await call.read(ChatRequest, CHAT_UNSUPPORTED)
    answer = ChatAnswer(await Turn.prepare(call, request))
    call.tally.costs_are_shown = request.include_cost is True
    if request.stream:
        return await EventStream.open(answer.chunks())
    return json_response(await answer.whole())


class ChatAnswer:
    """A turn as one `ChatCompletion` or as `ChatChunk`s."""

    def __init__(self, turn: Turn) -> None:
        self.common: dict[str, Any] = {
            "id": f"chatcmpl-{turn.call.request_id}",
            "created": int(time.time()),
            "model": turn.name,
            "system_fingerprint": fingerprint(turn.engine),
        }
        self.turn = turn
        self.request = turn.request
        self.options = turn.request.stream_options or StreamOptions()

    async def whole(self) -> ChatCompletion:
        messages = await self.turn.whole()
        return ChatCompletion(
            choices=[self._choice(message) for message in messages],
            usage=usage(self.turn.call.tally),
            **self._prompt_fields(messages[0].opening),
            **self.common,
        )

    def _choice(self, message: Message) -> ChatChoice:
        return ChatChoice(
            index=message.index,
            message=self._message(message),
            logprobs=self._logprobs(message.token_ids, message.logprobs),
            finish_reason=self._finish(message.finish_reason),
            stop_reason=message.stop_reason,
            token_ids=message.token_ids if self.request.return_token_ids else UNSET,
        )

    def _message(self, message: Message) -> AssistantMessage:
        calls = [
            WireToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
            for call in message.tool_calls
        ]
        old = self._old_calls and bool(calls)
        return AssistantMessage(
            content=message.content,
            reasoning=message.reasoning or UNSET,
            reasoning_content=message.reasoning or UNSET,
            tool_calls=calls if calls and not old else UNSET,
            function_call=calls[0].function if old else UNSET,
        )

    def _finish(self, reason: TurnFinish | None) -> ChatFinish | None:
        return "function_call" if reason == "tool_calls" and self._old_calls else reason

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        async with aclosing(self.turn.parts()) as parts:
            async for part in parts:
                for choice in self._chunk_choices(part):
                    yield self._chunk([choice], **self._prompt_fields(part.opening if part.index == 0 else None))
        if self.options.include_usage:
            yield self._chunk([], usage=usage(self.turn.call.tally))

    def _chunk(self, choices: list[ChatChunkChoice], **fields: Any) -> ChatChunk:
        if self.options.continuous_usage_stats:
            fields["usage"] = usage(self.turn.call.tally)
        elif self.options.include_usage:
            fields.setdefault("usage", None)
        return ChatChunk(choices=choices, **fields, **self.common)

    def _chunk_choices(self, part: Part) -> list[ChatChunkChoice]:
        if part.opening is not None:
            return [ChatChunkChoice(index=part.index, delta=ChatDelta(role="assistant", content=""))]
        choices = []
        token_ids: list[int] | UnsetType = part.token_ids if self.request.return_token_ids else UNSET
        logprobs = self._logprobs(part.token_ids, part.logprobs)
        deltas = self._deltas(part)
        if deltas or token_ids or logprobs:
            first, *others = deltas or [ChatDelta()]
            choices.append(ChatChunkChoice(index=part.index, delta=first, logprobs=logprobs, token_ids=token_ids))
            choices += [ChatChunkChoice(index=part.index, delta=other) for other in others]
        if part.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index=part.index,
                    delta=ChatDelta(),
                    finish_reason=self._finish(part.finish_reason),
                    stop_reason=part.stop_reason,
                )
            )
        return choices

    def _deltas(self, part: Part) -> list[ChatDelta]:
        """One kind of text each: that is what clients expect."""
        deltas = []
        if part.reasoning:
            deltas.append(ChatDelta(reasoning=part.reasoning, reasoning_content=part.reasoning))
        if part.content:
            deltas.append(ChatDelta(content=part.content))
        if self._old_calls:
            calls = (FunctionCallDelta(name=new.name or UNSET, arguments=new.arguments) for new in part.tool_calls)
            deltas += [ChatDelta(function_call=call) for call in calls]
        elif part.tool_calls:
            deltas.append(ChatDelta(tool_calls=[_call_delta(new) for new in part.tool_calls]))
        return deltas

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[dict[int, Logprob]] | None
    ) -> ChatLogprobs | None:
        if not self.request.logprobs or (positions is None and token_ids):
            return None
        return chat_logprobs(token_ids, positions or (), self.request.top_logprobs or 0, self.turn.engine.tokenizer)

    @property
    def _old_calls(self) -> bool:
        """Whether the caller speaks of functions, as was usual before tools."""
        return bool(self.request.functions)

    def _prompt_fields(self, opening: Opening | None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if opening is not None and self.request.return_token_ids:
            fields["prompt_token_ids"] = opening.prompt_token_ids
        if opening is not None and opening.prompt_logprobs is not None and self.request.prompt_logprobs is not None:
            fields["prompt_logprobs"] = wire_prompt_logprobs(opening.prompt_logprobs)
        return fields


def _call_delta(new: ToolCallPart) -> ToolCallDelta:
    return ToolCallDelta(
        index=new.index,
        id=new.id or UNSET,
        type="function" if new.id else UNSET,
        function=FunctionCallDelta(name=new.name or UNSET, arguments=new.arguments),
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        takes=ChatRequest,
        gives=ChatCompletion,
        events=ChatChunk,
        unsupported=CHAT_UNSUPPORTED,
        in_batches=True,
    ),
)
