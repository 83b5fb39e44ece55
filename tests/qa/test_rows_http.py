"""Bad inputs 1 to 19: what is wrong with the bytes before anything is said in JSON."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time

import pytest
from qa_server import BODY_LIMIT, QaServer, parse, read_to_end, refused

pytestmark = pytest.mark.qa

CHAT, TOKENIZE = "/v1/chat/completions", "/tokenize"
JSON = "content-type: application/json"


def tokenize_head(server: QaServer, *headers: str) -> bytes:
    return server.head(TOKENIZE, JSON, *headers) + b"\r\n"


def count_of(raw: bytes) -> int:
    """How many answers a connection got."""
    return len(re.findall(rb"HTTP/1\.1 \d{3} ", raw))


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01garbage\r\n\r\n", b"hello\r\n\r\n", bytes(range(256)) + b"\r\n\r\n"]
)
def test_row_01_garbage_instead_of_http(server: QaServer, garbage: bytes) -> None:
    reply = server.raw(garbage)
    assert reply.status in (400, 405)
    assert reply.error["type"] == "invalid_request_error"


def test_row_02_request_line_of_a_megabyte(server: QaServer) -> None:
    refused(server.raw(b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"), 414)


def test_row_03_ten_thousand_headers(server: QaServer) -> None:
    refused(server.raw(b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n"), 431)


def test_row_03_one_header_of_a_megabyte(server: QaServer) -> None:
    refused(server.raw(b"GET /live HTTP/1.1\r\na: " + b"b" * 2**20 + b"\r\n\r\n"), 431)


@pytest.mark.parametrize("length", ["-1", "abc", "", "1 2", "0x10", "9" * 30])
def test_row_04_content_length_that_is_no_number(server: QaServer, length: str) -> None:
    reply = server.raw(tokenize_head(server, f"content-length: {length}"), b"{}")
    assert reply.status in (400, 413)
    assert reply.error["type"] == "invalid_request_error"


def test_row_05_body_shorter_than_declared(impatient: QaServer) -> None:
    refused(impatient.raw(tokenize_head(impatient, "content-length: 100"), b"{"), 408)


def trickled(server: QaServer, connections: list[socket.socket], drop: bytes) -> list[bytes]:
    """Send one byte after another on every connection, the canary in between, until the server has closed them all."""
    answers = dict.fromkeys(connections, b"")
    open_ones = set(connections)
    while open_ones:
        assert server.canary() == server.golden
        for connection in list(open_ones):
            try:
                connection.sendall(drop)
                answers[connection] += connection.recv(65536, socket.MSG_DONTWAIT) or b""
            except BlockingIOError:
                continue
            except OSError:
                pass
            else:
                if not answers[connection]:
                    continue
            open_ones.discard(connection)
            answers[connection] += read_to_end(connection)
            connection.close()
    return list(answers.values())


def test_row_06_headers_that_trickle_on_200_connections(impatient: QaServer) -> None:
    connections = [impatient.connect() for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /live HTTP/1.1\r\nx: ")
    answers = [answer for answer in trickled(impatient, connections, b"x") if answer]
    for answer in answers:
        refused(parse(answer), 408)
    assert answers, "every one was reset before its answer could be read"


def test_row_07_bodies_that_trickle(impatient: QaServer) -> None:
    connections = [impatient.connect() for _ in range(50)]
    for connection in connections:
        connection.sendall(tokenize_head(impatient, "content-length: 100000"))
    answers = [answer for answer in trickled(impatient, connections, b" ") if answer]
    for answer in answers:
        refused(parse(answer), 408)
    assert answers, "every one was reset before its answer could be read"


def test_row_08_chunked_body_over_the_limit(server: QaServer) -> None:
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(tokenize_head(server, "transfer-encoding: chunked"))
        try:
            for _ in range(40):  # more than twice the limit; the end never comes
                connection.sendall(chunk)
        except OSError:
            pass
        raw = read_to_end(connection)
    if raw:  # a reset may outrun the answer
        refused(parse(raw), 413, code="request_too_large")


def test_row_08_chunked_body_just_over_the_limit(server: QaServer) -> None:
    with server.connect() as connection:
        connection.sendall(tokenize_head(server, "transfer-encoding: chunked"))
        connection.sendall(b"%x\r\n" % BODY_LIMIT + b" " * BODY_LIMIT + b"\r\n1\r\n \r\n")
        raw = b""
        while b"}}" not in raw:  # as soon as it is crossed: the last chunk is still missing
            part = connection.recv(65536)
            assert part, raw
            raw += part
    refused(parse(raw), 413, code="request_too_large")


def test_row_09_body_of_exactly_the_limit_and_one_more(server: QaServer) -> None:
    body = b'{"model": "%b", "prompt": "x"}' % server.model.encode()
    assert server.post(TOKENIZE, body + b" " * (BODY_LIMIT - len(body))).status == 200
    refused(server.post(TOKENIZE, body + b" " * (BODY_LIMIT - len(body) + 1)), 413, code="request_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip, gzip"])
def test_row_10_compressed_bomb(server: QaServer, encoding: str) -> None:
    bomb = gzip.compress(b" " * 2**26)
    reply = server.raw(tokenize_head(server, f"content-encoding: {encoding}", f"content-length: {len(bomb)}") + bomb)
    refused(reply, 415, code="unsupported_content_type")


@pytest.mark.parametrize("chunk", [b"ffffffffffffffff\r\n", b"fffffffffffffffff\r\n", b"zz\r\n", b"-1\r\n", b"\r\n"])
def test_row_11_bad_chunk_size(server: QaServer, chunk: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(tokenize_head(server, "transfer-encoding: chunked") + chunk + b"{}" * 10)
        connection.shutdown(socket.SHUT_WR)
        raw = read_to_end(connection)
    if raw or not chunk.startswith(b"ffffffffffffffff\r"):  # that one is a size; nothing so large ever came
        reply = parse(raw)
        assert reply.status in (400, 413)
        assert reply.error["type"] == "invalid_request_error"


def test_row_11_bad_trailer(server: QaServer) -> None:
    raw = server.talk(tokenize_head(server, "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n\x00bad\x01\r\n\r\n")
    assert parse(raw).status == 400
    assert count_of(raw) == 1


def test_row_12_a_thousand_methods_nobody_knows(server: QaServer) -> None:
    """What one of them adds to the metrics, a thousand do not add to."""

    def unknown(method: bytes, path: bytes) -> None:
        reply = server.raw(method + b" " + path + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert reply.status in (400, 404, 405)
        assert reply.error["type"] == "invalid_request_error"

    for path in (b"/live", b"/v1/models", b"/nothing"):
        for method in (b"TRACE", b"CONNECT", b"PROPFIND", b"PATCH", b"FOO", b"FOO2"):
            unknown(method, path)
    before = len(server.get("/metrics").body.splitlines())
    for number in range(1000):
        unknown(b"FOO%d" % number, b"/live")
    assert len(server.get("/metrics").body.splitlines()) == before


@pytest.mark.parametrize(
    "path", ["/x", "/v1", "/v1/chat/completions/", "/v1/nothing", "/%2e%2e/etc/passwd", "/static/../x"]
)
def test_row_13_unknown_path(server: QaServer, path: str) -> None:
    assert refused(server.post(path, {}), 404).error["message"].startswith("Invalid URL (POST /")


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("GET", CHAT, "POST"), ("POST", "/live", "GET"), ("DELETE", "/v1/models", "GET")]
)
def test_row_14_known_path_wrong_method(server: QaServer, method: str, path: str, allow: str) -> None:
    reply = refused(server.get(path, "content-length: 0", method=method), 405)
    assert allow in reply.headers["allow"]


@pytest.mark.parametrize(
    "header", ["content-type: text/plain", "x: y", "content-type: multipart/form-data; boundary=-"]
)
def test_row_15_content_that_is_not_json(server: QaServer, header: str) -> None:
    reply = server.raw(server.head(CHAT, header, "content-length: 2") + b"\r\n{}")
    refused(reply, 415, code="unsupported_content_type")


def test_row_16_ten_thousand_ranges(server: QaServer) -> None:
    ranges = "range: bytes=" + ",".join(["0-"] * 10_000)
    began = time.thread_time()
    assert server.get("/v1/models", ranges).status in (200, 416)
    assert time.thread_time() - began < 1


def test_row_17_pipelined_requests_are_answered_in_order(server: QaServer) -> None:
    data = b'{"prompt": "a"}'
    first = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (
        JSON.encode(),
        len(data),
        data,
    )
    raw = server.talk(first * 20 + b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert count_of(raw) == 21
    assert raw.rindex(b'"tokens"') < raw.index(b'"version"')


def test_row_17_half_a_pipeline_then_gone(server: QaServer) -> None:
    body = json.dumps({"model": server.model, "prompt": "x", "max_tokens": 500}).encode()
    whole = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (
        JSON.encode(),
        len(body),
        body,
    )
    for cut in (10, len(whole) // 2, len(whole) - 1):
        with server.connect() as connection:
            connection.sendall(whole * 3 + whole[:cut])


@pytest.mark.parametrize("length", [BODY_LIMIT + 1, 2**40])
def test_row_18_expect_100_continue_over_the_limit(server: QaServer, length: int) -> None:
    with server.connect() as connection:
        connection.sendall(tokenize_head(server, f"content-length: {length}", "expect: 100-continue"))
        refused(parse(read_to_end(connection)), 413, code="request_too_large")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_row_19_upgrade_to_another_protocol(server: QaServer, upgrade: str) -> None:
    raw = server.talk(
        b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: %b\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % upgrade.encode(),
        half_close=True,
    )
    assert parse(raw).status == (200 if upgrade == "h2c" else 400)  # an offer of HTTP/2 may be declined


def test_row_19_http2_without_asking(server: QaServer) -> None:
    assert parse(server.talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", half_close=True)).status in (400, 405, 426, 505)
