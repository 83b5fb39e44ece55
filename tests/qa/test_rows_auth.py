"""Bad inputs 20 to 25: who may ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from one_model import OneModel
from qa_server import KEY, ROOT, QaServer, Reply, refused, serve
from starlette.routing import Route

from octavo.api.app import build_app
from octavo.config import ServerConfig

pytestmark = pytest.mark.qa

OPEN = ("/live", "/ready", "/health")
ROUTES = sorted(
    {
        (method, route.path.replace("{model:path}", "tiny"))
        for route in build_app(OneModel(), ServerConfig()).routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
)


def unauthorized(reply: Reply) -> None:
    refused(reply, 401, code="invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer")


def unauthorized_in_its_dialect(reply: Reply, path: str) -> None:
    """Ollama's clients and Anthropic's expect other errors than OpenAI's."""
    if not path.startswith(("/api/", "/v1/messages")):
        unauthorized(reply)
        return
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    error = reply.json["error"]
    assert isinstance(error, str) if path.startswith("/api/") else error["type"] == "authentication_error"


def ask(server: QaServer, *authorizations: bytes, path: str = "/v1/models", method: str = "GET") -> Reply:
    lines = b"".join(b"authorization: %b\r\n" % value for value in authorizations)
    return server.raw(
        b"%b %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n%b\r\n" % (method.encode(), path.encode(), lines)
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_row_20_every_route_needs_a_key(keyed: QaServer, method: str, path: str) -> None:
    if path in OPEN:
        assert ask(keyed, path=path, method=method).status == 200
    elif method == "HEAD":
        assert keyed.talk(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()).startswith(
            b"HTTP/1.1 401 "
        )
    else:
        unauthorized_in_its_dialect(ask(keyed, path=path, method=method), path)


@pytest.mark.parametrize(
    "path",
    ["/nothing", "//v1/models", "/v1//models", "/%761/models", "/v1%2fmodels", "/./live", "/live/..",
     "/live/../v1/models", "/live;x", "/live%00", "http://other/live", "http://other/v1/models", "*"],
)  # fmt: skip
def test_row_20_paths_that_look_like_others(keyed: QaServer, path: str) -> None:
    reply = ask(keyed, path=path)
    if path == "http://other/live":
        assert reply.status in (200, 401)  # the same resource, asked for as a proxy would
    else:
        unauthorized(reply)


WRONG = [
    (b"Bearer wrong",), (b"Bearer",), (b"Bearer ",), (b"",), (b"Basic c2VjcmV0",), (KEY.encode(),),
    (b"Bearer " + KEY.encode(), b"Bearer " + KEY.encode()), (b"Bearer " + KEY.encode()[:-1],),
    (b"Bearer " + KEY.encode() + b"x",), (b"Bearer " + KEY.upper().encode(),), ("Bearer schlüssel".encode(),),
    (b"Bearer \xff\xfe",), (b"Token " + KEY.encode(),), (b"Bearer " + b"x" * 60_000,),
]  # fmt: skip


@pytest.mark.parametrize("values", WRONG, ids=range(len(WRONG)))
def test_row_21_wrong_keys(keyed: QaServer, values: tuple[bytes, ...]) -> None:
    unauthorized(ask(keyed, *values))


@pytest.mark.parametrize("value", [b"Bearer " + KEY.encode() + b"\0", b"Bearer " + b"x" * 2**20])
def test_row_21_keys_that_are_no_header(keyed: QaServer, value: bytes) -> None:
    assert ask(keyed, value).status in (400, 401, 431)


def test_row_21_the_right_key_is_let_in(keyed: QaServer) -> None:
    assert keyed.get("/v1/models").status == 200
    assert ask(keyed, b"bearer  " + KEY.encode()).status == 200


@pytest.mark.parametrize(
    "key", [b"' OR (SELECT pg_sleep(8))--", b"%0d%0aFLUSHALL", b"*", b"../../etc/passwd", b"{{7*7}}"]
)
def test_row_22_code_in_a_key(keyed: QaServer, key: bytes) -> None:
    began = time.monotonic()
    unauthorized(ask(keyed, b"Bearer " + key))
    assert time.monotonic() - began < 8


def test_row_22_a_line_break_in_a_key_is_another_header(keyed: QaServer) -> None:
    unauthorized(ask(keyed, b"Bearer x\r\nFLUSHALL: 1"))


def new_key(file: Path, name: str, *flags: str) -> str:
    command = [sys.executable, "-m", "octavo.cli", "keys", "new", name, "--file", str(file), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return made.stdout.strip()


def test_row_23_keys_of_users_and_administrators(tiny_model: Path, tmp_path: Path) -> None:
    """Only administrators read metrics; a user's share is its own; what one has cached, others do not find."""
    file = tmp_path / "keys.toml"
    admin = new_key(file, "operator", "--role", "admin")
    alice, bob = new_key(file, "alice"), new_key(file, "bob", "--requests-per-minute", "2")
    for key in (admin, alice, bob):
        assert key not in file.read_text()
    with serve(tiny_model, tmp_path, "--api-key-file", str(file), "--kv-cache-memory", "8MiB", key=admin) as server:

        def as_tenant(key: str, path: str, body: dict[str, object] | None = None) -> Reply:
            server.key = key
            try:
                return server.get(path) if body is None else server.post(path, body)
            finally:
                server.key = admin

        refused(as_tenant(alice, "/metrics"), 403, code="permission_denied")
        assert as_tenant(admin, "/metrics").status == 200
        unauthorized(ask(server, path="/metrics"))
        ask_long = {"prompt": "A beginning that is worth keeping in the cache. " * 4, "max_tokens": 1}
        cached = [
            as_tenant(key, "/v1/completions", ask_long).json["usage"]["prompt_tokens_details"]["cached_tokens"]
            for key in (alice, alice, bob, bob)
        ]
        assert cached[0] == cached[2] == 0
        assert cached[1] == cached[3] > 0
        over = as_tenant(bob, "/v1/completions", ask_long)
        assert (over.status, over.error["code"]) == (429, "rate_limit_exceeded")
        assert int(over.headers["retry-after"]) > 0
        assert as_tenant(alice, "/v1/completions", ask_long).status == 200
        log = server.log.read_text()
        assert not [key for key in (admin, alice, bob) if key in log]


def test_row_24_a_key_in_the_query_is_no_key_and_never_logged(keyed: QaServer) -> None:
    for name in ("key", "api_key", "token", "access_token", "authorization"):
        unauthorized(ask(keyed, path=f"/v1/models?{name}={KEY}"))
    unauthorized(ask(keyed, b"Bearer wrong-secret", path="/v1/models?other=wrong-secret"))
    assert KEY not in keyed.log.read_text()
    assert "wrong-secret" not in keyed.log.read_text()


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_row_25_responses_of_others(server: QaServer, method: str, path: str) -> None:
    """None is stored, so there is none to read or cancel."""
    refused(server.get(path, "content-length: 0", method=method), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/batches/batch_1"), ("POST", "/v1/batches/batch_1/cancel"), ("GET", "/v1/files/file-1"),
     ("GET", "/v1/files/file-1/content"), ("DELETE", "/v1/files/file-1")],
)  # fmt: skip
def test_row_25_files_of_others(server: QaServer, method: str, path: str) -> None:
    """This server keeps nothing; how tenants are kept apart where files are kept is in tests/api."""
    refused(server.get(path, "content-length: 0", method=method), 404, code="data_dir_missing")


def test_row_25_requests_cannot_name_anothers_id(server: QaServer) -> None:
    """The server makes its own ids: what a client sends as one changes nothing for the requests of others."""
    with server.streaming() as stream:
        reply = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "request_id": "cmpl-1", "id": "cmpl-1"})
        assert reply.status == 200
        data = json.dumps({"model": server.model, "prompt": "x", "max_tokens": 2}).encode()
        head = server.head("/v1/completions", "content-type: application/json", "x-request-id: mine\x7f",
                           f"content-length: {len(data)}")  # fmt: skip
        labelled = server.raw(head + b"\r\n" + data)
        assert labelled.status in (200, 400)
        assert labelled.headers["x-request-id"] not in ("mine\x7f", reply.headers["x-request-id"])
        assert stream.recv(65536)
