"""POST /v1/chat/completions: a `Turn` in OpenAI's JSON, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.api.conversation import Message, Part, Turn
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
    ChatLogprobs,
    ChatRequest,
    StreamOptions,
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
            message=AssistantMessage(content=message.content),
            logprobs=self._logprobs(message.token_ids, message.logprobs),
            finish_reason=message.finish_reason,
            stop_reason=message.stop_reason,
            token_ids=message.token_ids if self.request.return_token_ids else UNSET,
        )

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
        if part.content or token_ids or logprobs:
            content = ChatDelta(content=part.content)
            choices.append(ChatChunkChoice(index=part.index, delta=content, logprobs=logprobs, token_ids=token_ids))
        if part.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index=part.index,
                    delta=ChatDelta(),
                    finish_reason=part.finish_reason,
                    stop_reason=part.stop_reason,
                )
            )
        return choices

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[dict[int, Logprob]] | None
    ) -> ChatLogprobs | None:
        if not self.request.logprobs or (positions is None and token_ids):
            return None
        return chat_logprobs(token_ids, positions or (), self.request.top_logprobs or 0, self.turn.engine.tokenizer)

    def _prompt_fields(self, opening: Opening | None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if opening is not None and self.request.return_token_ids:
            fields["prompt_token_ids"] = opening.prompt_token_ids
        if opening is not None and opening.prompt_logprobs is not None and self.request.prompt_logprobs is not None:
            fields["prompt_logprobs"] = wire_prompt_logprobs(opening.prompt_logprobs)
        return fields


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
