"""Fetching and removing models through Ollama's API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import pytest
from fake_engine import Client, FakeEngine, chat
from hub_copies import hub_copy, safetensors_files

from octavo.api.limits import Limits
from octavo.checkpoint import Checkpoint, store
from octavo.checkpoint.progress import Progress, Report
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import CheckpointError

PULL, DELETE = "/api/pull", "/api/delete"


def client(cache: Path, config: ServerConfig | None = None) -> Client:
    engine = FakeEngine(config=EngineConfig.of(download_dir=str(cache)))
    return Client(engine, config or ServerConfig())


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def delete(asked: Client, name: str) -> Any:
    return asked.request("DELETE", DELETE, data=json.dumps({"model": name}).encode())


def test_a_pull_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def pull(name: str, *, cache: Path | None, report: Report) -> None:
        asked.append((name, cache))
        report(Progress(50, 200))

    monkeypatch.setattr(store, "pull", pull)
    told = lines(client(tmp_path).post(PULL, {"model": "hf.co/org/name:latest"}).body)
    assert asked == [("org/name", tmp_path)]
    assert [each["status"] for each in told] == ["pulling manifest", "pulling org/name", "success"]
    assert told[1] | {"completed": 50, "total": 200} == told[1]
    for each in told:
        ollama.ProgressResponse.model_validate(each)
    whole = client(tmp_path).post(PULL, {"model": "org/name", "stream": False})
    assert (whole.status, whole.json) == (200, {"status": "success"})


def test_a_pull_that_cannot_be_is_the_callers_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, **options: Any) -> None:
        raise CheckpointError(f"{name} is not on the hub")

    monkeypatch.setattr(store, "pull", pull)
    reply = client(tmp_path).post(PULL, {"model": "org/name", "stream": False})
    assert (reply.status, "is not on the hub" in reply.json["error"]) == (400, True)
    streamed = client(tmp_path).post(PULL, {"model": "org/name"})
    assert "is not on the hub" in lines(streamed.body)[-1]["error"]
    assert streamed.complete
    assert client(tmp_path).post(PULL, {}).status == 400


def test_a_pull_nobody_waits_for_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def pull(name: str, *, cache: Path | None, report: Report) -> None:
        try:
            while not ended.wait(0.001):
                report(Progress(1, 2))
        except BaseException:
            ended.set()
            raise

    monkeypatch.setattr(store, "pull", pull)

    async def scenario() -> None:
        asked = client(tmp_path)
        body = json.dumps({"model": "org/name"}).encode()
        headers = {"content-type": "application/json"}
        await asyncio.wait_for(asked.send("POST", PULL, data=body, headers=headers, leave_after=2), 60)
        assert await asyncio.to_thread(ended.wait, 60)

    asyncio.run(scenario())


def test_pulls_keep_nobody_else_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(store, "pull", lambda *_, **__: go_on.wait(60))

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        asked = client(tmp_path)
        headers = {"content-type": "application/json"}
        pulls = [
            asyncio.create_task(asked.send("POST", PULL, data=json.dumps({"model": name}).encode(), headers=headers))
            for name in ("org/one", "org/two")
        ]
        await asyncio.sleep(0)
        try:
            chatted = await asyncio.wait_for(
                asked.send("POST", "/v1/chat/completions", data=json.dumps(chat()).encode(), headers=headers), 30
            )
        finally:
            go_on.set()
        assert chatted.status == 200
        assert [pulled.status for pulled in await asyncio.gather(*pulls)] == [200, 200]

    asyncio.run(scenario())


def test_a_pull_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "pull", lambda *_, **__: time.sleep(0.3))
    asked = Client(FakeEngine(step_seconds=1.0), limits=Limits(request_seconds=0.01))
    assert asked.post("/v1/chat/completions", chat()).status == 408
    assert asked.post(PULL, {"model": "org/name", "stream": False}).json == {"status": "success"}


def test_a_model_is_removed_unless_it_is_served(tmp_path: Path) -> None:
    hub_copy(tmp_path, "org/one", safetensors_files())
    two = hub_copy(tmp_path, "org/two", safetensors_files())
    asked = client(tmp_path)
    asked.engine.checkpoint = Checkpoint(name="org/two", path=two, format="safetensors", config={"model_type": "llama"})
    assert delete(asked, "org/two").status == 400
    assert delete(asked, "org/one").status == 200
    assert delete(asked, "org/one").status == 404
    assert [model.name for model in store.stored(tmp_path) if model.source == "hub"] == ["org/two"]


def test_only_administrators_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "alice"\nsha256 = "{hashlib.sha256(b"alice").hexdigest()}"\n')
    monkeypatch.setattr(store, "pull", lambda *_, **__: pytest.fail("a user made files"))
    asked = client(tmp_path, ServerConfig(api_key_file=str(keys)))
    for reply in (
        asked.post(PULL, {"model": "org/name"}, headers={"authorization": "Bearer alice"}),
        asked.request("DELETE", DELETE, data=b"{}", headers={"authorization": "Bearer alice"}),
    ):
        assert (reply.status, "administrator" in reply.json["error"]) == (403, True)
