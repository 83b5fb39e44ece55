"""What an answer has to look like: `response_format`, vLLM's `structured_outputs` and its older `guided_*` fields.

All become one `StructuredOutputs`. The engine's complaints about it name the field that the caller used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from octavo.api.openai.types import ResponseFormat, StructureFields
from octavo.api.wire import missing
from octavo.errors import InvalidRequest
from octavo.request import StructuredOutputs

_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


def structured_outputs(request: StructureFields) -> StructuredOutputs | None:
    """None where any text will do. Raises InvalidRequest."""
    fields = _fields(request)
    if len(fields) > 1:
        message = f"'{fields[0]}' and '{fields[1]}' both say what the output has to look like; send one of them."
        raise InvalidRequest(message, param=fields[1], code="invalid_value")
    if not fields:
        return None
    with field_name(request):
        return _structure(request, fields[0])


@contextmanager
def field_name(request: StructureFields) -> Iterator[None]:
    """What is wrong with a structure is wrong with the field that it came in."""
    try:
        yield
    except InvalidRequest as error:
        if error.param == "structured_outputs":
            error.param = next(iter(_fields(request)), error.param)
        raise


def _fields(request: StructureFields) -> list[str]:
    given = [name for name in ("structured_outputs", *_GUIDED) if getattr(request, name) is not None]
    formatted = request.response_format is not None and request.response_format.type != "text"
    return ["response_format"] * formatted + given


def _structure(request: StructureFields, field: str) -> StructuredOutputs:
    if field == "response_format":
        assert request.response_format is not None
        return StructuredOutputs(**_of_format(request.response_format))
    if field == "structured_outputs":
        given = request.structured_outputs
        return StructuredOutputs(**{name: getattr(given, name) for name in StructuredOutputs.__struct_fields__})
    guided: dict[str, Any] = {_GUIDED[field]: getattr(request, field)}
    return StructuredOutputs(**guided, whitespace_pattern=request.guided_whitespace_pattern)


def _of_format(form: ResponseFormat) -> dict[str, Any]:
    match form.type:
        case "json_object":
            return {"json_object": True} if form.schema is None else {"json": form.schema}
        case "json_schema":
            if form.json_schema is None:
                raise missing("response_format.json_schema")
            if form.json_schema.schema is None:
                raise missing("response_format.json_schema.schema")
            return {"json": form.json_schema.schema}
        case "regex" | "grammar":
            if (text := getattr(form, form.type)) is None:
                raise missing(f"response_format.{form.type}")
            return {form.type: text}
        case "structural_tag":
            return {"structural_tag": json.dumps({"structures": form.structures, "triggers": form.triggers})}
    known = "text, json_object, json_schema, regex, grammar and structural_tag"
    message = f"Unsupported response_format type {form.type[:64]!r}: this server knows {known}."
    raise InvalidRequest(message, param="response_format.type", code="invalid_value")
