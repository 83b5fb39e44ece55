"""Requests whose time is over: before the first token, in the middle, and whose clock it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, chat, completion
from starlette.types import Message

from octavo.api.deadline import Deadline, QueueTimeout
from octavo.api.limits import Limits
from octavo.errors import RequestTimeout

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(),
    "/v1/completions": completion(["a", "b"]),
    "/generate": {"prompt": "Once"},
}


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("hang_after", [0, 3])
def test_a_request_that_takes_too_long_is_aborted(path: str, hang_after: int) -> None:
    client = Client(FakeEngine(hang_after=hang_after))
    reply = client.post(path, {**BODIES[path], "timeout": 0.25})
    assert (reply.status, reply.error["code"], reply.error["type"]) == (408, "request_timeout", "timeout_error")
    assert reply.header("x-should-retry") == "false"
    assert client.engine.running == set()
    assert len(client.engine.aborted) == (2 if path == "/v1/completions" else 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_that_takes_too_long_ends_with_an_error(path: str) -> None:
    client = Client(FakeEngine(hang_after=3))
    reply = client.post(path, {**BODIES[path], "stream": True, "timeout": 0.5})
    assert (reply.status, reply.complete) == (200, False)
    assert reply.events[-1]["error"]["code"] == "request_timeout"
    assert client.engine.running == set()


def test_the_servers_bound_counts_too() -> None:
    client = Client(FakeEngine(hang_after=1), limits=Limits(request_seconds=0.02))
    for timeout in (None, 3600):
        reply = client.post("/v1/completions", completion(timeout=timeout))
        assert reply.error["code"] == "request_timeout"
        assert "0.02 s" in reply.error["message"]


def test_time_counts_while_the_body_is_on_its_way() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(), limits=Limits(request_seconds=0.05))
        body = json.dumps(completion()).encode()
        sent: list[Message] = []

        async def receive() -> Message:
            if sent:
                return {"type": "http.disconnect"}
            await asyncio.sleep(0.1)
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await client.app(scope, receive, send)
        assert sent[0]["status"] == 408
        assert client.engine.running == set()

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_waits_too_long_for_its_first_token_may_be_sent_again(stream: bool) -> None:
    client = Client(FakeEngine(hang_after=0), limits=Limits(queue_seconds=0.02, request_seconds=30))
    reply = client.post("/v1/completions", completion(stream=stream))
    assert (reply.status, reply.error["code"], reply.header("retry-after")) == (503, "queue_timeout", "1")
    assert client.engine.running == set()


def test_after_the_first_token_only_the_whole_counts() -> None:
    async def generate(deadline: Deadline, *, starts: bool, ends: bool) -> None:
        async with deadline:
            await asyncio.sleep(0.02)  # reading a body or rendering a template is no waiting
            deadline.await_first_token()
            if starts:
                deadline.first_token()
            if not ends:
                await asyncio.Event().wait()

    async def scenario() -> None:
        await generate(Deadline(3600, 0.01), starts=True, ends=True)
        with pytest.raises(RequestTimeout):
            await generate(Deadline(0.03, 0.01), starts=True, ends=False)
        with pytest.raises(QueueTimeout):
            await generate(Deadline(3600, 0.01), starts=False, ends=False)

    asyncio.run(scenario())


def test_a_cancellation_from_outside_is_no_timeout() -> None:
    async def scenario() -> None:
        async def work() -> None:
            async with Deadline(3600):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
