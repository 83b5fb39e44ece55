"""POST /v1/responses: OpenAI's Responses API, without anything that is kept between requests."""

from __future__ import annotations

from starlette.types import ASGIApp

from octavo.api.conversation import Turn
from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.responses.answer import Answer
from octavo.api.responses.request import NAMES, chat_request
from octavo.api.responses.types import UNSUPPORTED, WITHOUT_EFFECT, Response, ResponseEvent, ResponsesRequest
from octavo.api.stream import NAMED_EVENTS, EventStream
from octavo.api.wire import fields_called, json_response


async def create(call: Call) -> ASGIApp:
    """A response to a conversation's items; nothing is kept."""
    request = await call.read(ResponsesRequest, UNSUPPORTED)
    chat = chat_request(request)
    with fields_called(NAMES):
        turn = await Turn.prepare(call, chat)
        answer = Answer(turn, request)
        if request.stream:
            return await EventStream.open(answer.events(), NAMED_EVENTS)
        return json_response(await answer.whole())


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/responses",
        handler=create,
        takes=ResponsesRequest,
        gives=Response,
        events=ResponseEvent,
        unsupported=UNSUPPORTED,
        without_effect=WITHOUT_EFFECT,
        in_batches=True,
    ),
)
