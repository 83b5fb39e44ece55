"""What one path and method do: the handler, and the shapes that go in and come out.

Each module that has handlers lists its operations; `app` routes them and the API document describes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp

from octavo.api.desk import Call

Handler = Callable[[Call], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One that takes a JSON body is work for an engine, and needs room there."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str  # `{name:path}` takes slashes too
    handler: Handler
    takes: Any = None  # the body's type; None: no body is read
    media: Literal["application/json", "multipart/form-data"] = "application/json"  # of the body; a form is streamed
    any_media: bool = False  # a JSON body is read whatever it is called: Ollama's users send it with plain curl
    queries: Any = None  # the type of the query's parameters
    gives: Any = None  # the JSON answer's type; None: not JSON
    gives_media: str = "text/plain"  # the media type of an answer that is not JSON
    events: Any = None  # the type of a stream's events, where the body may ask for one
    unsupported: Mapping[str, str] = field(default_factory=dict)  # fields that are refused, and why
    without_effect: Mapping[str, str] = field(default_factory=dict)  # fields that are taken and change nothing, and why
    for_admins: bool = False  # asks for an administrator's key, on the admin port if there is one
    in_batches: bool = False  # its requests may be lines of a batch
    on_both_ports: bool = False
