"""Bytes on a connection of the HTTP server: answered in HTTP, never with a fault of ours, and the next is served."""

from __future__ import annotations

import atexit
import json
import re
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fake_engine import completion
from qa_server import QaServer, serve_fake
from target import Target, mutated

_LIVE = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_BODY = json.dumps(completion(max_tokens=2)).encode()
_HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
_LENGTH = b"content-length: %d\r\n" % len(_BODY)
_CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
_REQUESTS = [
    b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nrange: bytes=0-5\r\n\r\n",
    _HEAD + _LENGTH + b"\r\n" + _BODY,
    _HEAD + b"transfer-encoding: chunked\r\ntrailer: x\r\n\r\n" + _CHUNKED,
    _HEAD + _LENGTH + b"expect: 100-continue\r\n\r\n" + _BODY,
    _HEAD
    + _LENGTH
    + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n\r\n"
    + _BODY,
    (_HEAD + _LENGTH + b"\r\n" + _BODY) * 3,
]
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@cache
def _server() -> QaServer:
    """One for all inputs of this process, ended with it."""
    life = ExitStack()
    atexit.register(life.close)
    folder = Path(life.enter_context(TemporaryDirectory(prefix="fuzz-")))
    return life.enter_context(serve_fake(folder, header_seconds=0.05, body_seconds=0.05))


def answered_in_http(data: bytes) -> None:
    server = _server()
    logged = server.log.stat().st_size
    received = server.talk(data, _LIVE * 3)  # a body that lacks some bytes takes them from the first
    assert not received or _STATUS.match(received), received[:200]
    assert all(int(status) < 500 for status in _STATUS.findall(received)), received
    assert b" 200 OK" in server.talk(_LIVE)
    with server.log.open() as log:
        log.seek(logged)
        assert "Traceback" not in log.read()


TARGETS = [Target("wire", mutated(_REQUESTS), answered_in_http, examples=100)]
