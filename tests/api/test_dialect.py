"""Each path says what went wrong in the words of its clients, whether or not there is such a path."""

from __future__ import annotations

import pytest
from fake_engine import Client, FakeEngine

from octavo.api.limits import Limits
from octavo.config import ServerConfig
from octavo.errors import RequestFailed

KEYS = ServerConfig(api_key=("key",))


def message(path: str, body: dict) -> str:
    """The error's message, which stands where this path's clients look for it."""
    if path.startswith("/api/"):
        assert body.keys() == {"error"}
        return body["error"]
    if path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error"}
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
    else:
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
    return body["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/api/chat"])
def test_errors_have_the_shape_of_their_path(path: str) -> None:
    replies = {
        400: Client().post(path, b"{"),
        401: Client(config=KEYS).post(path, {}),
        405: Client().request("DELETE", path),
        413: Client(limits=Limits(body_bytes=1)).post(path, {}),
        503: Client(engine=FakeEngine(ready=False)).post(path, {}),
    }
    for status, reply in replies.items():
        assert reply.status == status
        assert message(path, reply.json)


@pytest.mark.parametrize("path", ["/nothing", "/v1/messages/batches", "/api/blobs/sha256:0"])
def test_paths_that_do_not_exist(path: str) -> None:
    reply = Client().post(path, {})
    assert reply.status == 404
    assert path in message(path, reply.json)


def test_a_root_path_belongs_to_no_dialect() -> None:
    reply = Client(config=ServerConfig(root_path="/api")).request("GET", "/api/nothing", scope={"root_path": "/api"})
    assert message("/nothing", reply.json)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error")]
)
def test_anthropics_types_follow_the_status(status: int, kind: str) -> None:
    path = {404: "/v1/messages/none"}.get(status, "/v1/messages")
    reply = Client(config=KEYS).post(path, {}, headers={} if status == 401 else {"x-api-key": "key"})
    assert (reply.status, reply.json["error"]["type"]) == (status, kind)


STREAMS = {
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    "/api/chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "/api/generate": {"prompt": "Hi"},
}


@pytest.mark.parametrize(("path", "body"), list(STREAMS.items()))
def test_a_client_that_leaves_aborts_its_request(path: str, body: dict) -> None:
    client = Client()
    reply = client.post(path, {"model": "fake-model", "stream": True, **body}, leave_after=5)
    assert not reply.complete
    assert len(client.engine.aborted) == 1
    assert client.engine.running == set()


@pytest.mark.parametrize(("path", "body"), list(STREAMS.items()))
def test_what_goes_wrong_before_the_first_token_is_no_stream(path: str, body: dict) -> None:
    engine = FakeEngine(error=RequestFailed("broke"))
    reply = Client(engine).post(path, {"model": "fake-model", "stream": True, **body})
    assert (reply.status, reply.header("content-type")) == (500, "application/json")
    assert message(path, reply.json) == "broke"
