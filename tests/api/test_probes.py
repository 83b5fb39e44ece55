"""What orchestrators see of an engine that is being restarted: /ready says no, requests are taken and wait."""

from __future__ import annotations

from fake_engine import Client, FakeEngine, completion


def test_a_recovering_engine_is_live_and_takes_requests_but_is_not_ready() -> None:
    client = Client(FakeEngine(moving=False))
    reply = client.get("/ready")
    assert (reply.status, reply.error["code"], reply.header("retry-after")) == (503, "engine_recovering", "1")
    assert client.get("/health").status == 503
    assert client.get("/live").status == 200
    assert client.post("/v1/completions", completion()).status == 200
    client.engine.moving = True
    assert client.get("/ready").status == 200
