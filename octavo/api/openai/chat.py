"""POST /v1/chat/completions: messages in, an assistant's message out, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.api.desk import Call
from octavo.api.generation import Delta, Job, Opening, collect, deltas
from octavo.api.openai.logprobs import chat_logprobs, wire_prompt_logprobs
from octavo.api.openai.models import fingerprint
from octavo.api.openai.prompts import render_chat
from octavo.api.openai.sampling import beam_params, check_common, check_room, sampling_params
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
from octavo.api.served import Served
from octavo.api.stream import EventStream
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest
from octavo.face import Engine
from octavo.request import BeamSearchParams, Logprob, SamplingParams


async def chat_completions(call: Call) -> ASGIApp:
    request = await call.read(ChatRequest, CHAT_UNSUPPORTED)
    options = _check(request)
    call.deadline.shorten(request.timeout)
    served = await call.model(request.model)
    engine = served.engine
    try:
        job = await _job(call, engine, request)
        answer = ChatAnswer(call, served, request, options)
        if request.stream:
            return await EventStream.open(answer.chunks(job))
        return json_response(await answer.whole(job))
    except InvalidRequest as error:  # the engine speaks of prompts and sampling parameters
        error.param = error.param and _wire_name(error.param, request)
        raise


def _wire_name(param: str, request: ChatRequest) -> str:
    names = {"prompt": "messages"}
    if request.top_logprobs is not None:
        names["logprobs"] = "top_logprobs"
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    return names.get(param, param)


def _check(request: ChatRequest) -> StreamOptions:
    if request.top_logprobs and not request.logprobs:
        message = "'top_logprobs' is only allowed when 'logprobs' is true."
        raise InvalidRequest(message, param="top_logprobs", code="invalid_value")
    if request.tool_choice not in (None, "none", "auto"):
        message = "Unsupported parameter: 'tool_choice'. This server does not support tools yet."
        raise InvalidRequest(message, param="tool_choice", code="unsupported_parameter")
    return check_common(request)


async def _job(call: Call, engine: Engine, request: ChatRequest) -> Job:
    text = await render_chat(
        engine,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        template_kwargs=request.chat_template_kwargs,
    )
    _, prompt = await engine.encode(text, add_special_tokens=False)
    limit = request.max_completion_tokens or request.max_tokens
    check_room(engine, len(prompt), request, limit, _wire_name("max_tokens", request))
    params: SamplingParams | BeamSearchParams
    if request.use_beam_search:
        params = beam_params(request, max_tokens=limit or max(1, engine.max_model_len - len(prompt)))
    else:
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        params = sampling_params(request, engine, max_tokens=limit, logprobs=logprobs)
    return Job(
        request_id=f"chatcmpl-{call.request_id}",
        prompt_token_ids=prompt,
        params=params,
        n=request.n or 1,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )


class ChatAnswer:
    """The deltas of a job as one `ChatCompletion` or as `ChatChunk`s."""

    def __init__(self, call: Call, served: Served, request: ChatRequest, options: StreamOptions) -> None:
        self.common: dict[str, Any] = {
            "id": f"chatcmpl-{call.request_id}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": fingerprint(served.engine),
        }
        self.call = call
        self.engine = served.engine
        self.request = request
        self.options = options

    async def whole(self, job: Job) -> ChatCompletion:
        choices = await collect(deltas(self.call, self.engine, [job]), job.n)
        opening = choices[0].opening
        return ChatCompletion(
            choices=[self._choice(choice) for choice in choices],
            usage=usage(self.call.tally),
            **self._prompt_fields(opening),
            **self.common,
        )

    def _choice(self, choice: Delta) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(content=choice.text),
            logprobs=self._logprobs(choice.token_ids, choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self.request.return_token_ids else UNSET,
        )

    async def chunks(self, job: Job) -> AsyncGenerator[ChatChunk, None]:
        async with aclosing(deltas(self.call, self.engine, [job])) as parts:
            async for delta in parts:
                for choice in self._chunk_choices(delta):
                    yield self._chunk([choice], **self._prompt_fields(delta.opening if delta.index == 0 else None))
        if self.options.include_usage:
            yield self._chunk([], usage=usage(self.call.tally))

    def _chunk(self, choices: list[ChatChunkChoice], **fields: Any) -> ChatChunk:
        if self.options.continuous_usage_stats:
            fields["usage"] = usage(self.call.tally)
        elif self.options.include_usage:
            fields.setdefault("usage", None)
        return ChatChunk(choices=choices, **fields, **self.common)

    def _chunk_choices(self, delta: Delta) -> list[ChatChunkChoice]:
        if delta.opening is not None:
            return [ChatChunkChoice(index=delta.index, delta=ChatDelta(role="assistant", content=""))]
        choices = []
        token_ids: list[int] | UnsetType = delta.token_ids if self.request.return_token_ids else UNSET
        logprobs = self._logprobs(delta.token_ids, delta.logprobs)
        if delta.text or token_ids or logprobs:
            content = ChatDelta(content=delta.text)
            choices.append(ChatChunkChoice(index=delta.index, delta=content, logprobs=logprobs, token_ids=token_ids))
        if delta.finish_reason is not None:
            choices.append(
                ChatChunkChoice(
                    index=delta.index,
                    delta=ChatDelta(),
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason,
                )
            )
        return choices

    def _logprobs(
        self, token_ids: Sequence[int], positions: Sequence[dict[int, Logprob]] | None
    ) -> ChatLogprobs | None:
        if not self.request.logprobs or (positions is None and token_ids):
            return None
        return chat_logprobs(token_ids, positions or (), self.request.top_logprobs or 0, self.engine.tokenizer)

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
    ),
)
