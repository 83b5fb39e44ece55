"""From a chat or generate request of Ollama's API to the OpenAI ChatRequest that means the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from octavo.api.ollama import types as ollama
from octavo.api.openai.types import (
    ChatMessage,
    ChatRequest,
    FunctionCall,
    FunctionDefinition,
    JsonSchemaFormat,
    ResponseFormat,
    Tool,
    ToolCall,
)
from octavo.errors import InvalidRequest

#: What fields of a ChatRequest are called here.
NAMES = {
    r"response_format(\.json_schema)?": "format",
    r"repetition_penalty": "options.repeat_penalty",
    r"(temperature|top_k|top_p|min_p|seed|stop)\b": r"options.\1",
}
_ROLES = ("system", "user", "assistant", "tool")
_NEUTRAL = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0}  # options that would change the answer and are not known
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<amount>\d+(?:\.\d*)?|\.\d+)(?P<unit>ns|us|µs|ms|s|m|h)")


def model_name(name: str) -> str:
    """A name without the tag that Ollama gives to a model that has none."""
    return name.removesuffix(":latest")


def seconds(keep_alive: float | str) -> float:
    """How long a model is to stay: a number of seconds or a text like "1h30m"; below 0, for ever."""
    if not isinstance(keep_alive, str):
        return keep_alive
    sign, text = (-1.0, keep_alive[1:]) if keep_alive.startswith("-") else (1.0, keep_alive)
    found = list(_DURATION.finditer(text))
    if text != "0" and (not found or "".join(match[0] for match in found) != text):
        what = f"{keep_alive!r} is neither a number of seconds nor a duration like '5m'."
        raise InvalidRequest(f"Invalid 'keep_alive': {what}", param="keep_alive", code="invalid_value")
    return sign * sum(float(match["amount"]) * _UNITS[match["unit"]] for match in found)


def of_chat(request: ollama.OllamaChatRequest) -> ChatRequest:
    """Raises InvalidRequest."""
    messages = list(_messages(request.messages or ()))
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    last = messages[-1]
    continued = last.role == "assistant" and not last.tool_calls
    return _chat_request(request, messages, tools=tools or None, continue_final_message=continued or None)


def of_generate(request: ollama.OllamaGenerateRequest) -> ChatRequest:
    """Raises InvalidRequest."""
    messages = [ChatMessage(role="user", content=request.prompt or "")]
    if request.system:
        messages.insert(0, ChatMessage(role="system", content=request.system))
    return _chat_request(request, messages)


def _chat_request(request: ollama.CommonFields, messages: list[ChatMessage], **fields: Any) -> ChatRequest:
    options = request.options or ollama.Options()
    for name, neutral in _NEUTRAL.items():
        if getattr(options, name) not in (None, neutral):
            param = f"options.{name}"
            message = f"Unsupported parameter: '{param}'. This server does not sample that way."
            raise InvalidRequest(message, param=param, code="unsupported_parameter")
    return ChatRequest(
        model=model_name(request.model),
        messages=messages,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop or None,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logprobs=request.logprobs or None,
        top_logprobs=request.top_logprobs if request.logprobs else None,
        **_thinking(request.think),
        **_format(request.format),
        **fields,
    )


def _thinking(think: ollama.Think | None) -> dict[str, Any]:
    if think is None:
        return {}
    if think is False:
        return {"reasoning_effort": "none"}
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    return fields if think is True else {**fields, "reasoning_effort": think}


def _format(format: ollama.Format | None) -> dict[str, Any]:
    if not format:
        return {}
    if isinstance(format, str):
        return {"response_format": ResponseFormat(type="json_object")}
    schema = JsonSchemaFormat(schema=format)
    return {"response_format": ResponseFormat(type="json_schema", json_schema=schema)}


def _tool(tool: ollama.OllamaTool, place: str) -> Tool:
    if tool.type not in (None, "function"):
        raise _invalid(f"{place}.type", f"must be 'function', not {tool.type[:64]!r}.")
    told = tool.function
    function = FunctionDefinition(name=told.name, description=told.description, parameters=told.parameters)
    return Tool(type="function", function=function)


def _messages(messages: Iterable[ollama.OllamaMessage]) -> Iterator[ChatMessage]:
    """Calls and their results, which need no ids here, get some: a result belongs to the first call without one."""
    open_calls: list[tuple[str, str]] = []  # ids and names
    made = 0
    for index, message in enumerate(messages):
        role = message.role.lower()
        if role not in _ROLES:
            raise _invalid(f"messages[{index}].role", f"{message.role[:64]!r} is none of {', '.join(_ROLES)}.")
        if message.images:
            raise _invalid(f"messages[{index}].images", "this model reads only text.")
        chat = ChatMessage(role=role, content=message.content or "")
        if role == "assistant":
            chat.reasoning = message.thinking or None
            calls = [_tool_call(call, made + offset) for offset, call in enumerate(message.tool_calls or ())]
            made += len(calls)
            open_calls = [(call.id or "", call.function.name) for call in calls]
            chat.tool_calls = calls or None
        elif role == "tool":
            chat.name = message.tool_name
            chat.tool_call_id = message.tool_call_id or _answered(open_calls, message.tool_name)
        yield chat


def _tool_call(call: ollama.OllamaToolCall, number: int) -> ToolCall:
    arguments = msgspec.json.encode(call.function.arguments or {}).decode()
    function = FunctionCall(name=call.function.name, arguments=arguments)
    return ToolCall(id=call.id or f"call_{number}", type="function", function=function)


def _answered(open_calls: list[tuple[str, str]], name: str | None) -> str | None:
    """The id of the first open call of that name, or of any; it is open no longer."""
    for index, (call_id, called) in enumerate(open_calls):
        if name in (None, called):
            del open_calls[index]
            return call_id
    return None


def _invalid(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {what}", param=param, code="invalid_value")
