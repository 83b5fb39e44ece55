"""What the API process and the core process say to each other, and the asyncio side of the line.

Requests and aborts one way, step outputs the other: msgpack frames over a UNIX socket pair.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

from msgspec import Struct

from octavo import frames
from octavo.engine.core import StepOutputs
from octavo.processes import Failed, Ready, Setup
from octavo.request import Request
from octavo.snapshot import Blocks

UNANNOUNCED_WORK = 64.0  # a step of more is announced by `Began`


class Add(Struct, frozen=True, tag=True):
    request: Request


class Abort(Struct, frozen=True, tag=True):
    request_id: str
    index: int | None = None


class Look(Struct, frozen=True, tag=True):
    """Somebody watches: answered by `Seen` between two steps."""


class Sleep(Struct, frozen=True, tag=True):
    """Answered by `Rested`. No request is aboard."""

    level: int


class Wake(Struct, frozen=True, tag=True):
    """As above."""


class Rested(Struct, frozen=True, tag=True):
    """It did as it was told, or says why not."""

    failed: Failed | None = None


class Began(Struct, frozen=True, tag=True):
    """A large step begins: it may take its time."""

    work: float


class Stepped(Struct, frozen=True, tag=True):
    step: StepOutputs


class Seen(Struct, frozen=True, tag=True):
    blocks: Blocks


ToCore = Setup | Add | Abort | Look | Sleep | Wake
FromCore = Ready | Failed | Began | Stepped | Seen | Rested


class Channel:
    """The API process's end. `send` never blocks; `receive` raises EOFError when the core is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: frames.Decoder[FromCore] = frames.Decoder(FromCore)

    @classmethod
    async def open(cls, connection: socket.socket) -> Channel:
        return cls(*await asyncio.open_unix_connection(sock=connection))

    def send(self, message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.encode(message))

    async def receive(self) -> FromCore:
        try:
            header = await self._reader.readexactly(frames.HEADER)
            return self._decoder.decode(await self._reader.readexactly(frames.body_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError(f"the core is gone: {error}") from None

    def close(self) -> None:
        """At once: a core that does not read must not keep what was meant for it."""
        self._writer.transport.abort()

    async def wait_closed(self) -> None:
        with suppress(ConnectionError):
            await self._writer.wait_closed()
