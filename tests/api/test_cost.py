"""`usage.cost`: what an answer took of the machine, when the caller asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import Client, FakeEngine, chat, completion
from prometheus_client.parser import text_string_to_metric_families

from octavo.config import ServerConfig

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


def test_what_each_key_used_is_summed_up() -> None:
    engine = FakeEngine(joules=2.0)
    client = Client(engine, ServerConfig(api_key=("one", "two")))
    keys = [{"authorization": "Bearer one"}, {"authorization": "Bearer two"}]
    for _ in range(2):
        assert client.post("/v1/completions", completion(max_tokens=3), headers=keys[0]).status == 200
    client.post("/v1/completions", completion(max_tokens=5, stream=True), headers=keys[1], leave_after=1)
    client.post("/v1/completions", completion() | {"model": "another"}, headers=keys[1])  # came to no model
    client.get("/v1/models", headers=keys[1])
    text = client.get("/metrics", headers=keys[0]).body.decode()
    found = {
        (sample.name.removeprefix("octavo:tenant_"), sample.labels["tenant"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("octavo:tenant_")
    }
    prompt = len(engine.calls[0]["prompt"])
    whole = {
        "requests_total": 2,
        "prompt_tokens_total": 2 * prompt,
        "cached_tokens_total": 8,
        "generation_tokens_total": 6,
        "compute_seconds_total": 1.5,
        "energy_joules_total": 12,
    }
    assert {name: value for (name, tenant), value in found.items() if tenant == "api-key:0"} == whole
    of_two = {name: value for (name, tenant), value in found.items() if tenant == "api-key:1"}
    assert of_two["requests_total"] == 1
    assert of_two["compute_seconds_total"] >= 0.25
    assert of_two["energy_joules_total"] == 8 * of_two["compute_seconds_total"]
