"""POST /tokenize and /detokenize: the model's tokenizer over HTTP, chat template included."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from octavo.api import limits
from octavo.api.desk import Call
from octavo.api.openai.prompts import render_chat, tokens_of
from octavo.api.openai.tools import shown_tools
from octavo.api.openai.types import CHAT_UNSUPPORTED, Messages, TemplateKwargs, TokenId, Tools
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest
from octavo.face import Engine

_UNSUPPORTED = {"chat_template": CHAT_UNSUPPORTED["chat_template"]}


class TokenizeRequest(Struct, kw_only=True):
    """Either `prompt` or `messages`. Special tokens are added to a prompt, but not to what a template wrote."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None  # as the chat template shows them
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None


class TokenizeResponse(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=limits.DETOKENIZED_IDS)]
    skip_special_tokens: bool | None = None  # default false: show what is there


class DetokenizeResponse(Struct, kw_only=True):
    prompt: str


async def tokenize(call: Call) -> Response:
    request = await call.read(TokenizeRequest, _UNSUPPORTED)
    engine = (await call.model(request.model)).engine
    text, special = await _text(engine, request)
    param = "messages" if request.prompt is None else "prompt"
    tokens = await tokens_of(engine, text, add_special_tokens=special, param=param)
    answer = TokenizeResponse(count=len(tokens), max_model_len=engine.max_model_len, tokens=tokens)
    if request.return_token_strs:
        answer.token_strs = [engine.tokenizer.token(token) for token in tokens]
    return json_response(answer)


async def _text(engine: Engine, request: TokenizeRequest) -> tuple[str, bool]:
    """What to encode, and whether special tokens are added. Raises InvalidRequest."""
    if request.prompt is not None and request.messages is not None:
        raise InvalidRequest("Send either 'prompt' or 'messages', not both.", param="messages", code="invalid_value")
    if request.prompt is not None:
        return request.prompt, request.add_special_tokens is not False
    if request.messages is None:
        raise InvalidRequest("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
    text = await render_chat(
        engine,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        template_kwargs=request.chat_template_kwargs,
        tools=shown_tools(request.tools),
    )
    return text, bool(request.add_special_tokens)


async def detokenize(call: Call) -> Response:
    request = await call.read(DetokenizeRequest)
    engine = (await call.model(request.model)).engine
    for index, token in enumerate(request.tokens):
        if token >= engine.tokenizer.vocab_size:
            message = f"Token id {token} is outside the vocabulary of {engine.tokenizer.vocab_size}."
            raise InvalidRequest(message, param=f"tokens[{index}]", code="integer_above_max_value")
    text = await asyncio.to_thread(engine.tokenizer.decode, request.tokens, bool(request.skip_special_tokens))
    return json_response(DetokenizeResponse(prompt=text))


OPERATIONS = (
    Operation(
        method="POST",
        path="/tokenize",
        handler=tokenize,
        takes=TokenizeRequest,
        gives=TokenizeResponse,
        unsupported=_UNSUPPORTED,
    ),
    Operation(method="POST", path="/detokenize", handler=detokenize, takes=DetokenizeRequest, gives=DetokenizeResponse),
)
