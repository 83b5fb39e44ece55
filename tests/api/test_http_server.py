"""The real server on a real socket: deadlines, limits of the transport, and connections that end early."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine, chat, completion
from fake_server import run, serving
from one_model import OneModel

from octavo.api.app import build_app
from octavo.api.limits import Limits, possible_connections
from octavo.api.server import Server, bind, bind_admin
from octavo.config import ServerConfig
from octavo.errors import ConfigError, RequestFailed
from octavo.metrics import render

CHAT = "/v1/chat/completions"
HEAD = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
QUICK = Limits(header_seconds=0.2, body_seconds=0.2, shutdown_seconds=1)


async def talk(port: int, *pieces: bytes) -> bytes:
    """Send, then read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    data = b""
    try:
        while part := await reader.read(65536):
            data += part
    except ConnectionResetError:
        pass
    writer.close()
    return data


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


# ---------------------------------------------------------------------- with OpenAI's client


def client(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0)


def test_openais_client_streams_and_asks() -> None:
    async def scenario() -> None:
        async with serving(api_key=("k",)) as (_, port), client(port) as api:
            whole = await api.chat.completions.create(**chat(), logprobs=True, top_logprobs=1)
            stream = await api.chat.completions.create(**chat(), stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == whole.choices[0].message.content == "Hello, wörld! 0"
            completed = await api.completions.create(**completion(["a", "b"]), stream=True)
            pieces = [(chunk.choices[0].index, chunk.choices[0].text) async for chunk in completed]
            for index in (0, 1):
                assert "".join(piece for which, piece in pieces if which == index) == "Hello, wörld! 0"
            assert [model.id async for model in api.models.list()] == ["fake-model"]
            with pytest.raises(openai.BadRequestError) as caught:
                await api.chat.completions.create(**chat(), n=0)
            assert (caught.value.param, caught.value.code) == ("n", "integer_below_min_value")

    run(scenario)


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_a_stream_that_fails_raises_in_openais_client(path: str) -> None:
    async def scenario() -> None:
        engine = FakeEngine(error=RequestFailed("broke"), fail_after=3)
        async with serving(engine) as (_, port), client(port) as api:
            received: list[Any] = []

            async def consume() -> None:
                if path == "chat":
                    stream: Any = await api.chat.completions.create(**chat(), stream=True)
                else:
                    stream = await api.completions.create(**completion(), stream=True)
                async for chunk in stream:
                    received.extend([chunk])

            with pytest.raises(openai.APIError, match="broke"):
                await consume()
            assert len(received) >= 3

    run(scenario)


def test_a_stream_that_fails_is_cut_on_the_wire() -> None:
    async def scenario() -> None:
        async with (
            serving(FakeEngine(error=RequestFailed("broke"), fail_after=3)) as (_, port),
            httpx.AsyncClient() as web,
        ):
            received = bytearray()

            async def consume() -> None:
                async with web.stream("POST", f"http://127.0.0.1:{port}{CHAT}", json=chat(stream=True)) as answer:
                    assert answer.status_code == 200
                    async for part in answer.aiter_raw():
                        received.extend(part)

            with pytest.raises(httpx.RemoteProtocolError):
                await consume()
            assert received.endswith(b'"code":null}}\n\n')
            assert b"[DONE]" not in received

    run(scenario)


# ---------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(stream: bool) -> None:
    async def scenario() -> None:
        engine = FakeEngine(hang_after=3)
        async with serving(engine) as (server, port):
            data = json.dumps(chat(stream=stream)).encode()
            head = HEAD.replace(b"/tokenize", CHAT.encode()) + b"content-length: %d\r\n\r\n" % len(data)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + data)
            if stream:
                await reader.readuntil(b"data: ")
            await until(lambda: bool(engine.running))
            writer.close()
            await until(lambda: not engine.running)
            assert len(engine.aborted) == 1
            await until(lambda: not server.server_state.connections)

    run(scenario)


def test_a_client_that_leaves_with_requests_in_line_aborts_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        engine = FakeEngine(hang_after=3)
        async with serving(engine) as (server, port):
            data = json.dumps(chat()).encode()
            request = HEAD.replace(b"/tokenize", CHAT.encode()) + b"content-length: %d\r\n\r\n" % len(data) + data
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request * 3 + request[:100])
            await until(lambda: bool(engine.running))
            writer.close()
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            assert len(engine.calls) == len(engine.aborted) == 1

    run(scenario)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_does_not_read_stops_only_its_own_stream() -> None:
    async def scenario() -> None:
        engine = FakeEngine(reply=lambda prompt, _: "x" * (20_000 if len(prompt) == 2 else 3), max_model_len=10**6)
        async with serving(engine) as (_, port):
            data = json.dumps(completion("a", stream=True, max_tokens=20_000)).encode()
            stalled = socket.create_connection(("127.0.0.1", port))
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = HEAD.replace(b"/tokenize", b"/v1/completions")
            stalled.sendall(head + b"content-length: %d\r\n\r\n" % len(data) + data)
            async with httpx.AsyncClient() as web:
                for _ in range(3):
                    reply = await web.post(f"http://127.0.0.1:{port}/v1/completions", json=completion("ab"))
                    assert reply.json()["choices"][0]["text"] == "xxx"
            assert len(engine.running) == 1
            stalled.close()
            await until(lambda: not engine.running)

    run(scenario)


def test_clients_that_never_read_are_cut_off_and_their_requests_end() -> None:
    async def scenario() -> None:
        engine = FakeEngine(reply=lambda prompt, _: "x" * (10**6 if len(prompt) == 2 else 3), max_model_len=10**7)
        limits = Limits(unread_seconds=0.1)
        async with serving(engine, limits=limits) as (server, port), httpx.AsyncClient() as web:
            data = json.dumps(completion("a", stream=True, max_tokens=10**6)).encode()
            head = HEAD.replace(b"/tokenize", b"/v1/completions")
            stalled = []
            for _ in range(3):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(head + b"content-length: %d\r\n\r\n" % len(data) + data)
                stalled.append(client)
            await until(lambda: len(engine.running) == 3)
            while engine.running:
                reply = await web.post(f"http://127.0.0.1:{port}/v1/completions", json=completion("ab"))
                assert reply.json()["choices"][0]["text"] == "xxx"
            assert len(engine.aborted) == 3
            await until(lambda: len(server.server_state.connections) <= 1)  # httpx keeps its own
            for client in stalled:
                client.close()

    run(scenario)


def test_a_slow_reader_who_does_read_gets_everything() -> None:
    async def scenario() -> None:
        engine = FakeEngine(reply=lambda prompt, _: "x" * 5000, max_model_len=10**6)
        async with serving(engine, limits=Limits(unread_seconds=0.2)) as (_, port):
            data = json.dumps(completion("a", stream=True, max_tokens=5000)).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = HEAD.replace(b"/tokenize", b"/v1/completions")
            writer.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(data) + data)
            answer = b""
            while part := await reader.read(16384):
                answer += part
                await asyncio.sleep(0)
            assert b"data: [DONE]" in answer
            writer.close()

    run(scenario)


# ---------------------------------------------------------------------- what arrives malformed

BAD_REQUESTS = [
    (b"\x16\x03\x01garbage\r\n\r\n", 400, 405),
    (b"hello\r\n\r\n", 400, 405),
    (b"FOO /live HTTP/1.1\r\nhost: localhost\r\n\r\n", 405, 405),
    (b"CONNECT x:1 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, 405),
    (b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\n\r\n", 414, 414),
    (b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", 431, 431),
    (b"GET /live HTTP/1.1\r\na: " + b"b" * 2**20 + b"\r\n\r\n", 431, 431),
    (HEAD + b"content-length: -1\r\n\r\n", 400, 400),
    (HEAD + b"content-length: abc\r\n\r\n", 400, 400),
    (HEAD + b"content-length:\r\n\r\n", 400, 400),
    (HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, 400),
    (HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400, 400),
    (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400, 400),
    (HEAD + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{}", 400, 400),
    (b"GET /live HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400, 400),
]


@pytest.mark.parametrize(("data", "low", "high"), BAD_REQUESTS)
def test_malformed_requests_are_refused_and_closed(data: bytes, low: int, high: int) -> None:
    async def scenario() -> None:
        async with serving() as (_, port):
            answer = await talk(port, data)
            assert low <= status(answer) <= high
            assert body(answer)["error"]["type"] == "invalid_request_error"
            assert b"x-request-id: " in answer
            assert status(await talk(port, b"GET /live HTTP/1.1\r\nconnection: close\r\n\r\n")) == 200

    run(scenario)


def test_slow_requests_are_closed_at_their_deadline() -> None:
    async def scenario() -> None:
        async with serving(limits=QUICK) as (server, port):
            silent = talk(port)
            slow_head = talk(port, b"GET /live HTTP/1.1\r\nhost:")
            slow_body = talk(port, HEAD + b"content-length: 100\r\n\r\n{")
            answers = await asyncio.gather(silent, slow_head, slow_body)
            assert [status(answer) for answer in answers] == [408, 408, 408]
            await until(lambda: not server.server_state.connections)
            assert not server.server_state.tasks
            counted = render([server.desk.traffic])
            assert b'outcome="complete",path="none",status="408"} 2.0' in counted
            assert b'outcome="left",path="/tokenize",status="0"} 1.0' in counted

    run(scenario)


def test_deadlines_spare_a_long_answer_and_the_next_request() -> None:
    async def scenario() -> None:
        engine = FakeEngine(step_seconds=0.05)
        async with serving(engine, limits=QUICK) as (_, port), httpx.AsyncClient() as web:
            for _ in range(2):
                reply = await web.post(f"http://127.0.0.1:{port}{CHAT}", json=chat())
                assert reply.status_code == 200

    run(scenario)


def test_a_large_body_has_as_long_as_it_arrives_at_a_fair_speed() -> None:
    """The first half buys the time for the second; a client that sends nothing more is refused all the same."""

    async def scenario() -> None:
        limits = replace(QUICK, body_bytes_per_second=100)
        body = json.dumps({"model": "fake-model", "prompt": "x" * 200}).encode()
        head = HEAD + b"content-length: %d\r\n\r\n" % len(body)
        async with serving(FakeEngine(max_model_len=1000), limits=limits) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + body[:100])
            refused = asyncio.create_task(talk(port, head + body[:10]))
            assert status(await refused) == 408  # after 0.3 s, when the other has 0.9 s left
            writer.write(body[100:])
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()

    run(scenario)


def test_a_body_over_the_limit_is_refused_while_it_is_being_sent() -> None:
    async def scenario() -> None:
        async with serving(limits=Limits(body_bytes=1000)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"content-length: 2000\r\nexpect: 100-continue\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"413"
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n")
            assert (await reader.readline()).split()[1] == b"413"
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n")
            while await reader.read(65536):  # a sender that goes on for ever is cut
                pass
            writer.close()

    run(scenario)


def test_requests_may_be_pipelined() -> None:
    async def scenario() -> None:
        async with serving() as (_, port):
            data = b'{"prompt": "a"}'
            tokenize = HEAD + b"content-length: %d\r\n\r\n" % len(data) + data
            answer = await talk(port, tokenize + b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n")
            assert answer.count(b"HTTP/1.1 200") == 2
            assert answer.index(b'"tokens"') < answer.index(b'"version"')

    run(scenario)


def test_a_connection_with_too_many_requests_in_line_is_closed() -> None:
    async def scenario() -> None:
        engine = FakeEngine(hang_after=3)
        async with serving(engine, Limits(pipelined_requests=3)) as (server, port):
            data = json.dumps(chat()).encode()
            first = HEAD.replace(b"/tokenize", CHAT.encode()) + b"content-length: %d\r\n\r\n" % len(data) + data
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first + b"GET /version HTTP/1.1\r\n\r\n" * 3)
            await until(lambda: bool(engine.running))
            writer.close()
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            offer = b"connection: upgrade\r\nupgrade: h2c\r\n"  # each declined within the one before
            for extra in (b"", offer):
                answer = await talk(port, first + (b"GET /version HTTP/1.1\r\n" + extra + b"\r\n") * 2000)
                assert not answer
                await until(lambda: not server.server_state.connections and not server.server_state.tasks)
                assert not engine.running

    run(scenario)


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_javas_offer_of_http2_is_declined_without_losing_the_body(framing: str) -> None:
    async def scenario() -> None:
        async with serving() as (_, port):
            data = b'{"prompt": "ab"}'
            head = HEAD + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
            if framing == "length":
                request = [head + b"content-length: %d\r\n\r\n" % len(data), data[:3], data[3:]]
            else:
                request = [head + b"transfer-encoding: chunked\r\n\r\n10\r\n", data, b"\r\n0\r\n\r\n"]
            last = b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n"
            answer = await talk(port, *request, last)
            assert b'"tokens":[256,97,98]' in answer
            assert b'"version"' in answer

    run(scenario)


# ---------------------------------------------------------------------- sockets and shutdown


def test_shutdown_lets_requests_finish_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        engine = FakeEngine(gate=asyncio.Event())
        async with (
            serving(engine) as (server, port),
            httpx.AsyncClient() as web,
            httpx.AsyncClient() as idle,
            httpx.AsyncClient() as new,
        ):
            url = f"http://127.0.0.1:{port}"
            await idle.get(f"{url}/live")  # a connection that is kept open
            reply = asyncio.create_task(web.post(f"{url}{CHAT}", json=chat()))
            await until(lambda: bool(engine.running))
            server.stop()
            for client in (idle, new):
                for answer in (await client.get(f"{url}/ready"), await client.post(f"{url}{CHAT}", json=chat())):
                    assert (answer.status_code, answer.headers["connection"]) == (503, "close")
                    assert answer.json()["error"]["code"] == "shutting_down"
            assert not reply.done()
            engine.gate.set()
            assert (await reply).json()["choices"][0]["message"]["content"] == "Hello, wörld! 0"

            async def ask_until_nobody_answers() -> None:
                while True:
                    await web.get(f"{url}/live")

            with pytest.raises(httpx.TransportError):
                await ask_until_nobody_answers()

    run(scenario)


def test_idle_connections_and_half_sent_requests_hold_up_no_shutdown() -> None:
    async def scenario() -> None:
        async with serving() as (server, port), httpx.AsyncClient() as idle:
            await idle.get(f"http://127.0.0.1:{port}/live")
            half = asyncio.create_task(talk(port, HEAD + b"content-length: 100\r\n\r\n{"))
            quarter = asyncio.create_task(talk(port, b"GET /live HT"))
            await until(lambda: len(server.server_state.connections) == 3 and len(server.server_state.tasks) == 1)
            server.stop()
            assert b"shutting_down" in await half
            assert await quarter == b""

    run(scenario)


def test_more_connections_than_there_may_be_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(limits=Limits(connections=2)) as (_, port):
            request = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in kept:
                writer.write(request)
                assert status(await reader.readuntil(b"}")) == 200
            answer = await talk(port, request)
            assert status(answer) == 503
            assert b"retry-after: 1\r\n" in answer
            await until(lambda: "2 connections are open; more are refused" in caplog.text)
            assert body(answer)["error"]["type"] == "overloaded_error"
            kept[0][1].close()
            while status(await talk(port, request.replace(b"host", b"connection: close\r\nhost"))) != 200:
                pass
            kept[1][1].close()

    run(scenario)


def test_the_admin_port_answers_while_the_other_port_is_full() -> None:
    async def scenario() -> None:
        config = ServerConfig(port=0, admin_port=0)
        limits = Limits(connections=1, admin_connections=1)
        server = Server(build_app(OneModel(FakeEngine()), config, limits), config)
        listener, admin = bind(config), bind_admin(config)
        assert admin is not None
        task = asyncio.create_task(server.run_on(listener, admin))
        await server.listening.wait()
        request = b"GET /live HTTP/1.1\r\n\r\n"
        kept = []
        for port in (each.getsockname()[1] for each in (listener, admin)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            kept.append(writer)
            writer.write(request)
            assert status(await reader.readuntil(b"}")) == 200
            assert status(await talk(port, request)) == 503  # each port has its own bound
        server.stop()
        await task
        for writer in kept:
            writer.close()

    run(scenario)


def test_without_descriptors_existing_streams_live_and_new_ones_come_later() -> None:
    async def scenario() -> None:
        engine = FakeEngine(gate=asyncio.Event())
        async with serving(engine) as (_, port):
            data = json.dumps(chat(stream=True)).encode()
            head = HEAD.replace(b"/tokenize", CHAT.encode()) + b"connection: close\r\n"
            stream = asyncio.create_task(talk(port, head + b"content-length: %d\r\n\r\n" % len(data) + data))
            await until(lambda: bool(engine.running))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            held = [os.open(os.devnull, os.O_RDONLY)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 20, hard))
            try:
                client = socket.socket()
                with suppress(OSError):
                    while True:
                        held.append(os.open(os.devnull, os.O_RDONLY))
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(client, ("127.0.0.1", port))
                with suppress(ConnectionResetError):
                    assert await loop.sock_recv(client, 100) == b""  # let go of, not left waiting
                engine.gate.set()
                assert b"data: [DONE]" in await stream
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in held:
                    os.close(descriptor)
                client.close()
            assert status(await talk(port, b"GET /live HTTP/1.1\r\nconnection: close\r\n\r\n")) == 200

    run(scenario)


@pytest.mark.parametrize(
    ("soft", "hard", "possible", "raised_to"),
    [
        (1024, 2**20, 8192, 8192 + 128),
        (1024, 4096, 4096 - 128, 4096),
        (2**16, 2**16, 8192, None),
        (100, 100, 1, 100),
        (1024, resource.RLIM_INFINITY, 8192, 8192 + 128),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 8192, None),
    ],
)
def test_as_many_connections_as_there_can_be_descriptors_for(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, possible: int, raised_to: int | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: asked.append(both))
    assert possible_connections(8192) == possible
    assert asked == ([] if raised_to is None else [(raised_to, hard)])


def test_the_admin_port_has_the_metrics_and_nothing_else() -> None:
    async def scenario() -> None:
        config = ServerConfig(port=0, admin_port=0, api_key=("k",))
        server = Server(build_app(OneModel(FakeEngine()), config), config)
        listener, admin = bind(config), bind_admin(config)
        assert admin is not None
        public_url, admin_url = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (listener, admin))
        task = asyncio.create_task(server.run_on(listener, admin))
        await server.listening.wait()
        async with httpx.AsyncClient(headers={"authorization": "Bearer k"}) as web:
            assert (await web.post(f"{public_url}{CHAT}", json=chat())).status_code == 200
            assert (await web.get(f"{public_url}/metrics")).status_code == 404
            assert "octavo:http_requests_total" in (await web.get(f"{admin_url}/metrics")).text
            assert (await web.get(f"{admin_url}/ready")).status_code == 200
            assert (await web.post(f"{admin_url}{CHAT}", json=chat())).status_code == 404
            without = await web.get(f"{admin_url}/metrics", headers={"authorization": ""})
            assert without.status_code == 401
        server.stop()
        await task

    run(scenario)


@pytest.mark.parametrize("at_once", [False, True])
def test_shutdown_ends_what_does_not_finish_with_an_error(at_once: bool) -> None:
    async def scenario() -> None:
        engine = FakeEngine(hang_after=3)
        async with serving(engine, limits=QUICK) as (server, port):
            data = json.dumps(chat(stream=True)).encode()
            head = HEAD.replace(b"/tokenize", CHAT.encode()) + b"content-length: %d\r\n\r\n" % len(data)
            answer = asyncio.create_task(talk(port, head + data))
            await until(lambda: engine.steps == 3)
            server.stop()
            if at_once:
                server.stop_now()
            assert b'"code":"shutting_down"' in await answer
            assert engine.aborted

    run(scenario)


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"port {port} on 127.0.0.1 is already in use; choose another with --port"
        ):
            bind(ServerConfig(port=port))
        with pytest.raises(ConfigError, match="already in use; choose another with --admin-port"):
            bind_admin(ServerConfig(admin_port=port))
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind(ServerConfig(host="203.0.113.1", port=0))


def test_a_unix_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "octavo.sock"
        for _ in range(2):  # the second finds what the first left behind
            async with serving(uds=str(path)):
                assert path.stat().st_mode & 0o777 == 0o600
                async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as web:
                    assert (await web.get("http://octavo/live")).status_code == 200
                with pytest.raises(ConfigError, match="another server listens"):
                    bind(ServerConfig(uds=str(path)))

    run(scenario)


def test_tls(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", certificate, "-addext", "subjectAltName=IP:127.0.0.1"], check=True)

    async def scenario() -> None:
        context = ssl.create_default_context(cafile=certificate)
        async with (
            serving(ssl_keyfile=key, ssl_certfile=certificate) as (_, port),
            httpx.AsyncClient(verify=context) as web,
        ):
            assert (await web.get(f"https://127.0.0.1:{port}/live")).status_code == 200

    run(scenario)


@pytest.mark.parametrize("case", ["junk", "no certificate", "no key", "encrypted key", "another's key"])
def test_tls_files_that_do_not_work_are_found_when_binding(tmp_path: Path, case: str) -> None:
    certificate, key, other = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "other.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=x"]
    lock = ["-passout", "pass:sesame"] if case == "encrypted key" else ["-nodes"]
    subprocess.run([*make, *lock, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    subprocess.run([*make, "-nodes", "-keyout", other, "-out", tmp_path / "c"], check=True, capture_output=True)
    match case:
        case "junk":
            certificate.write_text("-----BEGIN CERTIFICATE-----\njunk\n")
        case "no certificate":
            certificate.unlink()
        case "no key":
            key.unlink()
        case "another's key":
            key = other
    missing = {"no certificate": certificate, "no key": key}
    expected = {
        "encrypted key": f"the private key {key} is encrypted",
        **{name: f"cannot read {path}: No such file or directory" for name, path in missing.items()},
    }.get(case, f"--ssl-certfile {certificate} and --ssl-keyfile {key} are no certificate chain and its private key")
    with pytest.raises(ConfigError) as caught:
        bind(ServerConfig(port=0, ssl_certfile=str(certificate), ssl_keyfile=str(key)))
    assert caught.value.message.startswith(expected)
    assert "\n" not in caught.value.message
