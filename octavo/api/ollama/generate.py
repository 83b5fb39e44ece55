"""POST /api/chat and /api/generate: Ollama's chat and completion. Without messages or a prompt they load the model."""

from __future__ import annotations

from starlette.types import ASGIApp

from octavo.api.conversation import Turn
from octavo.api.desk import Call
from octavo.api.ollama.answer import Clock, Said, Shape, Telling, chat_answer, generate_answer, rfc3339
from octavo.api.ollama.request import model_name, of_chat, of_generate
from octavo.api.ollama.types import (
    CHAT_UNSUPPORTED,
    GENERATE_UNSUPPORTED,
    ChatAnswer,
    ChatRequest,
    CommonFields,
    GenerateAnswer,
    GenerateRequest,
)
from octavo.api.openai import types as openai
from octavo.api.operation import Operation
from octavo.api.stream import LINES, EventStream
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest


async def chat(call: Call) -> ASGIApp:
    """An assistant's message in answer to a conversation, as Ollama's."""
    request = await call.read(ChatRequest, CHAT_UNSUPPORTED)
    if not request.messages:
        return await _load(call, request, chat_answer)
    return await _tell(call, request, of_chat(request), chat_answer)


async def generate(call: Call) -> ASGIApp:
    """A text in answer to a prompt, as Ollama's."""
    request = await call.read(GenerateRequest, GENERATE_UNSUPPORTED)
    if not request.prompt:
        return await _load(call, request, generate_answer)
    return await _tell(call, request, of_generate(request), generate_answer)


async def _load(call: Call, request: CommonFields, shape: Shape) -> ASGIApp:
    clock = Clock()
    await call.model(model_name(request.model))
    clock.prepared()
    common = {"model": request.model, "created_at": rfc3339(), "done": True, "done_reason": "load"}
    return json_response(shape(Said(), **common))


async def _tell(call: Call, request: CommonFields, chat: openai.ChatRequest, shape: Shape) -> ASGIApp:
    clock = Clock()
    turn = await Turn.prepare(call, chat)
    _fit(request, turn)
    clock.prepared()
    telling = Telling(turn, request.model, shape, clock)
    if request.stream is False:
        return json_response(await telling.whole())
    return await EventStream.open(telling.pieces(), LINES)


def _fit(request: CommonFields, turn: Turn) -> None:
    """Limits that depend on the model. Raises InvalidRequest."""
    options = request.options
    if options is None:
        return
    if options.num_ctx is not None and options.num_ctx > turn.engine.max_model_len:
        most = turn.engine.max_model_len
        message = f"Invalid 'options.num_ctx': this model's context is {most} tokens here; it is set when it is loaded."
        raise InvalidRequest(message, param="options.num_ctx", code="integer_above_max_value")
    if options.num_predict is not None and options.num_predict > 0:
        turn.allow(options.num_predict)


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/chat",
        handler=chat,
        takes=ChatRequest,
        gives=ChatAnswer,
        events=ChatAnswer,
        unsupported=CHAT_UNSUPPORTED,
    ),
    Operation(
        method="POST",
        path="/api/generate",
        handler=generate,
        takes=GenerateRequest,
        gives=GenerateAnswer,
        events=GenerateAnswer,
        unsupported=GENERATE_UNSUPPORTED,
    ),
)
