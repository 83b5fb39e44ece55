"""An error as Anthropic's clients expect it."""

from __future__ import annotations

from msgspec import Struct

from octavo.errors import OctavoError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class AnthropicErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class AnthropicError(Struct, kw_only=True, tag_field="type", tag="error"):
    error: AnthropicErrorDetail


def anthropic_error(error: OctavoError) -> AnthropicError:
    kind = _TYPES.get(error.status, "invalid_request_error")
    return AnthropicError(error=AnthropicErrorDetail(type=kind, message=error.message))
