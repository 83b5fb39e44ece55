"""From a Responses API request to the ChatRequest that means the same.

The items that an assistant's turn consists of (what it thought, said and called) become one chat message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.api.openai.types import (
    AllowedTools,
    ChatMessage,
    ChatRequest,
    ContentPart,
    FunctionCall,
    FunctionDefinition,
    FunctionName,
    JsonSchemaFormat,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
    ToolReference,
)
from octavo.api.responses.types import (
    Content,
    FunctionTool,
    InputItem,
    NamedTool,
    ResponsesRequest,
    ResponseToolChoice,
)
from octavo.api.wire import missing
from octavo.errors import InvalidRequest

#: What fields of a ChatRequest are called here.
NAMES = {
    r"messages\b.*": "input",
    r"max_completion_tokens": "max_output_tokens",
    r"response_format(\.json_schema)?": "text.format",
    r"reasoning_effort": "reasoning.effort",
    r"(tools\[\d+\])\.function": r"\1",
    r"tool_choice\.function": "tool_choice",
    r"tool_choice\.allowed_tools": "tool_choice",
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
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
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
                turn = self._silent_turn()
                turn.reasoning = (turn.reasoning or "") + _reasoning(item, place)
            case "function_call":
                turn = self._turn or self._begin_turn()
                turn.tool_calls = turn.tool_calls or []
                turn.tool_calls.append(_tool_call(item, place))
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
            self._silent_turn().content = content
        else:
            self._append(ChatMessage(role=role, content=content))

    def _append(self, message: ChatMessage) -> None:
        self._messages.append(message)
        self._turn = None

    def _begin_turn(self) -> ChatMessage:
        turn = ChatMessage(role="assistant", content="")
        self._append(turn)
        self._turn = turn
        return turn

    def _silent_turn(self) -> ChatMessage:
        """The assistant's turn that goes on, if nothing has been said or called in it yet, else another."""
        turn = self._turn
        return self._begin_turn() if turn is None or turn.content or turn.tool_calls else turn


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
    fields: dict[str, Any] = {}
    if request.tools:
        fields["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    if request.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    return fields


def _tool(tool: FunctionTool, place: str) -> Tool:
    if tool.type != "function":
        what = (
            f"this server runs no tools of its own, only calls of 'function' tools are made, not of {tool.type[:64]!r}."
        )
        raise _invalid(f"{place}.type", what)
    if tool.name is None:
        raise missing(f"{place}.name")
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(function=function)


def _tool_choice(choice: str | ResponseToolChoice) -> str | ToolChoice:
    if isinstance(choice, str):
        return choice
    if choice.type == "allowed_tools":
        if not choice.tools:
            raise missing("tool_choice.tools")
        references = [_reference(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(choice.tools)]
        allowed = AllowedTools(mode=choice.mode or "auto", tools=references)
        return ToolChoice(type=choice.type, allowed_tools=allowed)
    return ToolChoice(type=choice.type, function=_reference(choice, "tool_choice").function)


def _reference(tool: NamedTool | ResponseToolChoice, place: str) -> ToolReference:
    if tool.name is None:
        raise missing(f"{place}.name")
    return ToolReference(type=tool.type, function=FunctionName(name=tool.name))


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
