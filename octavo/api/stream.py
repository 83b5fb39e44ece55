"""Answers that come piece by piece: structs as server-sent events or as lines of JSON.

The first struct is awaited before any header is sent, so that early errors keep their status. A stream has its end (for
OpenAI, `data: [DONE]`) and a final chunk only when its structs ended by themselves; what happens to a stream that fails
is `exchange`'s business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import msgspec
from starlette.types import Receive, Scope, Send

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


@dataclass(frozen=True, slots=True)
class Framing:
    """How structs follow each other on the wire."""

    media_type: str
    frame: Callable[[Any], bytes]
    end: bytes = b""


def _event(value: Any) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)


def _named_event(value: Any) -> bytes:
    """An event under the name that its struct is tagged with; errors in OpenAI's shape have none."""
    name: str | None = value.__struct_config__.tag
    return _event(value) if name is None else b"event: %b\n%b" % (name.encode(), _event(value))


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


EVENTS = Framing("text/event-stream; charset=utf-8", _event, b"data: [DONE]\n\n")
NAMED_EVENTS = Framing("text/event-stream; charset=utf-8", _named_event)
LINES = Framing("application/x-ndjson", _line)
STREAMED = tuple({framing.media_type.partition(";")[0] for framing in (EVENTS, NAMED_EVENTS, LINES)})


class EventStream:
    """An ASGI app that sends structs as they come. Make it with `open`."""

    def __init__(self, first: Any, events: AsyncGenerator[Any, None], framing: Framing) -> None:
        self._first = first
        self._events = events
        self._framing = framing

    @classmethod
    async def open(cls, events: AsyncGenerator[Any, None], framing: Framing = EVENTS) -> Self:
        """Await the first event. Raises whatever the events raise before it."""
        return cls(await anext(events), events, framing)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._framing.media_type.encode()), *_HEADERS]
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(self._part(self._first))
            async for event in self._events:
                await send(self._part(event))
        await send({"type": "http.response.body", "body": self._framing.end, "more_body": False})

    def _part(self, value: Any) -> dict[str, Any]:
        return {"type": "http.response.body", "body": self._framing.frame(value), "more_body": True}
