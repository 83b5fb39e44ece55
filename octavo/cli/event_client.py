"""A small HTTP/1.1 client for load tests: POSTs JSON, yields server-sent events as they arrive.

It spends little time of its own per event, so that what it measures is the server. Knows nothing of what events say.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit


class ServerError(Exception):
    """The server answered something else than a complete stream of events."""


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
            answer = (await reader.read(2000)).decode(errors="replace")
            raise ServerError(f"HTTP {status}: {answer}")
        pending = b""
        async for chunk in _chunks(reader):
            *events, pending = (pending + chunk).split(b"\n\n")
            for event in events:
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
    status = int((await reader.readline()).split()[1])
    chunked = False
    while (line := await reader.readline()).strip():
        name, _, value = line.lower().partition(b":")
        chunked |= name == b"transfer-encoding" and b"chunked" in value
    return status, chunked


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"x", 16):
        yield (await reader.readexactly(size + 2))[:-2]
