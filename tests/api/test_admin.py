"""/v1/admin/models and Triton's names for it: who may, what is answered, what is said of mistakes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Client, Reply

from octavo.api import keys
from octavo.api.app import build_app
from octavo.api.tenants import Share
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import Asleep, ConfigError
from octavo.repository.declared import Declared, DeclaredModel
from octavo.repository.repository import Repository

sys.path.append(str(Path(__file__).parents[1] / "repository"))
from fake_loader import FakeLoader

MODELS = "/v1/admin/models"
Ask = Callable[..., Awaitable[Reply]]


def model(name: str, *sources: str, **fields: Any) -> DeclaredModel:
    versions = {number: EngineConfig.of(model=source) for number, source in enumerate(sources, 1)}
    return DeclaredModel(name=name, versions=versions, **fields)


def play(scenario: Callable[[Ask], Awaitable[None]], config: ServerConfig | None = None, admin: bool = False) -> None:
    """Models a (versions one and two, of which one serves) and org/b, which cannot be loaded."""

    async def run() -> None:
        models = model("a", "one", "two", traffic={1: 1}, labels={"best": 1}), model("org/b", "three", preload=False)
        repository = Repository(Declared(models={each.name: each for each in models}), FakeLoader(broken={"three"}))
        repository.open()
        await repository.started()
        client = Client()
        client.app = build_app(repository, config or ServerConfig())
        if admin:
            client.app = client.app.state.admin

        async def ask(method: str, path: str, body: Any = None, key: str | None = None) -> Reply:
            headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
            data = b"" if body is None else json.dumps(body).encode()
            path, _, query = path.partition("?")
            return await client.send(method, path, data=data, headers=headers, scope={"query_string": query.encode()})

        await scenario(ask)
        await repository.close()

    asyncio.run(run())


def states(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [version["state"] for version in reply.json["versions"]]


def test_versions_are_loaded_unloaded_and_get_requests_as_they_are_told() -> None:
    async def scenario(ask: Ask) -> None:
        listed = (await ask("GET", MODELS)).json["data"]
        assert [(each["name"], each["version"], each["state"]) for each in listed] == [
            ("a", 1, "ready"),
            ("org/b", 1, "declared"),
        ]
        assert states(await ask("GET", f"{MODELS}/a")) == ["ready", "declared"]
        assert states(await ask("POST", f"{MODELS}/a/versions/2/load")) == ["ready", "ready"]
        redirected = await ask("PUT", f"{MODELS}/a/traffic", {"traffic": {"1": 1, "2": 3}})
        assert [version["share"] for version in redirected.json["versions"]] == [0.25, 0.75]
        labelled = await ask("PUT", f"{MODELS}/a/labels", {"labels": {"new": 2}})
        assert [version["labels"] for version in labelled.json["versions"]] == [[], ["new"]]
        assert (await ask("GET", "/v1/models/a:new")).json["version"] == 2
        back = await ask("POST", f"{MODELS}/a/rollback")
        assert [version["share"] for version in back.json["versions"]] == [1.0, 0.0]
        assert states(await ask("POST", f"{MODELS}/a/unload"))[0] in ("draining", "declared")
        assert states(await ask("POST", f"{MODELS}/a/load"))[0] == "ready"

    play(scenario)


def test_a_models_name_may_have_a_slash() -> None:
    async def scenario(ask: Ask) -> None:
        assert states(await ask("GET", f"{MODELS}/org/b")) == ["declared"]
        refused = await ask("GET", f"{MODELS}/org/c")
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        refused = await ask("PUT", f"{MODELS}/org/b/load")
        assert refused.status == 405

    play(scenario)


def test_tritons_words() -> None:
    async def scenario(ask: Ask) -> None:
        index = (await ask("POST", "/v2/repository/index")).json
        assert [(each["name"], each["version"], each["state"]) for each in index] == [
            ("a", "1", "READY"),
            ("a", "2", "UNAVAILABLE"),
            ("org/b", "1", "UNAVAILABLE"),
        ]
        unloaded = await ask("POST", "/v2/repository/models/a/unload", {"parameters": {"unload_dependents": False}})
        assert (unloaded.status, unloaded.json) == (200, {})
        assert (await ask("POST", "/v2/repository/models/a/load")).status == 200
        failed = await ask("POST", "/v2/repository/models/org/b/load")
        assert (failed.status, failed.error["code"]) == (400, "load_failed")
        assert "three: no such file" in failed.error["message"], "an operator is told why"

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/c/load", None, 404, "this server has a, org/b"),
        ("GET", "/c", None, 404, "this server has a, org/b"),
        ("POST", "/a/versions/7/load", None, 404, "declared are 1, 2"),
        ("POST", "/a/versions/0/load", None, 400, "a whole number from 1"),
        ("POST", "/a/versions/..%2f/load", None, 400, "a whole number from 1"),
        ("POST", "/a/versions/²/load", None, 400, "a whole number from 1"),
        ("PUT", "/a/traffic", {"traffic": {"7": 1}}, 400, "declared are 1, 2"),
        ("PUT", "/a/traffic", {"traffic": {"1": 0}}, 400, "one must be more than 0"),
        ("PUT", "/a/traffic", {"traffic": {"1": -1}}, 400, "at least 0"),
        ("PUT", "/a/traffic", {"traffic": {}}, 400, "traffic"),
        ("PUT", "/a/labels", {"labels": {"latest": 1}}, 400, "cannot be a label"),
        ("PUT", "/a/labels", {"labels": {"x": 9}}, 400, "declared are 1, 2"),
        ("POST", "/org/b/rollback", None, 400, "no earlier version"),
    ],
)
def test_mistakes_are_named(method: str, path: str, body: Any, status: int, says: str) -> None:
    async def scenario(ask: Ask) -> None:
        reply = await ask(method, MODELS + path, body)
        assert reply.status == status, reply.body
        assert says in reply.error["message"]

    play(scenario)


def test_only_admins_may_and_only_on_the_admin_port(tmp_path) -> None:
    path = tmp_path / "keys.toml"
    user, operator = keys.issue(path, "u", "user", Share()), keys.issue(path, "o", "admin", Share())
    everything = [("GET", MODELS), ("POST", f"{MODELS}/a/unload"), ("POST", "/v2/repository/index")]

    async def of_keys(ask: Ask) -> None:
        for method, where in everything:
            assert (await ask(method, where)).status == 401
            assert (await ask(method, where, key=user)).status == 403
            assert (await ask(method, where, key=operator)).status == 200

    play(of_keys, ServerConfig(api_key_file=str(path)))

    async def public(ask: Ask) -> None:
        for method, where in everything:
            assert (await ask(method, where)).status == 404

    async def private(ask: Ask) -> None:
        for method, where in everything:
            assert (await ask(method, where)).status == 200

    play(public, ServerConfig(admin_port=0))
    play(private, ServerConfig(admin_port=0), admin=True)


def test_models_sleep_and_wake_as_with_vllm() -> None:
    async def scenario(ask: Ask) -> None:
        assert (await ask("GET", "/is_sleeping")).json == {"is_sleeping": False}
        for path in ("/sleep?level=1", "/sleep?level=2&model=a", "/sleep"):
            assert (await ask("POST", path)).json == {"is_sleeping": True}
            assert (await ask("GET", "/is_sleeping?model=a")).json == {"is_sleeping": True}
            ready = await ask("GET", "/ready")
            assert ready.status == 503
            assert ready.json["error"]["code"] == "engine_asleep"
            assert "POST /wake_up" in ready.json["error"]["message"]
            assert (await ask("POST", "/wake_up")).json == {"is_sleeping": False}
            assert (await ask("GET", "/ready")).status == 200
        for path in ("/sleep?level=3", "/sleep?level=deep"):
            assert (await ask("POST", path)).status == 400
        assert (await ask("POST", "/sleep?model=c")).status == 404

    play(scenario)


def test_what_keeps_a_model_from_waking_is_told() -> None:
    client = Client()
    client.engine.rest_error = ConfigError("there is no room to wake up")
    reply = client.request("POST", "/wake_up")
    assert reply.status == 400
    assert reply.json["error"]["code"] == "load_failed"
    assert reply.json["error"]["message"] == "there is no room to wake up"


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_a_model_that_sleeps_is_told_how_to_wake_it(stream: bool) -> None:
    client = Client()
    client.engine.error = Asleep("The model is asleep; POST /wake_up wakes it.")
    reply = client.post("/v1/completions", {"model": "fake-model", "prompt": "x", "stream": stream})
    assert reply.status == 503
    assert reply.json["error"]["code"] == "engine_asleep"
