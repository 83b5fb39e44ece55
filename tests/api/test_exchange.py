"""Routing, probes, media types, and what happens when the engine fails or the client leaves."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from fake_engine import Client, FakeEngine, chat, completion
from one_model import OneModel
from starlette.routing import Route
from starlette.types import Message

from octavo import __version__
from octavo.api.desk import Desk
from octavo.api.exchange import Answer
from octavo.api.limits import Limits
from octavo.errors import EngineDead, InvalidRequest, Overloaded, RequestFailed

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def test_probes() -> None:
    client = Client()
    assert client.get("/live").status == client.get("/ready").status == client.get("/health").status == 200
    assert client.get("/version").json == {"version": __version__}
    assert client.get("/metrics").body.startswith(b"# HELP octavo_up It is.\n# TYPE octavo_up gauge\noctavo_up 1.0\n")
    assert client.request("HEAD", "/live").status == 200


@pytest.mark.parametrize(
    ("engine", "code"),
    [(None, "model_loading"), (FakeEngine(ready=False), "model_loading"), (FakeEngine(ready=False, dead=True), None)],
)
def test_a_server_that_cannot_generate_says_so(engine: FakeEngine | None, code: str | None) -> None:
    client = Client()
    client.models.engine = engine
    assert client.get("/live").status == 200
    for reply in (client.get("/ready"), client.get("/health"), client.post(CHAT, chat()), client.get("/v1/models")):
        assert (reply.status, reply.error["code"]) == (503, code)
        assert (reply.header("retry-after") == "1") == (code is not None)
    client.models.engine = FakeEngine()
    assert client.post(CHAT, chat()).status == 200
    client.app.state.desk.draining = True
    assert client.post(CHAT, chat()).error["code"] == client.get("/ready").error["code"] == "shutting_down"


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/", "/chat", "//", "/v1/models/../live"])
def test_unknown_paths(path: str) -> None:
    reply = Client().post(path, {})
    assert reply.status in (404, 405)
    assert reply.error["type"] == "invalid_request_error"
    if reply.status == 404:
        assert reply.error["message"] == f"Invalid URL (POST {path})"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/v1/chat/completions/", "POST /v1/chat/completions"),
        ("/v1/v1/completions", "POST /v1/completions"),
        ("/models", "GET /v1/models"),
        ("/v1/tokenize", "POST /tokenize"),
        ("/v1/chat/completion", "POST /v1/chat/completions"),
    ],
)
def test_a_path_that_is_nearly_one_names_it(path: str, meant: str) -> None:
    for root in ("", "/llm"):
        reply = Client().request("POST", root + path, data=b"{}", scope={"root_path": root})
        assert reply.status == 404
        assert reply.error["message"] == f"Invalid URL (POST {root + path}); did you mean {meant}?"


def test_wrong_methods_name_the_right_one() -> None:
    client = Client()
    for route in client.app.routes:
        assert isinstance(route, Route)
        path = route.path.replace("{model:path}", "m")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
            named = method == "GET" and path.startswith("/v1/admin/models/")  # a model's, whose name has slashes
            if method not in (route.methods or ()) and not named:
                reply = client.request(method, path)
                assert reply.status == 405
                assert set((reply.header("allow") or "").split(", ")) == route.methods
                assert f"it takes {reply.header('allow')}" in reply.body.decode()
        assert client.request("OPTIONS", path).status == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-encoding": "gzip"},
        {"content-encoding": "br, gzip"},
    ],
)
def test_other_media_are_refused(headers: dict[str, str]) -> None:
    reply = Client().post(CHAT, chat(), headers=headers)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_type")
    without = Client().request("POST", CHAT, data=b"{}")
    assert without.status == 415


def test_charsets_and_identity_are_fine() -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
    assert Client().post(CHAT, chat(), headers=headers).status == 200


def test_request_ids_are_the_servers_own() -> None:
    client = Client()
    ids = {client.get("/live", headers={"x-request-id": "mine"}).header("x-request-id") for _ in range(5)}
    assert len(ids) == 5
    assert "mine" not in ids


def test_the_access_log_holds_neither_prompts_nor_queries(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Client().post(CHAT, chat("my secret"), scope={"query_string": b"token=secret"})
        Client().get("/evil\r\nforged line")
    assert "POST /v1/chat/completions 200" in caplog.text
    assert "secret" not in caplog.text
    assert "\nforged" not in caplog.text


ERRORS = [
    (InvalidRequest("bad", param="prompt"), 400, None),
    (Overloaded("full"), 503, "1"),
    (RequestFailed("broke"), 500, None),
    (EngineDead("gone"), 503, None),
    (ZeroDivisionError("secret detail"), 500, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize(("error", "status", "retry_after"), ERRORS)
def test_errors_before_the_first_token_keep_their_status(
    error: Exception, status: int, retry_after: str | None, path: str, stream: bool
) -> None:
    body = chat(stream=stream) if path == CHAT else completion(["a", "b"], stream=stream)
    client = Client(FakeEngine(error=error))
    reply = client.post(path, body)
    assert reply.status == status
    assert reply.complete
    assert reply.header("retry-after") == retry_after
    assert "secret" not in reply.error["message"]
    assert client.engine.running == set()


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("error", [RequestFailed("broke"), EngineDead("gone"), ZeroDivisionError("secret detail")])
def test_a_stream_that_fails_ends_with_an_error_and_no_end(error: Exception, path: str) -> None:
    client = Client(FakeEngine(error=error, fail_after=3))
    reply = client.post(path, {**chat(stream=True), **completion(stream=True)})
    assert reply.status == 200
    assert not reply.complete
    *chunks, last = reply.events
    assert "".join(str(chunk["choices"][0].get("text", "")) for chunk in chunks) in ("Hel", "")
    assert last["error"]["type"] == "server_error"
    assert "secret" not in last["error"]["message"]
    assert "[DONE]" not in reply.events


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        ("/v1/completions", "text/event-stream; charset=utf-8", b'data: {"error":{"message":"broken",'),
        ("/v1/messages", "text/event-stream; charset=utf-8", b'event: error\ndata: {"type":"error","error":{'),
        ("/api/chat", "application/x-ndjson", b'{"error":"broken"}\n'),
        ("/v1/completions", "application/json", None),
        ("/v1/messages", "application/json", None),
    ],
)
def test_only_a_stream_of_events_gets_an_event_when_it_fails(path: str, kind: str, told: bytes | None) -> None:
    async def scenario() -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError("nothing is read any more")

        answer = Answer(send, Desk(Limits(), OneModel()))
        headers = [(b"content-type", kind.encode())]
        await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
        await answer.send({"type": "http.response.body", "body": b"{", "more_body": True})
        await answer.fail(RequestFailed("broken"), {"state": {}, "path": path}, receive)
        assert [message["more_body"] for message in sent[1:]] == [True] * (1 + bool(told)), "cut, not ended"
        assert told is None or sent[-1]["body"].startswith(told)

    asyncio.run(scenario())


def test_an_answer_in_one_piece_that_fails_is_an_error() -> None:
    reply = Client(FakeEngine(error=RequestFailed("broke"), fail_after=3)).post(CHAT, chat())
    assert (reply.status, reply.error["message"]) == (500, "broke")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_client_that_leaves_while_it_waits_aborts_its_request(path: str, stream: bool) -> None:
    client = Client(FakeEngine(hang_after=0))
    body = chat(stream=stream) if path == CHAT else completion(["a", "b"], stream=stream)
    prompts = 1 if path == CHAT else 2
    reply = client.post(path, body, leave_when=lambda: len(client.engine.running) == prompts)
    assert reply.parts == []
    assert len(client.engine.aborted) == prompts
    assert client.engine.running == set()


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_client_that_leaves_a_stream_aborts_its_request(path: str) -> None:
    client = Client(FakeEngine(hang_after=5))
    body = chat(stream=True) if path == CHAT else completion(["a", "b"], stream=True)
    reply = client.post(path, body, leave_after=2)
    assert len(reply.parts) == 2
    assert not reply.complete
    assert len(client.engine.aborted) == (1 if path == CHAT else 2)


def test_a_client_that_leaves_while_sending_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        client = Client()
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, object]:
            return messages.pop(0)

        async def send(message: dict[str, object]) -> None:
            raise AssertionError(message)

        headers = [(b"content-type", b"application/json")]
        await client.app({"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert "(client left)" in caplog.text


def test_a_shutdown_tells_the_client() -> None:
    async def scenario(stream: bool) -> None:
        client = Client(FakeEngine(hang_after=3))
        parts: list[dict[str, object]] = []

        async def send(message: dict[str, object]) -> None:
            parts.append(message)

        pending = [
            {
                "type": "http.request",
                "body": b'{"model":"fake-model","prompt":"x","stream":%b}' % (b"true" if stream else b"false"),
            }
        ]

        async def receive() -> dict[str, object]:
            return pending.pop() if pending else await asyncio.Event().wait()  # type: ignore[return-value]

        scope = {
            "type": "http",
            "method": "POST",
            "path": COMPLETION,
            "headers": [(b"content-type", b"application/json")],
        }
        task = asyncio.create_task(client.app(scope, receive, send))
        while not client.engine.running or (stream and len(parts) < 4):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.engine.running == set()
        assert parts[0]["status"] == (200 if stream else 503)
        assert b"shutting_down" in parts[-1]["body"]  # type: ignore[operator]
        assert parts[-1].get("more_body", False) == stream

    asyncio.run(scenario(stream=True))
    asyncio.run(scenario(stream=False))


def test_the_api_never_imports_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, octavo.api\n"
        "for found in pkgutil.walk_packages(octavo.api.__path__, 'octavo.api.'): importlib.import_module(found.name)\n"
        "assert not {'torch', 'transformers', 'pydantic', 'fastapi'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
