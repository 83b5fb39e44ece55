"""One client connection: uvicorn's HTTP/1.1 protocol with the deadlines and limits that uvicorn lacks.

A request's line and headers are bounded in size, number and time, its body in time (its size is `exchange`'s business),
and what is refused here is answered in the same JSON as everywhere. A client that does not read its answer is cut off.
An offer to upgrade to HTTP/2, which Java's client makes with every request, is declined by answering in HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from http import HTTPStatus
from typing import Any, Literal

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo.api.limits import Limits
from octavo.api.traffic import Traffic
from octavo.api.wire import openai_error
from octavo.errors import InvalidRequest, Overloaded

logger = logging.getLogger("octavo.api")

_FRAMING = (b"content-length", b"transfer-encoding")
_SEND_BUFFER = 2**18  # bytes the kernel may keep for a client that does not read; by itself it would go up to megabytes
_DEAD_PEER_SECONDS = 30  # how long a peer that answers nothing, not even to the kernel, counts as there


class Connection(HttpToolsProtocol):
    def __init__(
        self, *args: Any, limits: Limits, traffic: Traffic, peers: set[Connection], most: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._peers = peers  # the connections of this port, of which there may be so many:
        self._most = most
        self._traffic = traffic
        self._deadline: asyncio.TimerHandle | None = None
        self._phase: Literal["idle", "head", "body"] = "idle"  # of what the client is sending
        self._head_bytes = 0  # received since the chunk in which the head began
        self._parsed_bytes = 0  # of complete headers
        self._head_began_in_this_chunk = False
        self._discarded = 0
        self._body_bytes = 0  # of the request that is arriving,
        self._body_began = 0.0  # since this moment of the loop's clock
        self._replaying = False
        self._refusal: tuple[int, str] | None = None
        self._open: list[RequestResponseCycle] = []  # without a whole answer; `cycle` is the newest of them
        self._unread: asyncio.TimerHandle | None = None  # what we sent, since the buffer was full

    # ------------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._peers.add(self)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            _notice_dead_peers(sock)
        self._expect_by(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        self._expect_nothing()
        self._stop_waiting_for_reader()
        self.pipeline.clear()  # nobody is there to read the answers
        for cycle in self._open:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting_for_reader()
        self._unread = self.loop.call_later(self._limits.unread_seconds, self._cut_off)

    def resume_writing(self) -> None:
        self._stop_waiting_for_reader()
        super().resume_writing()

    def _stop_waiting_for_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _cut_off(self) -> None:
        logger.info("a client that read nothing for %g s was cut off", self._limits.unread_seconds)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.parser is None or self.transport.is_closing():
            return
        self._head_began_in_this_chunk = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(405, "Unknown HTTP method.")
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "Invalid HTTP request.")))
        else:
            self._count_head(len(data))

    def _count_head(self, size: int) -> None:
        """Headers that are still incomplete must not grow without end."""
        if self._phase == "head" and not self._head_began_in_this_chunk:
            self._head_bytes += size
            if self._head_bytes > self._limits.header_bytes:
                self._refuse(431, "The request's headers are too large.")
        elif self._phase == "idle" and not self._answering and self._deadline is None:
            self._expect_by(self._limits.header_seconds)  # line breaks between requests keep no connection open

    # ------------------------------------------------------------------ parser callbacks

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        super().on_message_begin()
        self._phase = "head"
        self._head_began_in_this_chunk = True
        self._head_bytes = self._parsed_bytes = 0
        if self._deadline is None:
            self._expect_by(self._limits.header_seconds)

    def on_url(self, url: bytes) -> None:
        if self._replaying:
            return
        super().on_url(url)
        if len(self.url) > self._limits.url_bytes:
            raise self._stop(414, "The URL is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying:
            return
        super().on_header(name, value)
        self._parsed_bytes += len(name) + len(value) + 4
        if len(self.headers) > self._limits.header_count or self._parsed_bytes > self._limits.header_bytes:
            raise self._stop(431, "The request has too many or too large headers.")

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        if self.parser.get_method() == b"CONNECT":
            raise self._stop(405, "This is not a proxy.")
        if self.parser.should_upgrade() and self._get_upgrade() != b"h2c":
            raise self._stop(400, "This server has nothing to upgrade to.")
        if len(self._peers) > self._most:
            raise self._stop(503, "The server has too many connections; try again later.")
        if len(self.pipeline) >= self._limits.pipelined_requests:
            # Reading has been paused, but one chunk may hold thousands, each of which becomes kilobytes.
            raise self._stop(503, "Too many requests wait on this connection.")
        self._phase = "body"
        self._discarded = self._body_bytes = 0
        self._body_began = self.loop.time()
        self._expect_by(self._limits.body_seconds)
        super().on_headers_complete()
        self._open = [cycle for cycle in self._open if not cycle.response_complete]
        self._open.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)
        if self.cycle.response_complete:  # already refused: let the client finish, but not for ever
            self._discarded += len(body)
            if self._discarded > self._limits.body_bytes:
                self.transport.close()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser believes so; the body is still to come, through _decline_upgrade
        self._phase = "idle"
        self._expect_nothing()
        super().on_message_complete()

    # ------------------------------------------------------------------ deadlines and refusals

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_by(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._too_late, seconds)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self, seconds: float) -> None:
        self._deadline = None
        if self.flow.read_paused or (self._phase == "head" and self._answering):
            self._expect_by(seconds)  # it is we who do not read, or an earlier request is still being answered
        elif self._phase == "body" and (left := self._body_seconds_left()) > 0:
            self._expect_by(left)
        else:
            self._refuse(408, "The request did not arrive in time.")

    def _body_seconds_left(self) -> float:
        """A large body may take longer, as long as it arrives at a fair speed."""
        allowed = self._limits.body_seconds + self._body_bytes / self._limits.body_bytes_per_second
        return self._body_began + allowed - self.loop.time()

    def _stop(self, status: int, message: str) -> InvalidRequest:
        """Ends the parsing when raised from a callback; `data_received` then refuses."""
        self._refusal = status, message
        return InvalidRequest(message)

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close. A connection with an answer under way is closed only: two answers must not mix."""
        self._expect_nothing()
        logger.debug("connection refused: %d %s", status, message)
        receiving = self.cycle if self._phase == "body" else None
        earlier = bool(self.pipeline) or (receiving is None and self._answering)
        if not earlier and (receiving is None or not receiving.response_started):
            self.transport.write(_response(status, message))
            if receiving is None:  # the app never sees it
                self._traffic.count("none", status, "complete")
        if receiving is not None and not receiving.response_complete:
            receiving.disconnected = True  # its handler waits for the rest of the body
            receiving.message_event.set()
        self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on as if no upgrade had been offered: a new parser, which is told how the body is framed."""
        framing = b"".join(b"%b: %b\r\n" % (name, value) for name, value in self.headers if name in _FRAMING)
        self.parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._replaying = False
        if rest:
            self.data_received(rest)


def _response(status: int, message: str) -> bytes:
    error = Overloaded(message) if status == Overloaded.status else InvalidRequest(message)
    body = msgspec.json.encode(openai_error(error))  # whose path is not known yet
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {secrets.token_hex(16)}\r\nconnection: close\r\n"
    )
    if error.retry_after is not None:
        head += f"retry-after: {error.retry_after}\r\n"
    return head.encode() + b"\r\n" + body


def _notice_dead_peers(sock: Any) -> None:
    """Have the kernel probe silent peers, so that a vanished client's requests end."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _DEAD_PEER_SECONDS // 3),
        ("TCP_KEEPINTVL", _DEAD_PEER_SECONDS // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", _DEAD_PEER_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
