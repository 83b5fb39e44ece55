"""The lines of a batch's input file: whether all are requests, where each is, and one at a time when it is its turn.

Everything here blocks, and reads piece by piece: neither the file nor a line that is too long is ever held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from octavo.api.batch.records import Mistake
from octavo.api.limits import Limits
from octavo.api.wire import explain

_ENVELOPE = 4096  # bytes of a line besides its body
_MOST_MISTAKES = 100  # that are told


class Line(Struct):
    """A request. Its body is checked when its turn comes, as any other request's."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    url: str
    body: msgspec.Raw
    method: str = "POST"


class Place(NamedTuple):
    """Where a line is in its file."""

    number: int  # as editors count, from 1, blank lines included
    start: int
    length: int


class _Streams(Struct):
    stream: bool | None = None


_line_decoder = msgspec.json.Decoder(Line)
_streams_decoder = msgspec.json.Decoder(_Streams)


def places(path: Path, limits: Limits) -> list[Place]:
    """Of all lines but blank ones."""
    return [place for place, _ in _lines(path, limits)]


def read(path: Path, place: Place) -> Line:
    """A line of a file that `check` has found in order."""
    with path.open("rb") as file:
        file.seek(place.start)
        return _line_decoder.decode(file.read(place.length))


def check(path: Path, endpoint: str, limits: Limits) -> tuple[int, list[Mistake]]:
    """How many requests a file has, and what is wrong with it."""
    mistakes: list[Mistake] = []
    seen: set[str] = set()
    count = 0
    for place, text in _lines(path, limits):
        count += 1
        if count > limits.batch_lines:
            message = f"A batch has at most {limits.batch_lines} requests; make several of it."
            return count, [Mistake("too_many_requests", message)]
        if len(mistakes) < _MOST_MISTAKES and (mistake := _mistake(place, text, endpoint, seen)) is not None:
            mistakes.append(mistake)
    return count, mistakes if count else [Mistake("empty_file", "The input file has no requests.")]


def _lines(path: Path, limits: Limits) -> Iterator[tuple[Place, bytes | None]]:
    """Each line that is not blank; None for one that is too long."""
    most = limits.body_bytes + _ENVELOPE
    start = number = 0
    with path.open("rb") as file:
        while text := file.readline(most):
            number += 1
            whole = text.endswith(b"\n") or len(text) < most
            length = len(text)
            while not whole:
                more = file.readline(most)
                length += len(more)
                whole = more.endswith(b"\n") or len(more) < most
            if length > len(text):
                yield Place(number, start, length), None
            elif not text.isspace():
                yield Place(number, start, length), text
            start += length


def _mistake(place: Place, text: bytes | None, endpoint: str, seen: set[str]) -> Mistake | None:
    if text is None:
        return Mistake("line_too_long", f"This line has {place.length} bytes.", line=place.number)
    try:
        text.decode()
        line = _line_decoder.decode(text)
        streams = _streams_decoder.decode(line.body).stream
    except (UnicodeDecodeError, RecursionError):
        return Mistake("invalid_json_line", "This line is not parseable as valid JSON.", line=place.number)
    except msgspec.ValidationError as error:
        refusal = explain(str(error))
        return Mistake(refusal.code or "invalid_json_line", refusal.message, refusal.param, place.number)
    except msgspec.DecodeError as error:
        return Mistake("invalid_json_line", f"This line is not parseable as valid JSON: {error}.", line=place.number)
    if line.method != "POST":
        return Mistake("invalid_method", "The method of a batch's requests is POST.", "method", place.number)
    if line.url != endpoint:
        message = f"The url of this request is not the batch's endpoint, {endpoint}."
        return Mistake("mismatched_endpoint", message, "url", place.number)
    if streams:
        return Mistake("unsupported_parameter", "A batch has no streams.", "body.stream", place.number)
    if line.custom_id in seen:
        message = "The custom_id of this request is that of an earlier line."
        return Mistake("duplicate_custom_id", message, "custom_id", place.number)
    seen.add(line.custom_id)
    return None
