"""Every limit of the HTTP door in one table: what goes over is refused before memory or time is spent on it.

`Limits` is what the transport checks; the constants are what the request types check while a body is decoded. Limits
that depend on the model (context length, vocabulary, `max_logprobs`) are the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import InvalidRequest, RequestTooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    url_bytes: int = 8 * 2**10
    header_count: int = 100
    header_bytes: int = 64 * 2**10
    header_seconds: float = 15.0  # from a connection's first moment, or a later request's first byte
    body_bytes: int = 16 * 2**20
    body_seconds: float = 60.0  # from the end of the headers
    keep_alive_seconds: int = 65  # an idle connection is closed after this
    shutdown_seconds: float = 5.0  # what a request in flight gets to finish after SIGTERM


JSON_TOP_LEVEL_FIELDS = 256
MESSAGES = 4096
CONTENT_PARTS = 1024
TOOL_CALLS = 128
NAME_LENGTH = 1024  # of a role, a tool call's id, a function's name
PROMPTS = 1024
SEQUENCES = 2048  # prompts × n of one HTTP request
STOP_STRINGS = 4
STOP_STRING_LENGTH = 1024
STOP_TOKEN_IDS = 128
BAD_WORDS = 128
BAD_WORD_LENGTH = 256
LOGIT_BIAS_ENTRIES = 1024
ALLOWED_TOKEN_IDS = 2**18
COMPLETION_LOGPROBS = 5
CHAT_TOP_LOGPROBS = 20
CACHE_SALT_LENGTH = 256
TEMPLATE_KWARGS = 16
TEMPLATE_KWARG_LENGTH = 1024
LOGGED_FIELDS = 8  # names of ignored fields in one line of the log
LOGGED_NAME_LENGTH = 64


def check_product(prompts: int, n: int, param: str = "n") -> None:
    """One HTTP request may not ask for more sequences than SEQUENCES. Raises InvalidRequest."""
    if prompts * n > SEQUENCES:
        message = f"{prompts} prompts × n={n} is {prompts * n} sequences; one request may ask for at most {SEQUENCES}."
        raise InvalidRequest(message, param=param, code="integer_above_max_value")


def too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit} bytes.")
