"""From a Responses API request to the ChatRequest that means the same.

The items that an assistant's turn consists of (what it thought, said and called) become one chat message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.api.openai.types import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    FunctionCall,
    JsonSchemaFormat,
    ResponseFormat,
    ToolCall,
)
from octavo.api.responses.types import Content, InputItem, ResponsesRequest
from octavo.api.wire import missing
from octavo.errors import InvalidRequest

#: What fields of a ChatRequest are called here.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "user", "priority",
         "cache_salt", "timeout", "chat_template_kwargs", "parallel_tool_calls")  # fmt: skip
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_LOGPROBS = "message.output_text.logprobs"


def chat_request(request: ResponsesRequest) -> ChatRequest:
    """Raises InvalidRequest, naming the fields of this dialect."""
    if request.truncation == "auto":
        raise InvalidRequest(
            "Unsupported parameter: 'truncation'. This server shortens no conversations; send fewer items.",
            param="truncation",
            code="unsupported_parameter",
        )
    wants_logprobs = bool(request.top_logprobs) or _LOGPROBS in (request.include or ())
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_output_tokens,
        logprobs=wants_logprobs or None,
        top_logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        **{name: getattr(request, name) for name in _SAME},
        **_tools(request),
        **_format(request),
    )


# ---- items ----


def _messages(request: ResponsesRequest) -> list[ChatMessage]:
    messages = [] if request.instructions is None else [ChatMessage(role="system", content=request.instructions)]
    if isinstance(request.input, str):
        messages.append(ChatMessage(role="user", content=request.input))
    else:
        conversation = _Conversation(messages)
        for index, item in enumerate(request.input):
            conversation.add(item, f"input[{index}]")
    return messages


class _Conversation:
    """Chat messages made from items, one after the other."""

    def __init__(self, messages: list[ChatMessage]) -> None:
        self._messages = messages
        self._turn: ChatMessage | None = None  # the assistant's, while its items come

    def add(self, item: InputItem, place: str) -> None:
        match item.type:
            case None | "message":
                self._add_message(item, place)
            case "reasoning":
                _reasoning(item, place)
            case "function_call":
                turn = self._assistant(said=None)
                turn.tool_calls = [*(turn.tool_calls or ()), _tool_call(item, place)]
            case "function_call_output":
                output = _text(_field(item, "output", place), f"{place}.output")
                self._append(ChatMessage(role="tool", content=output, tool_call_id=_field(item, "call_id", place)))
            case "item_reference":
                raise _invalid(f"{place}.type", "this server is stateless and keeps no items; send the item itself.")
            case _:
                raise _invalid(f"{place}.type", f"items of type {item.type[:64]!r} are not supported.")

    def _add_message(self, item: InputItem, place: str) -> None:
        role = _field(item, "role", place)
        content = _parts(_field(item, "content", place), f"{place}.content")
        if role == "assistant":
            self._assistant(said=False).content = content
        else:
            self._append(ChatMessage(role=role, content=content))

    def _append(self, message: ChatMessage) -> None:
        self._messages.append(message)
        self._turn = None

    def _assistant(self, *, said: bool | None) -> ChatMessage:
        """The assistant's turn that goes on, or another. said=False: one that has not said anything yet."""
        turn = self._turn
        if turn is None or (said is False and (turn.content is not None or turn.tool_calls)):
            turn = ChatMessage(role="assistant", content=None)
            self._append(turn)
            self._turn = turn
        return turn


def _reasoning(item: InputItem, place: str) -> str:
    content = item.content or item.summary or ""
    return _text(content, f"{place}.content")


def _tool_call(item: InputItem, place: str) -> ToolCall:
    function = FunctionCall(name=_field(item, "name", place), arguments=_field(item, "arguments", place))
    return ToolCall(id=_field(item, "call_id", place), type="function", function=function)


def _parts(content: str | Sequence[Content], place: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    texts = [_content(part, f"{place}[{index}]") for index, part in enumerate(content)]
    return [ContentPart(type="text", text=text) for text in texts] or ""


def _text(content: str | Sequence[Content], place: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_content(part, f"{place}[{index}]") for index, part in enumerate(content))


def _content(part: Content, place: str) -> str:
    if part.type not in (*_TEXTS, "refusal"):
        raise _invalid(f"{place}.type", f"this model reads only text, not {part.type[:64]!r}.")
    text: str = _field(part, "refusal" if part.type == "refusal" else "text", place)
    return text


def _field(holder: InputItem | Content, name: str, place: str) -> Any:
    value = getattr(holder, name)
    if value is None:
        raise missing(f"{place}.{name}")
    return value


def _invalid(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {what}", param=param, code="invalid_value")


# ---- tools and format ----


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    if request.tools:
        raise _invalid("tools", "this server does not support tools yet.")
    return {}


def _format(request: ResponsesRequest) -> dict[str, Any]:
    told = request.text and request.text.format
    if not told or told.type == "text":
        return {}
    if told.type == "json_object":
        return {"response_format": ResponseFormat(type=told.type)}
    if told.schema is None:
        raise missing("text.format.schema")
    schema = JsonSchemaFormat(name=told.name, description=told.description, schema=told.schema, strict=told.strict)
    return {"response_format": ResponseFormat(type=told.type, json_schema=schema)}
