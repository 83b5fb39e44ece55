"""Every route of the app needs a key, whatever the path looks like, except the probes."""

from __future__ import annotations

import logging

import pytest
from fake_engine import Client, FakeEngine, chat
from starlette.routing import Route

from octavo.api.app import OPERATIONS
from octavo.config import ServerConfig

KEYS = ServerConfig(api_key=("first key", "zweiter Schlüssel"))
ROUTES = [
    (method, route.path.replace("{model:path}", "fake-model"))
    for route in Client().app.routes
    if isinstance(route, Route)
    for method in route.methods or ()
]
OPEN = {"/live", "/ready", "/health"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_the_probes_needs_a_key(method: str, path: str) -> None:
    client = Client(config=KEYS)
    reply = client.request(method, path)
    if path in OPEN:
        assert reply.status == 200
    else:
        assert reply.status == 401
        assert reply.header("www-authenticate") == "Bearer"
        assert reply.header("x-request-id")
        assert b"Missing or wrong API key" in reply.body
        if not path.startswith(("/v1/messages", "/api/")):  # whose clients expect another shape
            assert reply.error["code"] == "invalid_api_key"
            assert reply.error["type"] == "invalid_request_error"
        answer = client.request(method, path, headers=bearer("first key"))
        assert answer.status != 401
        assert b"Invalid URL" not in answer.body


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/",
        "",
        "//live",
        "/live/",
        "/live/../v1/models",
        "/LIVE",
        "/v1/models/live",
        "/docs",
        "*",
        "/ready\0",
    ],
)
def test_what_is_no_route_needs_a_key_too(path: str) -> None:
    assert Client(config=KEYS).get(path).status == 401


def test_each_key_works() -> None:
    client = Client(config=KEYS)
    for key in KEYS.api_key:
        header = {"authorization": f"Bearer {key}".encode().decode("latin-1")}
        assert client.get("/version", headers=header).status == 200
        assert (
            client.get(
                "/version", headers={"authorization": header["authorization"].replace("Bearer", "bearer")}
            ).status
            == 200
        )
        assert client.get("/version", headers={"x-api-key": key.encode().decode("latin-1")}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "")],
        [("authorization", "first key")],
        [("authorization", "Basic first key")],
        [("authorization", "Bearer first key\0")],
        [("authorization", "Bearer first ke")],
        [("authorization", "Bearer first keys")],
        [("authorization", "Bearer first key"), ("authorization", "Bearer first key")],
        [("authorization", "Bearer " + "x" * 1_000_000)],
        [("authorization", "Bearer \xff\xfe")],
        [("authorization", "Bearer ' OR pg_sleep(8)--")],
        [("x-api-key", "first ke")],
        [("x-api-key", "")],
        [("x-api-key", "Bearer first key")],
        [("x-api-key", "first key"), ("x-api-key", "first key")],
        [("x-api-key", "first key"), ("authorization", "Bearer wrong")],
    ],
)
def test_all_wrong_keys_look_alike(headers: list[tuple[str, str]]) -> None:
    client = Client(config=KEYS)
    reply = client.get("/v1/models", headers=headers)
    assert reply.status == 401
    assert reply.body == client.get("/v1/models").body


def test_a_key_in_the_url_is_neither_accepted_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        reply = Client(config=KEYS).get("/v1/models", scope={"query_string": b"api_key=first%20key"})
    assert reply.status == 401
    assert "/v1/models 401" in caplog.text
    assert "key=" not in caplog.text


def test_a_root_path_changes_nothing() -> None:
    config = ServerConfig(api_key=("k",), root_path="/llm")
    client = Client(FakeEngine(), config)
    scope = {"root_path": "/llm"}
    assert client.get("/llm/live", scope=scope).status == 200
    assert client.get("/llm/version", scope=scope).status == 401
    assert client.get("/llm/version", scope=scope, headers=bearer("k")).status == 200
    assert client.get("/other/live", scope=scope).status == 401


def test_browsers_may_ask_before_they_send_the_key() -> None:
    config = ServerConfig(api_key=("k",), allowed_origins=("https://a.example",))
    ask = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    client = Client(config=config)
    reply = client.request("OPTIONS", "/v1/chat/completions", headers=ask)
    assert reply.status == 200
    assert reply.header("access-control-allow-origin") == "https://a.example"
    assert (
        client.request("OPTIONS", "/v1/chat/completions", headers={**ask, "origin": "https://b.example"}).status == 400
    )
    assert Client(config=KEYS).request("OPTIONS", "/v1/chat/completions", headers=ask).status == 401
    for method in {each.method for each in OPERATIONS}:
        asked = {**ask, "access-control-request-method": method}
        assert client.request("OPTIONS", "/v1/chat/completions", headers=asked).status == 200, method
    assert (
        Client().request("OPTIONS", "/v1/chat/completions", headers=ask).header("access-control-allow-origin") is None
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_without_keys_only_known_web_pages_are_served(path: str) -> None:
    body = {**chat(), "prompt": "x", "messages": None} if path == "/tokenize" else chat()
    rebound = {"origin": "http://evil.example:8080", "host": "evil.example:8080"}  # one origin, as browsers see it
    for config in (ServerConfig(), ServerConfig(allowed_origins=("https://a.example",))):
        reply = Client(config=config).post(path, body, headers=rebound)
        assert (reply.status, reply.error["code"]) == (403, "permission_denied")
        assert Client(config=config).post(path, body).status == 200
    for allowed, origin in (("https://a.example", "https://a.example"), ("*", "https://b.example"), ("null", "null")):
        client = Client(config=ServerConfig(allowed_origins=(allowed,)))
        assert client.post(path, body, headers={"origin": origin}).status == 200
    keyed = Client(config=KEYS)
    assert keyed.post(path, body, headers={**rebound, **bearer("first key")}).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("192.168.1.2", 200),
        ("[::1]:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("octavo:8000", 200),
        ("printer.local", 200),
        ("svc.cluster.internal:80", 200),
        ("a.example:8000", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.internal.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_without_keys_a_page_that_points_its_name_at_this_machine_cannot_read(host: str, status: int) -> None:
    client = Client(config=ServerConfig(allowed_origins=("https://a.example",)))
    reply = client.get("/v1/models", headers={"host": host})
    assert reply.status == status
    if status == 403:
        assert reply.error["code"] == "permission_denied"
        assert "--allowed-origins" in reply.error["message"]
    known = {"origin": "https://a.example"}
    assert client.post("/v1/chat/completions", chat(), headers={"host": host, **known}).status == status
    twice = [("host", "localhost"), ("host", host)]
    assert client.get("/v1/models", headers=twice).status == status


def test_without_keys_a_name_that_the_flags_give_is_known() -> None:
    client = Client(config=ServerConfig(host="The.Host", admin_host="admin.host"))
    for name, status in (("the.host:8000", 200), ("admin.host", 200), ("localhost", 200), ("other.host", 403)):
        assert client.get("/v1/models", headers={"host": name}).status == status


def test_any_host_may_ask_the_probes_a_unix_socket_and_who_allows_all_or_has_keys() -> None:
    rebound = {"host": "evil.example"}
    client = Client()
    assert client.get("/v1/models", headers=rebound).status == 403
    assert [client.get(path, headers=rebound).status for path in sorted(OPEN)] == [200, 200, 200]
    below = {"root_path": "/llm"}
    assert client.get("/llm/live", headers=rebound, scope=below).status == 200
    assert client.get("/llm/version", headers=rebound, scope=below).status == 403
    for server in (("/run/octavo.sock", None), None):
        assert client.get("/v1/models", headers=rebound, scope={"server": server}).status == 200
    everyone = Client(config=ServerConfig(allowed_origins=("*",)))
    assert everyone.get("/v1/models", headers=rebound).status == 200
    assert Client(config=KEYS).get("/v1/models", headers={**rebound, **bearer("first key")}).status == 200
