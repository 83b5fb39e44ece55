"""Frames between processes: whole or refused, never another type."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from octavo import frames
from octavo.frames import FrameSocket, NoMessage


class Note(Struct, frozen=True):
    text: str
    place: Path
    numbers: list[int]


def pair(receives) -> tuple[socket.socket, FrameSocket]:
    ours, theirs = socket.socketpair()
    return ours, FrameSocket(theirs, receives)


@given(st.lists(st.builds(Note, st.text(), st.just(Path("a/b")), st.lists(st.integers(0, 2**63 - 1))), max_size=5))
def test_messages_arrive_in_order_and_unchanged(notes):
    raw, link = pair(Note)
    with raw:
        for note in notes:
            raw.sendall(frames.encode(note))
        assert [link.receive() for _ in notes] == notes
    link.close()


@pytest.mark.parametrize("cut", [0, 3, 4, 10])
def test_a_connection_that_ends_early_is_the_end(cut):
    raw, link = pair(Note)
    with raw:
        raw.sendall(frames.encode(Note("x" * 50, Path("p"), []))[:cut])
    with pytest.raises(EOFError):
        link.receive()
    link.close()


@pytest.mark.parametrize(
    "body",
    [msgspec.msgpack.encode({"text": 1}), b"\xc1", b"", b"\x81\xa4text\xa1\xff", b"\x81\xa1x" + b"\x91" * 100_000],
    ids=["another type", "no msgpack", "empty", "no UTF-8", "too deep"],
)
def test_what_is_no_message_is_refused(body):
    raw, link = pair(Note)
    with raw:
        raw.sendall(len(body).to_bytes(frames.HEADER, "little") + body)
        with pytest.raises(NoMessage):
            link.receive()
    link.close()


def test_an_absurd_length_is_refused_before_anything_is_allocated():
    raw, link = pair(Note)
    with raw:
        raw.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(ConnectionError, match="at most"):
            link.receive()
    link.close()


def test_only_data_travels():
    with pytest.raises(NotImplementedError):
        frames.encode(object())
