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
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.api.deadline import Deadline
from octavo.api.desk import BodyStream, Call, Desk, ShuttingDown
from octavo.api.dialect import error_event, error_response
from octavo.api.limits import FORM_BYTES, too_large
from octavo.api.operation import Operation
from octavo.api.stream import STREAMED
from octavo.api.tenants import Tenant
from octavo.api.tracing import Tracing
from octavo.api.traffic import Outcome, Traffic
from octavo.errors import Forbidden, InvalidRequest, OctavoError, UnsupportedMedia

logger = logging.getLogger("octavo.api")
access_logger = logging.getLogger("octavo.access")

_QUIET_PATHS = ("/live", "/ready", "/health", "/metrics", "/v1/live")  # asked every few seconds
_READING_SECONDS = 0.05  # between an error event and the cut: with that, browsers forget what they have not read


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


class Endpoint:
    """An operation's ASGI app: reads the body within the limits, runs the handler, answers for its failures.

    What takes a JSON body is work, but for what admins ask: it is accepted only if the desk and the tenant's share have
    room for it. A form is
    not read here: its handler gets it as it arrives.
    """

    def __init__(self, operation: Operation, desk: Desk, tracing: Tracing | None = None) -> None:
        self.operation = operation
        self.desk = desk
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        state["path"] = self.operation.path
        answer = Answer(send, self.desk)
        try:
            await self._serve(scope, receive, answer)
        except OctavoError as error:
            await answer.fail(error, scope, receive)
        except ClientLeft:
            state["outcome"] = "client left"
        except asyncio.CancelledError:  # the server's own: no time left to finish
            await answer.fail(ShuttingDown("The server is shutting down."), scope, receive)
            raise
        except Exception:  # the edge: one request's fault ends here
            logger.exception("request %s failed", state["request_id"], extra={"request_id": state["request_id"]})
            message = f"Internal error; the server's log has the details under request {state['request_id']}."
            await answer.fail(OctavoError(message), scope, receive)

    async def _serve(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        tenant = scope["state"].get("tenant", self.desk.anyone)
        if self.operation.for_admins and tenant.role != "admin":
            raise Forbidden("This key may not do that: it is not an administrator's.")
        call = self._call(tenant, scope)
        if self.operation.takes is None:
            await self._answer(call, scope, receive, answer)
            return
        if self.operation.media != "application/json":
            await self._take_in(call, scope, receive, answer)
            return
        if self.operation.for_admins:  # about models, not for one
            headers = Headers(scope=scope)
            self._check_media(headers)
            call.body = await _read(headers, receive, self.desk.limits.small_body_bytes, _ignore)
            await self._answer(call, scope, receive, answer)
            return
        with self.tracing.request(self.operation.path, scope, call) if self.tracing else nullcontext():
            try:
                await self._work(call, scope, receive, answer)
            finally:
                call.tally.book(self.desk.traffic, tenant)

    async def _work(self, call: Call, scope: Scope, receive: Receive, answer: Answer) -> None:
        self.desk.check()  # before the body is read: a refusal costs next to nothing
        call.tenant.check()
        with call.tenant.request(), self.desk.bodies.receive() as grow:
            headers = Headers(scope=scope)
            self._check_media(headers)
            call.body = await _read(headers, receive, self.desk.limits.body_bytes, grow)
            with self.desk.accept(call.background):  # only now: who sends slowly takes no place from others
                await self._answer(call, scope, receive, answer)

    def _check_media(self, headers: Headers) -> None:
        kind, wanted = headers.get("content-type", "").partition(";")[0].strip().lower(), self.operation.media
        if kind != wanted and not self.operation.any_media:
            what = "JSON" if wanted == "application/json" else "a form"
            raise UnsupportedMedia(f"The body must be {what}; send the header `Content-Type: {wanted}`.")
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise UnsupportedMedia("Compressed request bodies are not supported; send the body as it is.")

    def _call(self, tenant: Tenant, scope: Scope) -> Call:
        limits, background = self.desk.limits, scope["state"].get("background", False)
        deadline = Deadline(None if background else limits.request_seconds, limits.queue_seconds)
        return Call(
            desk=self.desk,
            tenant=tenant,
            deadline=Deadline() if self.operation.for_admins else deadline,
            request_id=scope["state"]["request_id"],
            body=b"",
            path_params=scope.get("path_params", {}),
            leases=AsyncExitStack(),
            query_string=scope.get("query_string", b""),
            background=background,
        )

    async def _answer(self, call: Call, scope: Scope, receive: Receive, answer: Answer) -> None:
        async with cancelled_by_disconnect(receive, answer), call.deadline, call.leases:
            response = await self.operation.handler(call)
            await response(scope, receive, answer.send)

    async def _take_in(self, call: Call, scope: Scope, receive: Receive, answer: Answer) -> None:
        """A form: its handler reads it, and so learns by itself that the client is gone."""
        if self.desk.draining:
            raise ShuttingDown("The server is shutting down.")
        call.tenant.check()
        headers = Headers(scope=scope)
        self._check_media(headers)
        most = self.desk.limits.file_bytes + FORM_BYTES
        _check_length(headers, most)
        call.stream = BodyStream(headers["content-type"], _parts(receive, most))
        with call.tenant.request():
            async with call.deadline, call.leases:
                response = await self.operation.handler(call)
                await response(scope, receive, answer.send)


async def _read(headers: Headers, receive: Receive, most: int, grow: Callable[[int], None]) -> bytes:
    """The body, of `most` bytes at most. `grow` is told its size as it arrives, and may raise."""
    _check_length(headers, most)
    parts: list[bytes] = []
    size = 0
    async for part in _parts(receive, most):
        size += len(part)
        grow(size)
        parts.append(part)
    return b"".join(parts)


def _ignore(_: int) -> None:
    """Bodies that are small take no share."""


async def _parts(receive: Receive, most: int) -> AsyncIterator[bytes]:
    """A body of `most` bytes at most, as it arrives."""
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_large(most)
        yield part
        more = message.get("more_body", False)


def _check_length(headers: Headers, most: int) -> None:
    declared = headers.get("content-length", "0")
    if not declared.isdecimal():
        raise InvalidRequest("Content-Length must be a number of bytes.")
    if int(declared[:18]) > most:
        raise too_large(most)


class Answer:
    """The sending side of an exchange: knows how much of the answer has been sent."""

    def __init__(self, send: Send, desk: Desk) -> None:
        self._send = send
        self._desk = desk
        self.started = False
        self.complete = False
        self._of_events = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._of_events = Headers(scope=message).get("content-type", "").startswith(STREAMED)
            if self._desk.draining:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def fail(self, error: OctavoError, scope: Scope, receive: Receive) -> None:
        """Tell the client; a started answer is left without its final chunk, so the server cuts the connection."""
        scope["state"]["outcome"] = type(error).__name__
        if not self.started:
            await error_response(error, scope)(scope, receive, self.send)
        elif self._of_events and not self.complete:
            await self.send({"type": "http.response.body", "body": error_event(error, scope), "more_body": True})
            await asyncio.sleep(_READING_SECONDS)


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
    """The outermost layer: gives each request its id, sets `x-request-id`, counts it, writes one access-log line.

    The line holds method, path, status, milliseconds, id and whose key it was; never a query string, header or body.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self.app = app
        self.traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began = time.monotonic()
        status = 0
        complete = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode())]
                if "trace" in state:
                    own.append((b"traceresponse", state["trace"].encode()))
                message["headers"] = [*message.get("headers", ()), *own]
            else:
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            outcome: Outcome = "left" if state.get("outcome") == "client left" else "complete" if complete else "failed"
            self.traffic.count(state.get("path", "none"), status, outcome)
            _log_access(scope, status, time.monotonic() - began)


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    state = scope["state"]
    path = quote(scope["path"], safe="/:@!$&'()*+,;=-._~")[:200]
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status or None,
        "milliseconds": round(seconds * 1000, 3),
        "request_id": state["request_id"],
        "tenant": state["tenant"].name if "tenant" in state else None,
        "outcome": state.get("outcome"),
        "trace_id": state.get("trace_id"),
    }
    tenant = f" {state['tenant'].name}" if "tenant" in state else ""
    outcome = f" ({state['outcome']})" if "outcome" in state else ""
    access_logger.log(
        logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
        "%s %s %s %.0fms %s%s%s",
        scope["method"],
        path,
        status or "-",
        seconds * 1000,
        state["request_id"],
        tenant,
        outcome,
        extra={name: value for name, value in fields.items() if value is not None},
    )
