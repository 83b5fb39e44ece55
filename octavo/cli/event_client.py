"""A small HTTP/1.1 client for load tests: POSTs JSON, yields server-sent events as they arrive.

It spends little time of its own per event, so that what it measures is the server. Knows nothing of what events say.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

_MOST_REFUSAL = 4000  # bytes
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\s*(?:;.*)?\r?\n")


class ServerError(Exception):
    """The server answered something else than a complete stream of events; `status` and `body`, if it answered."""

    def __init__(self, message: str | None, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.body = status, body


async def post_events(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The data of each event up to `[DONE]`. Raises ServerError, OSError or EOFError (IncompleteReadError)."""
    parts = urlsplit(url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
    try:
        writer.write(_request(parts.path, parts.netloc, json.dumps(body).encode(), headers))
        status, chunked = await _head(reader)
        if status != 200 or not chunked:
            answer = await reader.read(_MOST_REFUSAL)
            raise ServerError(f"HTTP {status}: {answer.decode(errors='replace')}", status, answer)
        pending = b""
        async for chunk in _chunks(reader):
            *events, pending = (pending + chunk).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: "):  # a sign of life
                    continue
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                yield data
        raise ServerError("the stream ended without [DONE]")
    finally:
        writer.close()


def _request(path: str, host: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether a chunked body follows."""
    first = await _line(reader)
    status = _STATUS.match(first)
    if status is None:
        raise ServerError(f"not an HTTP answer: {first[:100]!r}")
    chunked = False
    while (line := await _line(reader)).strip():
        name, _, value = line.lower().partition(b":")
        chunked |= name == b"transfer-encoding" and b"chunked" in value
    return int(status[1]), chunked


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := _chunk_size(await _line(reader)):
        yield (await reader.readexactly(size + 2))[:-2]


def _chunk_size(line: bytes) -> int:
    size = _CHUNK_SIZE.match(line)
    if size is None:
        raise ServerError(f"not the size of a chunk: {line[:100]!r}")
    return int(size[1], 16)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise ServerError("a line of the answer's head never ended") from None
