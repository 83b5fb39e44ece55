"""Every limit of the HTTP door in one table: what goes over is refused before memory or time is spent on it.

`Limits` is what the transport and the desk check; the constants are what the request types check while a body is
decoded, all answered with 400. Limits that depend on the model (context length, vocabulary, `max_logprobs`) are the
engine's, the ranges of sampling fields `octavo/request.py`'s, and a key's own share is in its file. JSON may be nested
as deeply as Python's recursion limit lets it.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Self

from octavo.config import ServerConfig
from octavo.errors import InvalidRequest, RequestTooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each with the status that its excess is answered with."""

    connections: int = 8192  # 503; fewer where the process may open fewer files
    admin_connections: int = 64  # 503; of the admin port, besides
    url_bytes: int = 8 * 2**10  # 414
    pipelined_requests: int = 64  # the connection is closed; that wait for answers to those before them
    header_count: int = 100  # 431
    header_bytes: int = 64 * 2**10  # 431
    header_seconds: float = 15.0  # 408; from a connection's first moment, or a later request's first byte
    body_bytes: int = 16 * 2**20  # 413
    body_seconds: float = 60.0  # 408; from the end of the headers
    body_bytes_per_second: int = 64 * 2**10  # for each so many bytes that have arrived, a body has a second more
    small_body_bytes: int = 64 * 2**10  # larger ones share `large_bodies_bytes`
    large_bodies_bytes: int = 256 * 2**20  # 503; of all large bodies whose requests are not over
    queue_seconds: float | None = None  # 503; from arrival to the first token
    request_seconds: float | None = None  # 408, or a stream that ends with an error; from arrival to the end
    unread_seconds: float = 30.0  # the connection is cut; how long a client may leave a full buffer unread
    keep_alive_seconds: int = 65  # an idle connection is closed after this
    shutdown_seconds: float = 30.0  # 503; what a request in flight gets to finish after SIGTERM
    file_bytes: int = 200 * 2**20  # 413; of an uploaded file
    stored_files: int = 1000  # 400; that one tenant has uploaded
    stored_bytes: int = 16 * 2**30  # 400; in those
    free_disk_bytes: int = 2**30  # 507; that stay free on the disk of the data folder
    batch_lines: int = 50_000  # the batch fails
    open_batches: int = 100  # 429; of one tenant

    @classmethod
    def of(cls, config: ServerConfig) -> Self:
        """The limits that this server's flags ask for."""
        return cls(
            queue_seconds=config.queue_timeout,
            request_seconds=config.request_timeout,
            shutdown_seconds=config.shutdown_timeout,
        )


JSON_TOP_LEVEL_FIELDS = 256
FORM_BYTES = 64 * 2**10  # of an upload, besides its file
FORM_FIELDS = 64
FORM_FIELD_LENGTH = 1024
FILE_NAME_LENGTH = 256
JSON_ELEMENTS = 2**20  # commas and opening brackets, those within strings too
MESSAGES = 4096
CONTENT_PARTS = 1024
TOOL_CALLS = 128
TOOLS_BYTES = 2**18  # of all definitions as JSON
FUNCTION_NAME_LENGTH = 128
DOCUMENTS = 128
TOOLS = 128
NAME_LENGTH = 1024  # of a role, a tool call's id, a function's name
PROMPTS = 1024
SEQUENCES = 2048  # prompts × n of one HTTP request
POOLED_TEXTS = 2048  # to be embedded or compared by one HTTP request
POOLED_TOKENS = 2**20  # of all of them
POOLED_AT_ONCE = 128  # of which the scheduler has so many; the others wait outside its queue
STOP_STRINGS = 4
STOP_STRING_LENGTH = 1024
STOP_SEQUENCES = 64  # of dialects whose clients may send more than OpenAI's
STOP_TOKEN_IDS = 128
BAD_WORDS = 128
BAD_WORD_LENGTH = 256
LOGIT_BIAS_ENTRIES = 1024
ALLOWED_TOKEN_IDS = 2**18
CHOICES = 4096
SUFFIX_LENGTH = 2**20
TOKENIZED_CHARACTERS = 2**22  # of /tokenize; a prompt to be continued is bounded by the context
DETOKENIZED_IDS = 2**20
COMPLETION_LOGPROBS = 5
CHAT_TOP_LOGPROBS = 20
CACHE_SALT_LENGTH = 256
TEMPLATE_KWARGS = 16
TEMPLATE_KWARG_LENGTH = 1024
TIMEOUT_SECONDS = 86400.0  # the longest `timeout` a request may ask for
LOGGED_FIELDS = 8  # names of ignored fields in one line of the log
LOGGED_NAME_LENGTH = 64

_DESCRIPTORS_ELSEWHERE = 128  # the engine's line, model files, libraries, the admin port's clients


def check_product(prompts: int, n: int, param: str = "n") -> None:
    """One HTTP request may not ask for more sequences than SEQUENCES. Raises InvalidRequest."""
    if prompts * n > SEQUENCES:
        message = f"{prompts} prompts × n={n} is {prompts * n} sequences; one request may ask for at most {SEQUENCES}."
        raise InvalidRequest(message, param=param, code="integer_above_max_value")


def too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit} bytes.")


def possible_connections(wanted: int) -> int:
    """As many of the wanted connections as there can be descriptors for, of which this process asks for enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + _DESCRIPTORS_ELSEWHERE
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _DESCRIPTORS_ELSEWHERE))
