"""What arrives over sockets: request bodies, server-sent events, frames between processes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from fake_engine import Client, FakeEngine, chat, completion
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from target import INTERESTING, Target, mutated

from octavo import frames
from octavo.api.generate import GenerateRequest
from octavo.api.openai.types import ChatRequest, CompletionRequest
from octavo.api.tokens import DetokenizeRequest, TokenizeRequest
from octavo.cli.event_client import ServerError, post_events
from octavo.engine.channel import Abort, Add, FromCore, ToCore
from octavo.request import Request, SamplingParams

# ---------------------------------------------------------------------- bodies: "PATH\nBODY"

BODIES: dict[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, chat(max_tokens=3)),
    "/v1/completions": (CompletionRequest, completion(max_tokens=3)),
    "/generate": (GenerateRequest, {"prompt": "Once", "max_new_tokens": 3}),
    "/tokenize": (TokenizeRequest, {"prompt": "Once"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [72, 105]}),
}


def answered_or_refused(data: bytes) -> None:
    """Never a server error; every refusal in the one shape; nothing left running."""
    path, _, body = data.partition(b"\n")
    name = path.decode("latin-1")
    engine = FakeEngine()
    reply = Client(engine).post(name if name in BODIES else "/v1/completions", body)
    assert engine.running == set()
    assert reply.complete
    if reply.status != 200:
        assert 400 <= reply.status < 500, reply.body
        assert reply.error["type"] == "invalid_request_error"
        assert 0 < len(reply.error["message"]) < 2000, reply.body
        assert isinstance(reply.error["param"], str | None)
        assert isinstance(reply.error["code"], str | None)


_SCALARS: SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.sampled_from((*INTERESTING, -1, -(2**63), 10**30, 0.5, -2.0, 1e300)), st.floats(),
    st.text(max_size=6), st.sampled_from(["", "\0", "a" * 3000, "fake-model", "user", "json_object"]),
)  # fmt: skip
_KEYS = st.sampled_from(["role", "content", "type", "text", "name", "1", "-1", "include_usage", "function", "x"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=8
)


def _bodies() -> SearchStrategy[bytes]:
    def changed(path: str) -> SearchStrategy[bytes]:
        shape, good = BODIES[path]
        changes = st.dictionaries(st.sampled_from([*shape.__struct_encode_fields__, "surprise"]), _VALUES, max_size=4)
        return changes.map(lambda fields: path.encode() + b"\n" + json.dumps({**good, **fields}).encode())

    return st.sampled_from(list(BODIES)).flatmap(changed)


_GOOD_BODIES = [path.encode() + b"\n" + json.dumps(good).encode() for path, (_, good) in BODIES.items()]

# ---------------------------------------------------------------------- server-sent events

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_STREAMS = [
    _HEAD + b"8\r\ndata: {}\r\n4\r\n\n\nda\r\n10\r\nta: [DONE]\n\n    \r\n0\r\n\r\n",
    _HEAD + b'10\r\ndata: {"a": 1}\n\n\r\n0\r\n\r\n',
    b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}",
]


async def _received(data: bytes) -> list[bytes]:
    """What a client makes of a server that says just this."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with asyncio.timeout(60):
            return [event async for event in post_events(f"http://127.0.0.1:{port}/x", {}, {})]


def understood_or_not(data: bytes) -> None:
    """The events before `[DONE]`, or one of the errors that load tests count."""
    try:
        events = asyncio.run(_received(data))
    except (ServerError, OSError, EOFError):
        return
    assert b"[DONE]" in data
    assert all(b"\n\n" not in event for event in events)


# ---------------------------------------------------------------------- frames


@contextmanager
def _line(receives: Any) -> Iterator[tuple[socket.socket, frames.FrameSocket[Any]]]:
    ours, theirs = socket.socketpair()
    link: frames.FrameSocket[Any] = frames.FrameSocket(theirs, receives)
    with ours:
        try:
            yield ours, link
        finally:
            link.close()


def messages_or_an_end(data: bytes) -> None:
    """Both readers of frames: a message of the expected type, or an error that ends the connection."""
    for receives, kinds in ((ToCore, ToCore.__args__), (FromCore, FromCore.__args__)):
        with _line(receives) as (raw, link):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
            raw.sendall(data[:100_000])
            raw.shutdown(socket.SHUT_WR)
            with suppress(EOFError, ConnectionError):
                for _ in range(1000):
                    assert isinstance(link.receive(), kinds)


_GREEDY = SamplingParams(temperature=0.0, max_tokens=3, stop=["x"])
_REQUEST = Request(request_id="r", prompt_token_ids=[1, 2, 3], params=_GREEDY, max_tokens=3, seed=1)
_FRAMES = [frames.encode(Abort("r", 1)) + frames.encode(Add(_REQUEST)), frames.encode(Add(_REQUEST))]

TARGETS = [
    Target("bodies", mutated(_GOOD_BODIES) | _bodies(), answered_or_refused),
    Target("events", mutated(_STREAMS), understood_or_not),
    Target("frames", mutated(_FRAMES), messages_or_an_end),
]
