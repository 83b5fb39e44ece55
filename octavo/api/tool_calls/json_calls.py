"""Tool calls written as JSON objects: `{"name": "f", "arguments": {…}}`, one or a list of them.

A call counts from where its name is complete and its arguments begin: these are given on as they are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from math import isfinite
from typing import Any, NoReturn

from octavo.api.limits import NAME_LENGTH
from octavo.api.reading import NotACall, Piece, Steps, Text, held

_NAMES = ("name", "function", "tool", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # within a string
_OUTSIDE = re.compile(r'[^"\[\]{}]*')
_SCALAR = re.compile(r"[^\s,\]}]*")


def json_calls(text: Text, known: Collection[str] | None = None) -> Steps[None]:
    """A call or a list of calls. With `known`, only of these. Raises NotACall where another begins."""
    if not (yield from text.take("[")):
        yield from json_call(text, known)
        return
    while True:
        yield from text.space()
        text.mark()
        yield from json_call(text, known)
        yield from text.space()
        if not (yield from text.take(",")):
            break
    yield from text.take("]")


def json_call(text: Text, known: Collection[str] | None = None, *, wrapped: bool = False) -> Steps[None]:
    """An object with a name and arguments, in any order, and maybe other fields. Raises NotACall.

    The object may be wrapped in another, as OpenAI writes it: `{"type": "function", "function": {…}}`.
    """
    yield from text.expect("{")
    name = arguments = None
    begun = False
    while True:
        yield from text.space()
        if (yield from text.take("}")):
            break
        key = yield from _string(text)
        yield from text.space()
        yield from text.expect(":")
        yield from text.space()
        if key == "function" and not begun and not wrapped and (yield from text.peek()) == "{":
            yield from json_call(text, known, wrapped=True)
            begun = True
        elif key in _NAMES and name is None and not begun:
            name = yield from _name(text, known)
        elif key in _ARGUMENTS and not begun and name is not None:
            begun = True
            text.release()
            yield Piece("call", name)
            yield from json_arguments(text)
        elif key in _ARGUMENTS and arguments is None and not begun:
            arguments, _ = yield from held(json_arguments(text))
        else:
            yield from held(json_value(text))
        yield from text.space()
        if not (yield from text.take(",")):
            yield from text.expect("}")
            break
    if not begun:
        if name is None:
            raise NotACall
        text.release()
        yield Piece("call", name)
        yield Piece("arguments", arguments or "{}")


def _name(text: Text, known: Collection[str] | None) -> Steps[str]:
    name = yield from _string(text)
    if not is_name(name) or (known is not None and name not in known):
        raise NotACall
    return name


def is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_LENGTH and text.isprintable()


def _string(text: Text) -> Steps[str]:
    """A JSON string's value. Raises NotACall."""
    if (yield from text.peek()) != '"':
        raise NotACall
    raw, _ = yield from held(json_value(text))
    try:
        value = json.loads(raw)
    except ValueError:  # cut off, or a bad escape
        raise NotACall from None
    assert isinstance(value, str)
    return value


def json_arguments(text: Text) -> Steps[None]:
    """A call's arguments as a JSON text: an object as it is written, or the one that a string holds."""
    first = yield from text.peek()
    if first == "{":
        yield from json_value(text)
        return
    raw, _ = yield from held(json_value(text))
    yield Piece("arguments", _object(raw))


def _object(raw: str) -> str:
    if raw.strip() in ("", "null", '""'):
        return "{}"
    if raw.startswith('"'):
        try:
            inner = json.loads(raw)
            inner.encode()
        except ValueError:  # cut off, a bad escape, half of a surrogate pair
            return raw
        return str(inner)
    return raw


def call_head(name: str, arguments: str = "arguments") -> str:
    """How a JSON call begins, up to its arguments."""
    return f'{{"name": "{name}", "{arguments}": '


def json_value(text: Text) -> Steps[None]:
    """A JSON value piece by piece, up to its end or the text's. Control characters in strings are escaped.

    Only quotes and brackets are looked at: what else is wrong with it, its reader will find.
    """
    first = yield from text.peek()
    if first == '"':
        yield from _quoted(text)
        return
    if first not in ("{", "["):
        yield from _span(text, _SCALAR)
        return
    depth = 0
    while True:
        yield from _span(text, _OUTSIDE)
        mark = yield from text.peek()
        if mark == '"':
            yield from _quoted(text)
            continue
        if not mark:
            return
        text.skip(1)
        yield Piece("arguments", mark)
        depth += 1 if mark in "{[" else -1
        if depth == 0:
            return


def _quoted(text: Text) -> Steps[None]:
    text.skip(1)
    yield Piece("arguments", '"')
    while True:
        yield from _span(text, _PLAIN)
        mark = yield from text.peek()
        if not mark:
            return
        text.skip(1)
        if mark == "\\":
            escaped = yield from text.peek()
            text.skip(len(escaped))
            mark += escaped if escaped >= " " else json.dumps(escaped)[2:-1]
        elif mark != '"':
            mark = json.dumps(mark)[1:-1]
        yield Piece("arguments", mark)
        if mark == '"':
            return


def _span(text: Text, pattern: re.Pattern[str]) -> Steps[None]:
    while rest := (yield from text.rest()):
        match = pattern.match(rest)
        taken = "" if match is None else match[0]
        text.skip(len(taken))
        if taken:
            yield Piece("arguments", taken)
        if len(taken) < len(rest):
            return


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, for what nests too deeply too."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(digits: str) -> float:
    value = float(digits)
    return value if isfinite(value) else _no_number(digits)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def dumps(value: Any) -> str:
    """As JSON that can be sent: half of a surrogate pair stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
