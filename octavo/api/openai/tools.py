"""Which tools a chat request offers, and which of them the answer may or must call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.api import limits
from octavo.api.openai.types import ChatRequest, FunctionDefinition, FunctionName, Tool, ToolChoice, ToolReference
from octavo.api.wire import missing
from octavo.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
_MODES = ("none", "auto", "required")

Choice = str | ToolChoice | FunctionName | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """`shown`: all tools, as chat templates take them. `known`: those that may be called, with their schemas."""

    shown: Sequence[dict[str, Any]]
    known: Mapping[str, Mapping[str, Any]]
    required: bool  # at least one call
    parallel: bool  # maybe more than one


def tool_use(request: ChatRequest) -> ToolUse | None:
    """None if the answer is to call no tool. Raises InvalidRequest."""
    old = not request.tools and (request.functions or request.function_call is not None)
    choice, place = (request.function_call, "function_call") if old else (request.tool_choice, "tool_choice")
    if request.tools and request.functions:
        raise InvalidRequest("Send either 'tools' or 'functions', not both.", param="functions", code="invalid_value")
    functions = _of_functions(request.functions or ()) if old else _of_tools(request.tools or ())
    shown = _shown(functions, "functions" if old else "tools")
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in shown}
    if not schemas:
        if choice in (None, "none", "auto"):
            return None
        message = f"'{place}' is only allowed when '{'functions' if old else 'tools'}' are specified."
        raise InvalidRequest(message, param=place, code="invalid_value")
    names, required, single = _chosen(choice, place, list(schemas))
    if not names:
        return None
    return ToolUse(
        shown=shown,
        known={name: schemas[name] for name in names},
        required=required,
        parallel=not (old or single or request.parallel_tool_calls is False),
    )


def shown_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """As chat templates take them. Raises InvalidRequest."""
    return _shown(_of_tools(tools or ()), "tools")


def _shown(functions: Iterable[tuple[FunctionDefinition, str]], field: str) -> list[dict[str, Any]]:
    shown: dict[str, dict[str, Any]] = {}
    for function, place in functions:
        _check(function, place, shown)
        described = {"name": function.name, "description": function.description or ""}
        parameters = function.parameters or {"type": "object", "properties": {}}
        shown[function.name] = {"type": "function", "function": {**described, "parameters": parameters}}
    if len(msgspec.json.encode(shown)) > limits.TOOLS_BYTES:
        message = f"The tools are larger than {limits.TOOLS_BYTES} bytes of JSON."
        raise InvalidRequest(message, param=field, code="string_above_max_length")
    return list(shown.values())


def _of_functions(functions: Sequence[FunctionDefinition]) -> Iterator[tuple[FunctionDefinition, str]]:
    """Each with its place in the request."""
    yield from ((each, f"functions[{index}]") for index, each in enumerate(functions))


def _of_tools(tools: Sequence[Tool]) -> Iterator[tuple[FunctionDefinition, str]]:
    """Each with its place in the request. Raises InvalidRequest."""
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if tool.type != "function":
            message = f"Invalid '{place}.type': this server has only 'function' tools, not {tool.type[:64]!r}."
            raise InvalidRequest(message, param=f"{place}.type", code="invalid_value")
        if tool.function is None:
            raise missing(f"{place}.function")
        yield tool.function, f"{place}.function"


def _check(function: FunctionDefinition, place: str, earlier: Mapping[str, Any]) -> None:
    if len(function.name) > limits.FUNCTION_NAME_LENGTH or not _NAME.fullmatch(function.name):
        message = (
            f"Invalid '{place}.name': a name has 1 to {limits.FUNCTION_NAME_LENGTH} letters, digits and characters of "
            "'_-.:/', the first one being a letter, a digit or '_'."
        )
        raise InvalidRequest(message, param=f"{place}.name", code="invalid_value")
    if function.name in earlier:
        message = f"Invalid '{place}.name': there is another tool of the name {function.name!r}."
        raise InvalidRequest(message, param=f"{place}.name", code="invalid_value")
    parameters = function.parameters or {}
    if parameters.get("type", "object") != "object" or not isinstance(parameters.get("properties") or {}, dict):
        message = f"Invalid '{place}.parameters': its 'type' must be 'object', and its 'properties' must be one."
        raise InvalidRequest(message, param=f"{place}.parameters", code="invalid_function_parameters")


def _chosen(choice: Choice, place: str, names: list[str]) -> tuple[list[str], bool, bool]:
    """The names that may be called, whether one must be, and whether only one may be. Raises InvalidRequest."""
    match choice:
        case None | "auto":
            return names, False, False
        case "none":
            return [], False, False
        case "required":
            return names, True, False
        case str():
            listed = ", ".join(map(repr, _MODES))
            message = f"Invalid '{place}': {choice[:64]!r} is none of {listed}; a tool is named as an object."
            raise InvalidRequest(message, param=place, code="invalid_value")
        case ToolChoice(type="allowed_tools", allowed_tools=allowed) if allowed is not None:
            where = f"{place}.allowed_tools.tools"
            chosen = {_named(each, f"{where}[{index}]", names) for index, each in enumerate(allowed.tools)}
            return [name for name in names if name in chosen], allowed.mode == "required", False
        case FunctionName():
            return [_known(choice.name, f"{place}.name", names)], True, True
    return [_named(choice, place, names)], True, True


def _named(reference: ToolReference, place: str, names: list[str]) -> str:
    if reference.type != "function":
        message = f"Invalid '{place}.type': expected 'function', not {reference.type[:64]!r}."
        raise InvalidRequest(message, param=f"{place}.type", code="invalid_value")
    if reference.function is None:
        raise missing(f"{place}.function")
    return _known(reference.function.name, f"{place}.function.name", names)


def _known(name: str, place: str, names: list[str]) -> str:
    if name not in names:
        message = f"Invalid '{place}': there is no tool of the name {name[:64]!r}."
        raise InvalidRequest(message, param=place, code="invalid_value")
    return name
