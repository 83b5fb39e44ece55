"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp

from octavo.api import conversation
from octavo.api.anthropic.answer import Answer
from octavo.api.anthropic.request import NAMES, chat_request
from octavo.api.anthropic.types import (
    UNSUPPORTED,
    WITHOUT_EFFECT,
    BlockDelta,
    BlockStart,
    BlockStop,
    CountTokensRequest,
    Message,
    MessageDelta,
    MessagesRequest,
    MessageStart,
    MessageStop,
    Ping,
    TokenCount,
)
from octavo.api.conversation import Turn
from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.stream import NAMED_EVENTS, EventStream
from octavo.api.wire import fields_called, json_response


async def messages(call: Call) -> ASGIApp:
    """A message in answer to a conversation, as Anthropic's."""
    request = await call.read(MessagesRequest, UNSUPPORTED)
    chat = chat_request(request)
    with fields_called(NAMES):
        turn = await Turn.prepare(call, chat)
        turn.allow(request.max_tokens)
        answer = Answer(turn, request.max_tokens)
        if request.stream:
            return await EventStream.open(answer.events(), NAMED_EVENTS)
        return json_response(await answer.whole())


async def count_tokens(call: Call) -> Response:
    """How many tokens a conversation is, as Anthropic's."""
    request = await call.read(CountTokensRequest, UNSUPPORTED)
    chat = chat_request(request)
    with fields_called(NAMES):
        return json_response(TokenCount(input_tokens=await conversation.count_tokens(call, chat)))


_EVENTS: Any = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop

OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/messages",
        handler=messages,
        takes=MessagesRequest,
        gives=Message,
        events=_EVENTS,
        unsupported=UNSUPPORTED,
        without_effect=WITHOUT_EFFECT,
    ),
    Operation(
        method="POST",
        path="/v1/messages/count_tokens",
        handler=count_tokens,
        takes=CountTokensRequest,
        gives=TokenCount,
        unsupported=UNSUPPORTED,
        without_effect=WITHOUT_EFFECT,
    ),
)
