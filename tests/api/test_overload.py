"""More than the desk can take: refused at once, before any work, and only what is too much."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, Reply, completion

from octavo.api.generation import merge
from octavo.api.limits import Limits
from octavo.api.tenants import Share, Tenant
from octavo.config import EngineConfig, SchedulerConfig
from octavo.errors import Overloaded

COMPLETION = "/v1/completions"
JSON = {"content-type": "application/json"}
SMALL = EngineConfig(scheduler=SchedulerConfig(max_num_seqs=2, max_num_queued_reqs=1))


async def waiting(client: Client, count: int, **fields: Any) -> tuple[list[asyncio.Task[Reply]], asyncio.Event]:
    """Requests that run until the event is set."""
    leave = asyncio.Event()
    data = json.dumps(completion(**fields)).encode()
    before = len(client.engine.running)
    tasks = [
        asyncio.create_task(client.send("POST", COMPLETION, data=data, headers=JSON, leave_when=leave.is_set))
        for _ in range(count)
    ]
    while len(client.engine.running) < before + count and not any(task.done() for task in tasks):
        await asyncio.sleep(0)
    return tasks, leave


def test_a_full_desk_refuses_without_reading_and_takes_again_when_there_is_room() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(hang_after=1, config=SMALL))
        tasks, leave = await waiting(client, 3)

        async def receive() -> dict[str, Any]:
            raise AssertionError("a request that is refused is not read")

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": COMPLETION, "headers": []}
        await client.app(scope, receive, send)
        assert sent[0]["status"] == 503
        assert (b"retry-after", b"1") in sent[0]["headers"]
        assert b"3 requests are running or waiting already" in sent[1]["body"]
        assert (await client.send("GET", "/ready")).status == 200
        assert (await client.send("GET", "/v1/models")).status == 200
        leave.set()
        await asyncio.gather(*tasks)
        client.engine.hang_after = None
        (again,), _ = await waiting(client, 1)
        assert (await again).status == 200

    asyncio.run(scenario())


def test_a_flood_ends_in_answers_and_refusals_that_add_up() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(config=SMALL))
        sends = [client.send("POST", COMPLETION, data=b"{}", headers=JSON) for _ in range(5)]
        data = b'{"model":"fake-model","prompt":"x"}'
        sends += [client.send("POST", COMPLETION, data=data, headers=JSON) for _ in range(30)]
        replies = await asyncio.gather(*sends)
        counts = Counter(reply.status for reply in replies)
        assert counts.keys() == {200, 400, 503}
        assert counts[200] >= 3
        assert client.app.state.desk.in_flight == 0
        lines = re.findall(
            rf'octavo:http_requests_total{{outcome="complete",path="{COMPLETION}",status="(\d+)"}} (\S+)',
            (await client.send("GET", "/metrics")).body.decode(),
        )
        assert {int(status): float(count) for status, count in lines} == counts

    asyncio.run(scenario())


def test_every_outcome_is_counted_once_and_under_known_names_only() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(hang_after=3))
        (task,), leave = await waiting(client, 1, stream=True)
        while client.engine.steps < 3:
            await asyncio.sleep(0)
        leave.set()
        await task
        for path in ("/x1", "/x2", "/v1/models/x3"):
            await client.send("GET", path)
        await client.send("FOO", "/live")
        text = (await client.send("GET", "/metrics")).body.decode()
        found = set(re.findall(r'outcome="(\w+)",path="([^"]+)",status="(\d+)"} (\S+)', text))
        assert found == {
            ("left", COMPLETION, "200", "1.0"),
            ("complete", "none", "404", "2.0"),
            ("complete", "/v1/models/{model:path}", "404", "1.0"),
            ("complete", "none", "405", "1.0"),
        }

    asyncio.run(scenario())


def test_each_prompt_of_a_list_is_a_request_in_flight() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(gate=asyncio.Event(), config=SMALL))
        desk = client.app.state.desk
        listed, leave = await waiting(client, 1, prompt=["a", "b"])
        while desk.in_flight < 2:
            await asyncio.sleep(0)
        for path, field in ((COMPLETION, {}), (COMPLETION, {"stream": True}), ("/generate", {})):
            data = json.dumps(completion(prompt=["c", "d"], **field)).encode()
            refused = await client.send("POST", path, data=data, headers=JSON)
            assert (refused.status, refused.header("retry-after")) == (503, "1")
            assert refused.error["type"] == "overloaded_error"
        assert len(client.engine.calls) == 2, "what is refused never gets to the engine"
        (single,), leave_too = await waiting(client, 1, n=2)
        assert not single.done()
        assert desk.in_flight == 3
        leave.set()
        leave_too.set()
        await asyncio.gather(*listed, single)
        assert desk.in_flight == 0
        client.engine.gate.set()
        data = json.dumps(completion(prompt=["a", "b", "c"])).encode()
        assert (await client.send("POST", COMPLETION, data=data, headers=JSON)).status == 200

    asyncio.run(scenario())


def test_a_list_that_came_before_the_drain_is_served() -> None:
    async def scenario() -> None:
        client = Client()
        encode = client.engine.encode

        async def encode_while_draining(prompt: str, **options: Any) -> tuple[str | None, list[int]]:
            client.app.state.desk.draining = True
            return await encode(prompt, **options)

        client.engine.encode = encode_while_draining
        data = json.dumps(completion(prompt=["a", "b"])).encode()
        assert (await client.send("POST", COMPLETION, data=data, headers=JSON)).status == 200

    asyncio.run(scenario())


def test_each_prompt_and_each_body_being_sent_counts_in_a_keys_share() -> None:
    async def scenario() -> None:
        client = Client(FakeEngine(gate=asyncio.Event()))
        anyone = client.app.state.desk.anyone = Tenant("a", "user", Share(concurrent_requests=2, requests_per_minute=8))
        (listed,), leave = await waiting(client, 1, prompt=["a", "b"])
        while anyone.running < 2:
            await asyncio.sleep(0)
        refused = await client.send("POST", COMPLETION, data=b"{}", headers=JSON)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        leave.set()
        await listed
        data = json.dumps(completion(prompt=["c", "d", "e"])).encode()
        refused = await client.send("POST", COMPLETION, data=data, headers=JSON)
        assert (refused.status, refused.header("retry-after")) == (429, "1")
        assert anyone.running == client.app.state.desk.in_flight == 0

        async def receive() -> dict[str, Any]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(_: dict[str, Any]) -> None:
            raise AssertionError("nobody is there to be answered")

        leave.clear()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
        scope = {"type": "http", "method": "POST", "path": COMPLETION, "headers": headers}
        sending = [asyncio.create_task(client.app(dict(scope), receive, send)) for _ in range(2)]
        while anyone.running < 2:
            await asyncio.sleep(0)
        assert client.app.state.desk.in_flight == 0
        assert (await client.send("POST", COMPLETION, data=b"{}", headers=JSON)).status == 429
        leave.set()
        await asyncio.gather(*sending)
        assert anyone.running == 0

    asyncio.run(scenario())


def test_prompts_count_in_the_requests_a_minute() -> None:
    client = Client()
    client.app.state.desk.anyone = Tenant("a", "user", Share(requests_per_minute=3))
    assert client.post(COMPLETION, completion(["a", "b", "c"])).status == 200
    assert client.post(COMPLETION, completion("d")).status == 429


@pytest.mark.parametrize("prompt", ["x" * 49, ["x" * 24, "y" * 24]])
def test_what_the_engine_refuses_costs_no_tokens(prompt: str | list[str]) -> None:
    client = Client(FakeEngine(error=Overloaded("the queue is full")))
    client.app.state.desk.anyone = Tenant("a", "user", Share(tokens_per_minute=50))
    assert [client.post(COMPLETION, completion(prompt)).status for _ in range(3)] == [503, 503, 503]
    client.engine.error = None
    assert [client.post(COMPLETION, completion(prompt)).status for _ in range(2)] == [200, 429]


def test_prompts_of_a_list_do_not_run_ahead_of_a_slow_reader() -> None:
    async def scenario() -> None:
        made = 0

        async def source() -> AsyncGenerator[int, None]:
            nonlocal made
            for number in range(100):
                made += 1
                yield number

        async with aclosing(merge([source(), source()])) as merged:
            await anext(merged)
            for _ in range(50):
                await asyncio.sleep(0)
            assert made <= 4  # one that waits and one in hand, each
            assert [item async for item in merged][-1] == (1, 99)
            assert made == 200

    asyncio.run(scenario())


def test_large_bodies_share_what_there_is_for_them() -> None:
    async def scenario() -> None:
        limits = Limits(small_body_bytes=200, large_bodies_bytes=700)
        client = Client(FakeEngine(hang_after=1, max_model_len=1000), limits=limits)
        large, leave = await waiting(client, 1, prompt="x" * 400)
        (refused,), _ = await waiting(client, 1, prompt="x" * 400)
        assert (await refused).status == 503
        small, leave_too = await waiting(client, 1, prompt="x")
        assert not small[0].done()
        leave.set()
        leave_too.set()
        await asyncio.gather(*large, *small)
        client.engine.hang_after = None
        (again,), _ = await waiting(client, 1, prompt="x" * 400)
        assert (await again).status == 200

    asyncio.run(scenario())
