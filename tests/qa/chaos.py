"""A TCP proxy with bad weather: delays, trickles, stalls and cuts between a client and a server."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to the bytes of one direction. None: never."""

    delay: float = 0.0  # seconds before each piece
    piece: int = 65536  # bytes passed on at once; 1 is a trickle
    stall_after: int | None = None  # bytes, then nothing more is read or passed on, and the connection stays
    cut_after: int | None = None  # bytes, then both sides are reset


FAIR = Weather()


@dataclass(slots=True)
class Proxy:
    """Carries connections to `target`, a port of this machine."""

    target: int
    up: Weather = FAIR  # from client to server
    down: Weather = FAIR
    port: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def run(self, ready: threading.Event, stopped: asyncio.Event) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, limit=2**16)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stopped.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        try:
            with suppress(OSError, asyncio.CancelledError):  # cancelled when the weather ends
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
                ends.add(far_writer)
                self._open |= ends
                await asyncio.gather(
                    self._pass(reader, far_writer, self.up, ends), self._pass(far_reader, writer, self.down, ends)
                )
        finally:
            self._open -= ends
            for end in ends:
                end.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        weather: Weather,
        ends: set[asyncio.StreamWriter],
    ) -> None:
        passed = 0
        while data := await reader.read(weather.piece):
            if weather.delay:
                await asyncio.sleep(weather.delay)
            passed += len(data)
            if weather.stall_after is not None and passed > weather.stall_after:
                await asyncio.Event().wait()
            if weather.cut_after is not None and passed > weather.cut_after:
                for end in ends:
                    _reset(end)
                return
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer gets a reset and not an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def weather(target: int, *, up: Weather = FAIR, down: Weather = FAIR) -> Iterator[int]:
    """A proxy in a thread of its own; its port."""
    proxy = Proxy(target, up, down)
    ready = threading.Event()
    stopped = asyncio.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(proxy.run(ready, stopped))
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0))  # in which transports close
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield proxy.port
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
