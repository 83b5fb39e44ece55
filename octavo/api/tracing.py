"""A span for each request that is work, sent by OTLP: who called, for what model, how many tokens, where the time went.

OpenTelemetry is imported when a `Tracing` is made and never otherwise. Names are those of its conventions for AI that
generates. Prompts, outputs and keys are in no span.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from starlette.datastructures import Headers
from starlette.types import Scope

from octavo import __version__
from octavo.api.desk import Call, Tally
from octavo.errors import ConfigError, OctavoError
from octavo.request import SamplingParams

#: Of paths that generate or embed; others have none.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
_GEN_AI = "gen_ai."


class Tracing:
    """Spans for one server. exporter: where they go, an OpenTelemetry `SpanExporter`."""

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        described = Resource.create({"service.name": "octavo", "service.version": __version__})
        self._provider = TracerProvider(resource=described, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    @classmethod
    def to(cls, endpoint: str) -> Self:
        """Sends to a collector's URL. Raises ConfigError."""
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigError("--otlp-traces-endpoint is a URL, such as http://localhost:4318/v1/traces")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            message = "--otlp-traces-endpoint needs OpenTelemetry's exporter: pip install 'octavo[otel]'"
            raise ConfigError(message) from None
        return cls(OTLPSpanExporter(endpoint=endpoint))

    def flush(self) -> None:
        """Send what has ended. Blocks."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what is left. Blocks, but not for ever."""
        self._provider.shutdown()

    @contextmanager
    def request(self, path: str, scope: Scope, call: Call) -> Iterator[None]:
        """The span of a request; one that its caller began (`traceparent`) goes on. Raises what is raised inside."""
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{scope['method']} {path}", context=self._propagator.extract(carrier), kind=self._server
        )
        context = span.get_span_context()
        state = scope["state"]
        state["trace_id"] = f"{context.trace_id:032x}"
        state["trace"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        span.set_attributes(
            {"http.request.method": scope["method"], "http.route": path, "octavo.request_id": call.request_id}
        )
        status: int | None = 200
        try:
            yield
        except BaseException as error:
            status = error.status if isinstance(error, OctavoError) else None
            span.set_attribute("error.type", type(error).__name__)
            if status is None or status >= 500:
                span.set_status(self._failed)
            raise
        finally:
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            self._describe(span, path, call)
            span.end()

    def _describe(self, span: Any, path: str, call: Call) -> None:
        tally = call.tally
        if tally.model is None:
            return  # refused before there was one
        operation = _OPERATIONS.get(path)
        if operation is not None:
            span.update_name(f"{operation} {tally.model}")
        span.set_attributes(
            {_GEN_AI + name: value for name, value in _facts(operation, tally).items() if value is not None}
        )
        span.set_attributes({"octavo.background": call.background, "octavo.compute_seconds": tally.compute_seconds})
        _add_events(span, tally)


def _facts(operation: str | None, tally: Tally) -> dict[str, Any]:
    params = tally.params
    facts: dict[str, Any] = {
        "provider.name": "octavo",
        "operation.name": operation,
        "request.model": tally.asked_model or tally.model,
        "response.model": tally.model,
        "usage.input_tokens": tally.prompt_tokens,
        "usage.output_tokens": tally.completion_tokens,
        "usage.cache_read.input_tokens": tally.cached_tokens,
        "response.finish_reasons": tally.finish_reasons or None,
    }
    if isinstance(params, SamplingParams):
        facts |= {
            "request.max_tokens": params.max_tokens,
            "request.temperature": params.temperature,
            "request.top_p": params.top_p,
            "request.top_k": params.top_k if params.top_k > 0 else None,
            "request.seed": params.seed,
            "request.choice.count": params.n if params.n > 1 else None,
            "request.presence_penalty": params.presence_penalty or None,
            "request.frequency_penalty": params.frequency_penalty or None,
        }
    return facts


def _add_events(span: Any, tally: Tally) -> None:
    """When each prompt was queued, was first computed, and had its first token and its last."""
    since = time.time_ns() - time.monotonic_ns()  # the engine counts seconds of the monotonic clock
    for prompt, times in sorted(tally.times.items()):
        for name, moment in (
            ("queue", times.arrival_time),
            ("prefill", times.first_scheduled_time),
            ("decode", times.first_token_time),
            ("end", times.finished_time),
        ):
            if moment is not None:
                span.add_event(name, {"octavo.prompt": prompt}, timestamp=since + int(moment * 1e9))
