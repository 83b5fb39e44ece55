"""Bytes ⇄ structs: JSON bodies in, JSON answers out, and errors in the shape that OpenAI's clients expect.

Every mistake in a body becomes an `InvalidRequest` whose `param` is the dotted path of the field and whose message
says what was expected. Knows nothing of routes, engines or what the fields mean.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from octavo.api.limits import JSON_ELEMENTS, JSON_TOP_LEVEL_FIELDS
from octavo.errors import InvalidRequest, OctavoError

T = TypeVar("T", bound=msgspec.Struct)

_BAD_JSON = "We could not parse the JSON body of your request: "
_TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_PLACE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<got>\w+)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")
_LENGTH = re.compile(r"Expected `(?P<type>array|object|str)` of length (?P<sign><=|>=) (?P<limit>\d+)")
_RANGE = re.compile(r"Expected `(?P<type>int|float)` (?P<sign><=|>=) (?P<limit>\S+)")
_INLINE_BYTES = 256 * 2**10  # larger bodies are decoded off the event loop
_ELEMENT_MARKS = (b",", b"[", b"{")
_NEUTRAL = (b"null", b"false", b"[]", b"{}", b'""', b"0")

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def decode(
    body: bytes,
    shape: type[T],
    unsupported: Mapping[str, str] | None = None,
    ignored: Callable[[Collection[str]], None] | None = None,
) -> T:
    """Decode a JSON body into a struct.

    Unknown fields are ignored and their names told to `ignored`, except those in `unsupported` (field → why), which
    would change the answer: these are refused unless they are null, false or empty. Raises InvalidRequest.
    """
    if len(body) <= _INLINE_BYTES:
        value, unknown = _decode(body, shape, unsupported or {})
    else:
        value, unknown = await asyncio.to_thread(_decode, body, shape, unsupported or {})
    if unknown and ignored is not None:
        ignored(unknown)
    return value


def _decode(body: bytes, shape: type[T], unsupported: Mapping[str, str]) -> tuple[T, list[str]]:
    """The struct, and the body's top-level fields that it does not have."""
    if len(body) > JSON_ELEMENTS and sum(map(body.count, _ELEMENT_MARKS)) > JSON_ELEMENTS:
        raise InvalidRequest(f"The body has more than {JSON_ELEMENTS} commas and opening brackets.")
    if not body.strip():
        raise InvalidRequest(_BAD_JSON + "it is empty.")
    try:
        body.decode()
        fields = _fields_decoder.decode(body)
        if len(fields) > JSON_TOP_LEVEL_FIELDS:
            raise InvalidRequest(f"The body has more than {JSON_TOP_LEVEL_FIELDS} fields.")
        for name in fields.keys() & unsupported.keys():
            if bytes(fields[name]).strip() not in _NEUTRAL:
                raise _unsupported(name, unsupported[name])
        value = msgspec.json.decode(body, type=shape)
        known = (*shape.__struct_encode_fields__, *unsupported)
        return value, [name for name in fields if name not in known]
    except UnicodeDecodeError:
        raise InvalidRequest(_BAD_JSON + "it is not UTF-8.") from None
    except RecursionError:  # msgspec descends no further than Python itself would
        raise InvalidRequest(_BAD_JSON + "it is nested too deeply.") from None
    except msgspec.ValidationError as error:
        raise explain(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(_BAD_JSON + f"{error}.") from None


def _unsupported(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Unsupported parameter: '{name}'. {why}", param=name, code="unsupported_parameter")


@contextmanager
def fields_called(names: Mapping[str, str]) -> Iterator[None]:
    """For a request that was made into another one: mistakes are told with the names that its caller knows.

    names: regular expressions for the beginnings of paths, and what stands in their place here; the first one counts.
    """
    try:
        yield
    except InvalidRequest as error:
        if error.param is not None:
            matches = ((pattern, re.match(pattern, error.param)) for pattern in names)
            if found := next(((pattern, match) for pattern, match in matches if match), None):
                pattern, match = found
                name = match.expand(names[pattern]) + error.param[match.end() :]
                error.message = error.message.replace(f"'{error.param}'", f"'{name}'")
                error.param = name
        raise


def missing(param: str) -> InvalidRequest:
    """That a field which must be there is not."""
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def explain(message: str) -> InvalidRequest:
    """msgspec's complaint about a value, in OpenAI's words and codes."""
    place = _PLACE.search(message)
    param = place["path"].removeprefix(".").replace("[...]", "") if place else ""
    if absent := _MISSING.match(message):
        return missing(f"{param}.{absent['field']}" if param else absent["field"])
    if wrong := _WRONG_TYPE.match(message):
        return _wrong_type(param, wrong["expected"].split(" | "), wrong["got"], key=bool(place and place["key"]))
    if length := _LENGTH.match(message):
        return _wrong_length(param, length["type"], length["sign"], int(length["limit"]))
    if reach := _RANGE.match(message):
        kind, (bound, word) = ("integer" if reach["type"] == "int" else "decimal"), _BOUNDS[reach["sign"]]
        limit = reach["limit"].removesuffix(".0")
        return InvalidRequest(f"Invalid '{param}': must be {word} {limit}.", param=param, code=f"{kind}_{bound}_value")
    what = "number out of range" if "out of range" in message else message.split(" - at ")[0][:200]
    if not param:
        return InvalidRequest(_BAD_JSON + f"{what}.")
    return InvalidRequest(f"Invalid '{param}': {what}.", param=param, code="invalid_value")


_BOUNDS = {"<=": ("above_max", "at most"), ">=": ("below_min", "at least")}


def _wrong_type(param: str, expected: list[str], got: str, *, key: bool) -> InvalidRequest:
    if not param:
        return InvalidRequest(_BAD_JSON + f"expected an object, but got {_TYPE_NAMES.get(got, got)}.")
    names = [_TYPE_NAMES.get(name, name) for name in expected if name != "null"]
    wanted = names[0] if len(names) == 1 else "one of " + " or ".join(names)
    subject = f"a key of '{param}'" if key else f"'{param}'"
    found = "a decimal number" if got == "float" else _TYPE_NAMES.get(got, got)
    message = f"Invalid type for {subject}: expected {wanted}, but got {found} instead."
    return InvalidRequest(message, param=param, code="invalid_type")


def _wrong_length(param: str, kind: str, sign: str, limit: int) -> InvalidRequest:
    noun = {"array": "array", "object": "object", "str": "string"}[kind]
    if sign == ">=" and limit == 1:
        code = "empty_array" if kind == "array" else "invalid_value"
        return InvalidRequest(f"Invalid '{param}': must not be empty.", param=param, code=code)
    bound, word = _BOUNDS[sign]
    unit = "characters" if kind == "str" else "items"
    message = f"Invalid '{param}': must have {word} {limit} {unit}."
    return InvalidRequest(message, param=param, code=f"{noun}_{bound}_length")


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


def openai_error(error: OctavoError) -> ErrorBody:
    return ErrorBody(error=ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code))


def json_response(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
