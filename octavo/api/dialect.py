"""How a path's clients expect to be told of an error, as an answer and within a stream that has begun.

Which dialect a path belongs to stands in one table here, because errors arise before there is a route as well: without
a key, say, or at a path that does not exist. Everything else about a dialect is in the folder of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from octavo.api.anthropic.errors import AnthropicError, anthropic_error
from octavo.api.ollama.errors import OllamaError, ollama_error
from octavo.api.stream import EVENTS, LINES, NAMED_EVENTS, Framing
from octavo.api.wire import ErrorBody, openai_error
from octavo.errors import OctavoError, RequestTimeout, Unauthorized


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    error_type: type[msgspec.Struct]
    error: Callable[[OctavoError], Any]  # in that type
    framing: Framing  # of its streams


OPENAI = Dialect(error_type=ErrorBody, error=openai_error, framing=EVENTS)
ANTHROPIC = Dialect(error_type=AnthropicError, error=anthropic_error, framing=NAMED_EVENTS)
RESPONSES = Dialect(error_type=ErrorBody, error=openai_error, framing=NAMED_EVENTS)
OLLAMA = Dialect(error_type=OllamaError, error=ollama_error, framing=LINES)

_BEGINNINGS = {"/v1/responses": RESPONSES, "/v1/messages": ANTHROPIC, "/api/": OLLAMA}


def dialect_of(path: str) -> Dialect:
    """The dialect of a path without the server's root path."""
    return next((dialect for beginning, dialect in _BEGINNINGS.items() if path.startswith(beginning)), OPENAI)


def error_response(error: OctavoError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The error as an answer to the request of this scope."""
    extra = dict(headers or {})
    if error.retry_after is not None:
        extra["retry-after"] = str(error.retry_after)
    if isinstance(error, RequestTimeout):
        extra["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients would send again what used up its time
    if isinstance(error, Unauthorized):
        extra["www-authenticate"] = "Bearer"
    body = msgspec.json.encode(_dialect(scope).error(error))
    return Response(body, error.status, extra, media_type="application/json")


def error_event(error: OctavoError, scope: Scope) -> bytes:
    """The error as the last that a stream says."""
    dialect = _dialect(scope)
    return dialect.framing.frame(dialect.error(error))


def _dialect(scope: Scope) -> Dialect:
    return dialect_of(scope["path"].removeprefix(scope.get("root_path", "")))
