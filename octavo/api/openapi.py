"""GET /openapi.json: the API as an OpenAPI 3.1 document, made from the operations and the types that decode and encode.

Nothing is told twice: what a document says of a body is what `wire.decode` checks. Limits that depend on the model
(context, vocabulary) and rules between fields are not in it; their breach is answered with 400 as everything else is.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.dialect import dialect_of
from octavo.api.operation import Operation
from octavo.api.wire import json_response

_REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_ERRORS = {
    "400": "The request is not valid; `param` names the field.",
    "401": "A key is missing or unknown.",
    "403": "The key may not do this.",
    "404": "There is no such path or model.",
    "408": "The request took longer than it may.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "The key's share is used up; see Retry-After.",
    "500": "The server failed; its log has the details.",
    "503": "There is no room now, or the model is loading; see Retry-After.",
    "507": "The disk is full.",
}


def with_description(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The operations, and one that describes them all, itself included."""

    @functools.cache
    def written() -> msgspec.Raw:  # once: it takes a while, in which nobody else is answered
        return msgspec.Raw(msgspec.json.encode(document(described)))

    async def describe(_: Call) -> Response:
        """The API as an OpenAPI document."""
        return json_response(written())

    described = (*operations, Operation(method="GET", path="/openapi.json", handler=describe, gives=dict[str, Any]))
    return described


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    shapes = [shape for each in operations for shape in (each.takes, each.gives, each.events) if shape is not None]
    errors = [dialect_of(each.path).error_type for each in operations]
    unique = list(dict.fromkeys([*shapes, *errors]))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REFERENCE)
    schema_of = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        path = _PARAMETER.sub(r"{\1}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "octavo", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(each: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{each.method.lower()}{re.sub(r'[^a-z0-9]+', '_', each.path.lower())}".rstrip("_"),
        "summary": (inspect.getdoc(each.handler) or each.path).partition("\n")[0],
        "responses": {"200": _answer(each, schema_of), **_errors(each, schema_of[dialect_of(each.path).error_type])},
    }
    parameters = [_path_parameter(name) for name in _PARAMETER.findall(each.path)]
    if each.queries is not None:
        parameters += _query_parameters(each.queries)
    if parameters:
        described["parameters"] = parameters
    if each.takes is not None:
        content = {each.media: {"schema": schema_of[each.takes]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(each: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if each.gives is not None:
        content["application/json"] = {"schema": schema_of[each.gives]}
    if each.events is not None:
        kind = dialect_of(each.path).framing.media_type.partition(";")[0]
        content[kind] = {"schema": {"type": "string"}, "x-event": schema_of[each.events]}
    if not content:
        content[each.gives_media] = {"schema": {"type": "string"}}
    return {"description": "The answer.", "content": content}


def _errors(each: Operation, schema: Any) -> dict[str, Any]:
    body = {"application/json": {"schema": schema}}
    return {status: {"description": why, "content": body} for status, why in _possible(each)}


def _possible(each: Operation) -> Iterable[tuple[str, str]]:
    impossible = set()
    if each.takes is None:
        impossible |= {"408", "413", "415", "429"}
        impossible |= {"400"} if each.method == "GET" and each.queries is None else set()
    if each.media == "application/json":
        impossible.add("507")
    return ((status, why) for status, why in _ERRORS.items() if status not in impossible)


def _query_parameters(shape: Any) -> list[dict[str, Any]]:
    (_,), components = msgspec.json.schema_components([shape], ref_template=_REFERENCE)
    described = components[shape.__name__]
    return [
        {"name": name, "in": "query", "required": name in described.get("required", ()), "schema": schema}
        for name, schema in described["properties"].items()
    ]


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
