"""`octavo ps` and `stop`, in front of a server that answers as the admin API does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from local_http import serving

from octavo import env
from octavo.cli import ps
from octavo.cli.main import main

NOW = 1_000_000.0


def version(state: str, **fields: Any) -> dict[str, Any]:
    usual = {"version": 1, "reason": None, "memory": None, "requests": 0, "waiting": 0, "expires_at": None}
    return {**usual, "state": state, **fields}


MODELS = [
    {
        "name": "org/small",
        "versions": [version("ready", memory=98_000_000, requests=3, waiting=1, expires_at=NOW + 90)],
    },
    {"name": "large", "versions": [version("loading", version=2), version("failed", reason="no such file")]},
    {"name": "idle", "versions": [version("declared")]},
]


@contextmanager
def admin(answer: Callable[[str, str], tuple[int, Any]]) -> Iterator[str]:
    """The address of a server whose answer to a method and a path is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            known = self.headers.get("authorization") == "Bearer admin"
            unknown = {"error": {"message": "Missing or wrong API key."}}
            status, body = answer(self.command, self.path) if known else (401, unknown)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    with serving(Handler) as url:
        yield url


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "API_KEY", "admin")
    monkeypatch.setattr(ps.time, "time", lambda: NOW)


def listed(method: str, path: str) -> tuple[int, Any]:
    assert (method, path) == ("GET", "/v1/admin/models")
    return 200, {"object": "list", "data": MODELS}


def test_ps_shows_what_takes_memory(capsys) -> None:
    with admin(listed) as url:
        assert main(["ps", "--url", url]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        assert rows == [
            ["org/small", "1", "ready", "98", "MB", "3", "1", "1", "minute", "from", "now"],
            ["large", "2", "loading", "?", "0", "0"],
        ]
        assert main(["ps", "--all", "--url", url]) == 0
        out = capsys.readouterr().out
        assert "idle" in out
        assert "large version 1: no such file" in out
        assert main(["ps", "--json", "--url", url]) == 0
        assert [entry["model"] for entry in json.loads(capsys.readouterr().out)] == ["org/small", "large"]


def test_ps_says_who_was_sent_to_sleep(capsys) -> None:
    models = [{"name": "a", "versions": [version("ready", asleep=True)]}]
    with admin(lambda *_: (200, {"data": models})) as url:
        assert main(["ps", "--url", url]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["a", "1", "asleep"]


def test_ps_of_a_server_that_rests(capsys) -> None:
    with admin(lambda *_: (200, {"data": MODELS[2:]})) as url:
        assert main(["ps", "--url", url]) == 0
    assert "octavo ps --all" in capsys.readouterr().out


def test_stop(capsys) -> None:
    def answer(method: str, path: str) -> tuple[int, Any]:
        if method == "GET":
            return listed(method, path)
        if path == "/v1/admin/models/org/small/unload":
            return 200, {"name": "org/small", "versions": [version("draining", requests=2)]}
        return 404, {"error": {"message": "The model 'lagre' does not exist."}}

    with admin(answer) as url:
        assert main(["stop", "org/small", "--url", url]) == 0
        assert capsys.readouterr().out == "org/small is unloaded when its 2 requests end\n"
        assert main(["stop", "lagre", "--url", url]) == 1
        assert "does not exist; did you mean large?" in capsys.readouterr().err


def test_refusals_say_what_to_do(monkeypatch, capsys) -> None:
    with admin(lambda *_: (403, {"error": {"message": "This key may not do that."}})) as url:
        assert main(["ps", "--url", url]) == 1
        assert "has to be an admin's" in capsys.readouterr().err
        monkeypatch.setattr(env, "API_KEY", None)
        assert main(["ps", "--url", url]) == 1
        assert "asks for a key: set OCTAVO_API_KEY" in capsys.readouterr().err
    assert main(["ps", "--url", url]) == 1
    assert "octavo serve starts one, --url names another" in capsys.readouterr().err
