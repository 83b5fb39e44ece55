"""One HTTP request and its answer: id, access log, disconnects, and the edge where a request's fault is contained.

Whatever a handler raises ends in exactly one outcome for the client: an error body with its status while nothing has
been sent, else an `error` event and a connection cut without a final chunk, so that no client takes it for the end.
A client that leaves cancels its handler, which closes the engine's generator, which aborts the request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.api.desk import Call, Desk, ShuttingDown
from octavo.api.limits import too_large
from octavo.api.wire import error_body, error_response
from octavo.errors import InvalidRequest, OctavoError, UnsupportedMedia

logger = logging.getLogger("octavo.api")
access_logger = logging.getLogger("octavo.access")

_QUIET_PATHS = ("/live", "/ready", "/health", "/metrics")  # asked every few seconds


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


Handler = Callable[[Call], Awaitable[ASGIApp]]


class Endpoint:
    """A route's ASGI app: reads the body within the limits, runs the handler, answers for its failures."""

    def __init__(self, handler: Handler, desk: Desk, *, takes_body: bool = False) -> None:
        self.handler = handler
        self.desk = desk
        self.takes_body = takes_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(send)
        request_id = scope["state"]["request_id"]
        try:
            body = await self._read(scope, receive) if self.takes_body else b""
            async with cancelled_by_disconnect(receive, answer):
                call = Call(self.desk, request_id, body, scope.get("path_params", {}))
                response = await self.handler(call)
                await response(scope, receive, answer.send)
        except OctavoError as error:
            await answer.fail(error, scope, receive)
        except ClientLeft:
            scope["state"]["outcome"] = "client left"
        except asyncio.CancelledError:  # the server's own: no time left to finish
            await answer.fail(ShuttingDown("The server is shutting down."), scope, receive)
            raise
        except Exception:  # the edge: one request's fault ends here
            logger.exception("request %s failed", request_id)
            message = f"Internal error; the server's log has the details under request {request_id}."
            await answer.fail(OctavoError(message), scope, receive)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.desk.limits.body_bytes
        headers = Headers(scope=scope)
        _check_media(headers)
        declared = headers.get("content-length", "0")
        if not declared.isdecimal():
            raise InvalidRequest("Content-Length must be a number of bytes.")
        if len(declared) > 18 or int(declared) > limit:
            raise too_large(limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _check_media(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMedia("The body must be JSON; send the header `Content-Type: application/json`.")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMedia("Compressed request bodies are not supported; send the body as it is.")


class Answer:
    """The sending side of an exchange: knows how much of the answer has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def fail(self, error: OctavoError, scope: Scope, receive: Receive) -> None:
        """Tell the client; a started answer is left without its final chunk, so the server cuts the connection."""
        scope["state"]["outcome"] = type(error).__name__
        if not self.started:
            await error_response(error)(scope, receive, self.send)
        elif not self.complete:
            await self.send(
                {"type": "http.response.body", "body": b"data: %b\n\n" % error_body(error), "more_body": True}
            )


@asynccontextmanager
async def cancelled_by_disconnect(receive: Receive, answer: Answer) -> AsyncIterator[None]:
    """Cancel the body of the `async with` when the client goes away. Raises ClientLeft then."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not answer.complete:  # a server reports a finished exchange as a disconnect too
            left = True
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()


class RequestLog:
    """The outermost layer: gives each request its id, sets `x-request-id`, writes one access-log line.

    The line holds method, path, status, milliseconds and id; never a query string, header or body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            milliseconds = (time.monotonic() - began) * 1000
            path = quote(scope["path"], safe="/:@!$&'()*+,;=-._~")[:200]
            outcome = f" ({state['outcome']})" if "outcome" in state else ""
            access_logger.log(
                logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
                "%s %s %s %.0fms %s%s",
                scope["method"],
                path,
                status or "-",
                milliseconds,
                request_id,
                outcome,
            )
