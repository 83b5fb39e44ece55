"""Bodies that are made to be expensive, and where large ones are decoded."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from typing import Literal

import pytest
from msgspec import Struct

from octavo.api.limits import JSON_ELEMENTS
from octavo.api.wire import decode, fields_called
from octavo.errors import InvalidRequest

MEGABYTE = 2**20


class Empty(Struct):
    pass


class Probe(Struct):
    text: str

    def __post_init__(self) -> None:
        seen.append(threading.get_ident())


seen: list[int] = []


class Choice(Struct):
    word: Literal["yes", "no"]


def test_what_is_wrong_is_not_told_at_length() -> None:
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(decode(b'{"word": "%b"}' % (b"x" * MEGABYTE), Choice))
    assert caught.value.param == "word"
    assert "xxx" in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("size", "inline"), [(1000, True), (256 * 2**10, True), (256 * 2**10 + 1, False)])
def test_large_bodies_are_decoded_off_the_event_loop(size: int, inline: bool) -> None:
    body = b'{"text":"' + b"x" * (size - 11) + b'"}'
    assert len(body) == size
    seen.clear()
    assert asyncio.run(decode(body, Probe)).text == "x" * (size - 11)
    assert (seen == [threading.get_ident()]) == inline


def test_a_long_string_behind_brackets_takes_little_memory() -> None:
    body = b'{"x":' + b"[" * 65 + b'"' + b"x" * (4 * MEGABYTE) + b'"' + b"]" * 65 + b"}"
    tracemalloc.start()
    try:
        asyncio.run(decode(body, Empty))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body)


def test_too_many_elements_are_refused_before_they_are_made() -> None:
    for body in (b'{"x":[' + b"1," * JSON_ELEMENTS + b"1]}", b'{"x":[' + b"[],{}," * JSON_ELEMENTS + b"1]}"):
        tracemalloc.start()
        with pytest.raises(InvalidRequest, match="commas and opening brackets"):
            asyncio.run(decode(body, Empty))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEGABYTE
    asyncio.run(decode(b'{"x":"' + b"a" * 4 * JSON_ELEMENTS + b'"}', Empty))


def test_many_nested_arrays_take_little_time() -> None:
    deep = b"[" * 60 + b"]" * 60
    body = b'{"x":[' + b",".join([deep] * (JSON_ELEMENTS // 62)) + b"]}"
    began = time.process_time()
    asyncio.run(decode(body, Empty))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("param", "called"),
    [
        ("messages", "input"),
        ("messages[3].content", "input"),
        ("tools[12].function.name", "tools[12].name"),
        ("temperature", "temperature"),
        (None, None),
    ],
)
def test_mistakes_are_told_with_the_callers_names(param: str | None, called: str | None) -> None:
    names = {r"messages\b.*": "input", r"(tools\[\d+\])\.function": r"\1"}
    with pytest.raises(InvalidRequest) as caught, fields_called(names):
        raise InvalidRequest(f"Invalid '{param}': no.", param=param)
    assert (caught.value.param, caught.value.message) == (called, f"Invalid '{called}': no.")
