"""`usage.cost`: what an answer took of the machine, when the caller asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import Client, FakeEngine, chat, completion

PLACES = [
    ("/v1/chat/completions", chat()),
    ("/v1/completions", completion()),
    ("/v1/completions", completion(["a", "b"])),
]


@pytest.mark.parametrize(("path", "body"), PLACES)
@pytest.mark.parametrize("joules", [None, 2.0])
def test_cost_is_in_the_usage_when_asked_for(path: str, body: dict[str, Any], joules: float | None) -> None:
    engine = FakeEngine(joules=joules)
    client = Client(engine)
    assert "cost" not in client.post(path, body).json["usage"]
    cost = client.post(path, {**body, "include_cost": True}).json["usage"]["cost"]
    prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    steps = (engine.steps + 1) * prompts
    expected = {"queue_seconds": 0.5, "compute_seconds": 0.25 * steps}
    assert cost == (expected if joules is None else expected | {"energy_joules": joules * steps})
    streamed = {**body, "include_cost": True, "stream": True, "stream_options": {"include_usage": True}}
    assert client.post(path, streamed).events[-2]["usage"]["cost"] == cost
