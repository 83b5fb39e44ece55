"""POST /api/chat and /api/generate: Ollama's chat and completion. Without messages or a prompt they load the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import ASGIApp

from octavo.api.conversation import Part, Turn
from octavo.api.desk import Call
from octavo.api.generation import Delta, Job, deltas
from octavo.api.ollama.answer import Clock, Said, Shape, Telling, chat_answer, generate_answer, rfc3339
from octavo.api.ollama.request import NAMES, model_name, of_chat, of_generate, seconds
from octavo.api.ollama.types import (
    CHAT_UNSUPPORTED,
    GENERATE_UNSUPPORTED,
    WITHOUT_EFFECT,
    ChatAnswer,
    CommonFields,
    GenerateAnswer,
    OllamaChatRequest,
    OllamaGenerateRequest,
    Options,
)
from octavo.api.openai import types as openai
from octavo.api.openai.completions import prompt_with_gap
from octavo.api.openai.sampling import sampling_params
from octavo.api.operation import Operation
from octavo.api.stream import LINES, EventStream
from octavo.api.wire import fields_called, json_response
from octavo.errors import Forbidden, InvalidRequest
from octavo.face import Engine


async def chat(call: Call) -> ASGIApp:
    """An assistant's message in answer to a conversation, as Ollama's."""
    request = await call.read(OllamaChatRequest, CHAT_UNSUPPORTED)
    _check(request)
    if not request.messages:
        return await _load(call, request, chat_answer)
    return await _tell(call, request, of_chat(request), chat_answer, Clock())


async def generate(call: Call) -> ASGIApp:
    """A text in answer to a prompt, as Ollama's."""
    request = await call.read(OllamaGenerateRequest, GENERATE_UNSUPPORTED)
    _check(request)
    if not request.prompt:
        return await _load(call, request, generate_answer)
    clock = Clock()
    engine = (await call.model(model_name(request.model), task="generate")).engine
    if request.raw or request.suffix or engine.chat_template.source is None:
        return await _continue(call, engine, request, clock)
    return await _tell(call, request, of_generate(request), generate_answer, clock)


def _check(request: CommonFields) -> None:
    if request.keep_alive is not None:
        seconds(request.keep_alive)  # the server's own setting counts, but a mistake is one


async def _load(call: Call, request: CommonFields, shape: Shape) -> ASGIApp:
    """Without anything to answer; a model that is not to stay is unloaded."""
    name = model_name(request.model)
    unload = request.keep_alive is not None and seconds(request.keep_alive) == 0
    if unload:
        if call.tenant.role != "admin":
            raise Forbidden("This key may not unload models: it is not an administrator's.")
        if call.desk.admins_apart:
            raise Forbidden("Models are unloaded on the admin port, by POST /v1/admin/models/NAME/unload.")
        call.desk.models.unload(call.desk.models.find(name).model)
    else:
        await call.model(name)
    reason = "unload" if unload else "load"
    return json_response(
        shape(Said(), model=request.model, created_at=rfc3339(), done=True, done_reason=reason, logprobs=None)
    )


async def _tell(call: Call, request: CommonFields, chat: openai.ChatRequest, shape: Shape, clock: Clock) -> ASGIApp:
    with fields_called(NAMES):
        turn = await Turn.prepare(call, chat)
    limit = _limit(request, turn.engine)
    if limit is not None:
        turn.allow(limit)
    clock.prepared()
    return await _answer(request, Telling(call, request, turn.parts(), turn.engine.tokenizer, shape, clock))


async def _continue(call: Call, engine: Engine, request: OllamaGenerateRequest, clock: Clock) -> ASGIApp:
    """The prompt as it is, without a template; with a suffix, what stands between the two."""
    if request.system:
        message = "Invalid 'system': a prompt that is continued as it is, or filled in, has nothing before it."
        raise InvalidRequest(message, param="system", code="invalid_value")
    chat = of_generate(request)
    prompt: str | list[int] = request.prompt or ""
    ends: list[int] = []
    if request.suffix:
        prompt, ends = await prompt_with_gap(engine, prompt, request.suffix)
    _, ids = await engine.encode(prompt)
    logprobs = chat.top_logprobs or 0 if chat.logprobs else None
    with fields_called(NAMES):
        params = sampling_params(
            chat, engine, max_tokens=_limit(request, engine), logprobs=logprobs, stop_token_ids=ends
        )
    job = Job(request_id=f"gen-{call.request_id}", prompt_token_ids=ids, params=params)
    clock.prepared()
    parts = _plain(deltas(call, engine, [job]))
    return await _answer(request, Telling(call, request, parts, engine.tokenizer, generate_answer, clock))


async def _plain(source: AsyncGenerator[Delta, None]) -> AsyncGenerator[Part, None]:
    """Deltas in which nothing is looked for."""
    async with aclosing(source) as parts:
        async for delta in parts:
            yield Part(
                index=delta.index,
                content=delta.text,
                token_ids=delta.token_ids,
                logprobs=delta.logprobs,
                finish_reason=delta.finish_reason,
                opening=delta.opening,
            )


async def _answer(request: CommonFields, telling: Telling) -> ASGIApp:
    if request.stream is False:
        return json_response(await telling.whole())
    return await EventStream.open(telling.pieces(), LINES)


def _limit(request: CommonFields, engine: Engine) -> int | None:
    """How many tokens the answer may have; None: as many as fit. Raises InvalidRequest."""
    options = request.options or Options()
    if options.num_ctx is not None and options.num_ctx > engine.max_model_len:
        most = engine.max_model_len
        message = f"Invalid 'options.num_ctx': this model's context is {most} tokens here; it is set when it is loaded."
        raise InvalidRequest(message, param="options.num_ctx", code="integer_above_max_value")
    return options.num_predict if options.num_predict is not None and options.num_predict > 0 else None


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/chat",
        handler=chat,
        takes=OllamaChatRequest,
        gives=ChatAnswer,
        events=ChatAnswer,
        unsupported=CHAT_UNSUPPORTED,
        without_effect=WITHOUT_EFFECT,
        any_media=True,
    ),
    Operation(
        method="POST",
        path="/api/generate",
        handler=generate,
        takes=OllamaGenerateRequest,
        gives=GenerateAnswer,
        events=GenerateAnswer,
        unsupported=GENERATE_UNSUPPORTED,
        without_effect=WITHOUT_EFFECT,
        any_media=True,
    ),
)
