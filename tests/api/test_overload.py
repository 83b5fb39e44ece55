"""More than the desk can take: refused at once, before any work, and only what is too much."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

from fake_engine import Client, FakeEngine, Reply, completion

from octavo.api.limits import Limits
from octavo.config import EngineConfig, SchedulerConfig

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
