"""GET /v1/live: numbers for administrators, without a word of what is said."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from fake_engine import Client, FakeEngine, chat

from octavo.config import ServerConfig


def test_a_look_shows_requests_and_blocks_and_no_text() -> None:
    async def play() -> None:
        client = Client(FakeEngine(gate=asyncio.Event()))
        talk = asyncio.create_task(client.send("POST", "/v1/chat/completions", **posted(chat("a secret"))))
        while not client.engine.running:
            await asyncio.sleep(0)
        reply = await client.send("GET", "/v1/live")
        [model] = reply.json["models"]
        assert reply.status == 200
        assert (model["name"], model["version"]) == ("fake-model", 1)
        assert [each["id"][:9] for each in model["engine"]["requests"]] == ["chatcmpl-"]
        assert model["engine"]["blocks"]["runs"] == [2, 2, 1, 1, 0, 5]
        assert b"secret" not in reply.body
        client.engine.gate.set()
        assert (await talk).status == 200
        assert (await client.send("GET", "/v1/live")).json["models"][0]["engine"]["requests"] == []

    asyncio.run(play())


def posted(body: dict[str, object]) -> dict[str, object]:
    return {"data": json.dumps(body).encode(), "headers": {"content-type": "application/json"}}


@pytest.mark.parametrize(("role", "status"), [("user", 403), ("admin", 200)])
def test_only_admins_look(tmp_path: Path, role: str, status: int) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f"[[key]]\nname = 'a'\nsha256 = '{hashlib.sha256(b'k').hexdigest()}'\nrole = '{role}'\n")
    keys.chmod(0o600)
    client = Client(config=ServerConfig(api_key_file=str(keys)))
    assert client.get("/v1/live").status == 401
    assert client.get("/v1/live", headers={"authorization": "Bearer k"}).status == status


def test_with_an_admin_port_it_is_there() -> None:
    client = Client(config=ServerConfig(admin_port=0))
    reply = client.get("/v1/live")
    assert reply.status == 404
    assert "admin port" in reply.error["message"]
    client.app = client.app.state.admin
    assert client.get("/v1/live").status == 200


def test_the_page_is_on_both_ports() -> None:
    client = Client(config=ServerConfig(admin_port=0))
    for app in (client.app, client.app.state.admin):
        client.app = app
        assert b"<!doctype html>" in client.get("/", headers={"accept": "text/html"}).body
