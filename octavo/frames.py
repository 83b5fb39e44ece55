"""msgpack frames over a UNIX socket: how octavo's processes talk. Four bytes of length, then the message.

Only data travels: a frame decodes into the one type its reader expects or is refused. `FrameSocket` is the blocking
side; `octavo.engine.channel` reads the same frames with asyncio.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

Message = TypeVar("Message")

HEADER = 4
MAX_FRAME = 2**30  # a frame this large is a bug or an attack, not a message


def _text_of_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel")


def _path_of_text(wanted: type, value: Any) -> Any:
    if wanted is Path:
        return Path(value)
    raise NotImplementedError(f"{wanted.__name__} does not travel")


_encoder = msgspec.msgpack.Encoder(enc_hook=_text_of_path)


class NoMessage(ConnectionError):
    """The other side sent what is no message of the type expected: a bug or an attack."""


class Decoder(Generic[Message]):
    """Decodes frames of one type (or union); anything else is NoMessage. Paths travel as text."""

    def __init__(self, receives: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(receives, dec_hook=_path_of_text)

    def decode(self, body: bytes) -> Message:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise NoMessage(f"the other process sent what is no message: {error}") from None


def encode(message: Any) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER, "little") + body


def body_length(header: bytes) -> int:
    length = int.from_bytes(header, "little")
    if length > MAX_FRAME:
        raise NoMessage(f"a frame of {length} bytes was announced; at most {MAX_FRAME} are allowed")
    return length


class FrameSocket(Generic[Message]):
    """Sends any message; receives messages of one type. EOFError when the other side is gone, or NoMessage."""

    def __init__(self, connection: socket.socket, receives: Any) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")
        self._decoder: Decoder[Message] = Decoder(receives)

    def send(self, message: Any) -> None:
        self._socket.sendall(encode(message))

    def receive(self) -> Message:
        return self._decoder.decode(self._read(body_length(self._read(HEADER))))

    def close(self) -> None:
        """Also wakes a thread that waits in `receive`."""
        with suppress(OSError):  # the other side may be faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()

    def _read(self, count: int) -> bytes:
        data = self._reader.read(count)
        if len(data) < count:
            raise EOFError("the other process closed the connection")
        return data
