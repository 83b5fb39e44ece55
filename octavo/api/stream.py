"""Server-sent events. The first event is awaited before any header is sent, so that early errors keep their status.

A stream ends with `data: [DONE]` and a final chunk only when its events ended by themselves; what happens to a stream
that fails is `exchange`'s business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import msgspec
from starlette.types import Receive, Scope, Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream:
    """An ASGI app that sends structs as events. Make it with `open`."""

    def __init__(self, first: Any, events: AsyncGenerator[Any, None]) -> None:
        self._first = first
        self._events = events

    @classmethod
    async def open(cls, events: AsyncGenerator[Any, None]) -> Self:
        """Await the first event. Raises whatever the events raise before it."""
        return cls(await anext(events), events)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            await send(_event(self._first))
            async for event in self._events:
                await send(_event(event))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _event(value: Any) -> dict[str, Any]:
    body = b"data: %b\n\n" % msgspec.json.encode(value)
    return {"type": "http.response.body", "body": body, "more_body": True}
