"""Bad inputs 20 to 25: who may ask."""

from __future__ import annotations

import json
import time

import pytest
from qa_server import KEY, QaServer, Reply, refused
from starlette.routing import Route

from octavo.api.app import build_app
from octavo.config import ServerConfig

pytestmark = pytest.mark.qa

OPEN = ("/live", "/ready", "/health")
ROUTES = sorted(
    {
        (method, route.path.replace("{model:path}", "tiny"))
        for route in build_app(None, ServerConfig()).routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
)


def unauthorized(reply: Reply) -> None:
    refused(reply, 401, code="invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Bearer")


def ask(server: QaServer, *authorizations: bytes, path: str = "/v1/models", method: str = "GET") -> Reply:
    lines = b"".join(b"authorization: %b\r\n" % value for value in authorizations)
    return server.raw(
        b"%b %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b\r\n" % (method.encode(), path.encode(), lines)
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_row_20_every_route_needs_a_key(keyed: QaServer, method: str, path: str) -> None:
    if path in OPEN:
        assert ask(keyed, path=path, method=method).status == 200
    elif method == "HEAD":
        assert keyed.talk(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()).startswith(
            b"HTTP/1.1 401 "
        )
    else:
        unauthorized(ask(keyed, path=path, method=method))


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


def test_row_24_a_key_in_the_query_is_no_key_and_never_logged(keyed: QaServer) -> None:
    for name in ("key", "api_key", "token", "access_token", "authorization"):
        unauthorized(ask(keyed, path=f"/v1/models?{name}={KEY}"))
    unauthorized(ask(keyed, b"Bearer wrong-secret", path="/v1/models?other=wrong-secret"))
    assert KEY not in keyed.log.read_text()
    assert "wrong-secret" not in keyed.log.read_text()


@pytest.mark.parametrize(
    "path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/batches/batch_1", "/v1/files/file-1"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_row_25_what_others_stored(server: QaServer, method: str, path: str) -> None:
    """Nothing is stored here, so there is nothing to read or cancel."""
    refused(server.get(path, "content-length: 0", method=method), 404)


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
