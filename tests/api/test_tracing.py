"""Spans: one for each request that is work, in the trace of its caller, with numbers and never a text."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, chat, completion
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.api.app import build_app
from octavo.api.tracing import Tracing
from octavo.config import ServerConfig
from octavo.errors import ConfigError, RequestFailed

SECRET = "a secret of the caller"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Traced:
    """A client, and the spans of what it did."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(self.exporter)
        self.client = Client(engine or FakeEngine())
        self.client.app = build_app(self.client.models, self.client.config, self.client.limits, self.tracing)

    def spans(self) -> list[ReadableSpan]:
        self.tracing.flush()
        return list(self.exporter.get_finished_spans())

    def span(self) -> ReadableSpan:
        (span,) = self.spans()
        return span


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.tracing.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_numbers(traced: Traced, stream: bool) -> None:
    body = chat(SECRET, stream=stream, max_tokens=9, temperature=0.5, top_p=0.9, seed=3)
    reply = traced.client.post("/v1/chat/completions", body)
    assert reply.status == 200
    span = traced.span()
    assert span.name == "chat fake-model"
    attributes = dict(span.attributes or {})
    prompt = len(traced.client.engine.calls[0]["prompt"])
    assert {name: value for name, value in attributes.items() if name.startswith("gen_ai")} == {
        "gen_ai.provider.name": "octavo",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "fake-model",
        "gen_ai.response.model": "fake-model",
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
    }
    assert attributes["http.response.status_code"] == 200
    assert attributes["octavo.request_id"] == reply.header("x-request-id")
    assert attributes["octavo.compute_seconds"] == 0.25 * 9
    queue, prefill = span.events
    assert (queue.name, prefill.name) == ("queue", "prefill")
    assert prefill.timestamp - queue.timestamp == 500_000_000
    assert span.status.is_ok or span.status.is_unset


def test_the_trace_of_the_caller_goes_on(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    reply = traced.client.post("/v1/completions", completion(), headers=headers)
    span = traced.span()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("vendor") == "1"
    assert reply.header("traceresponse") == f"00-{TRACE}-{span.context.span_id:016x}-01"


def test_a_caller_who_does_not_sample_is_followed(traced: Traced) -> None:
    traced.client.post("/v1/completions", completion(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert traced.spans() == []


@pytest.mark.parametrize("broken", ["", "00-x-y-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 10_000])
def test_a_broken_traceparent_begins_a_new_trace(traced: Traced, broken: str) -> None:
    assert traced.client.post("/v1/completions", completion(), headers={"traceparent": broken}).status == 200
    assert traced.span().parent is None


def test_failures_are_named_but_not_told(traced: Traced) -> None:
    traced.client.post("/v1/chat/completions", chat(SECRET, temperature=-1))
    traced.client.engine.error = RequestFailed(SECRET)
    traced.client.post("/v1/chat/completions", chat(SECRET))
    traced.client.engine.error = KeyError(SECRET)
    traced.client.post("/v1/chat/completions", chat(SECRET))
    refused, failed, fault = traced.spans()
    for span, kind, status in (
        (refused, "InvalidRequest", 400),
        (failed, "RequestFailed", 500),
        (fault, "KeyError", None),
    ):
        assert (span.attributes or {})["error.type"] == kind
        assert (span.attributes or {}).get("http.response.status_code") == status
    assert refused.status.is_unset
    assert not failed.status.is_ok
    assert not failed.status.is_unset


def test_no_text_is_in_any_span() -> None:
    traced = Traced(FakeEngine(reply=lambda *_: SECRET))
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat(SECRET, user=SECRET)),
        ("/v1/chat/completions", chat(SECRET, stop=SECRET)),
        ("/v1/completions", completion(SECRET, cache_salt=SECRET)),
        ("/v1/completions", completion(SECRET) | {"model": SECRET}),
        ("/tokenize", {"prompt": SECRET}),
    ]
    for path, body in bodies:
        traced.client.post(path, body)
    assert len(traced.spans()) == len(bodies)
    assert all(SECRET not in span.to_json() for span in traced.spans())
    traced.tracing.close()


def test_what_is_no_work_has_no_span(traced: Traced) -> None:
    for path in ("/live", "/metrics", "/v1/models"):
        traced.client.get(path)
    assert traced.spans() == []


def test_spans_reach_a_collector() -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            received.append(request)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        config = ServerConfig(otlp_traces_endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces")
        client = Client(config=config)
        client.post("/v1/completions", completion())
        client.app.state.tracing.close()
        collector.shutdown()
        thread.join()
    (resource,) = received[0].resource_spans
    assert ("service.name", "octavo") in {(each.key, each.value.string_value) for each in resource.resource.attributes}
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["text_completion fake-model"]


def test_lines_of_a_batch_are_traced_as_such(traced: Traced) -> None:
    scope = {"state": {"background": True}}
    asyncio.run(
        traced.client.send(
            "POST",
            "/v1/completions",
            data=json.dumps(completion()).encode(),
            headers={"content-type": "application/json"},
            scope=scope,
        )
    )
    assert (traced.span().attributes or {})["octavo.background"] is True


def test_nothing_is_imported_unasked() -> None:
    program = (
        "import sys; from octavo.api.serving import serve; from octavo.api.app import build_app; "
        "sys.exit(any(name.startswith(('opentelemetry', 'requests')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_server_without_the_exporter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is a URL"):
        Client(config=ServerConfig(otlp_traces_endpoint="localhost:4317"))
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"octavo\[otel\]"):
        Client(config=ServerConfig(otlp_traces_endpoint="http://localhost:4318/v1/traces"))
