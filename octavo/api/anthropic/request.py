"""From a Messages API request to the ChatRequest that means the same.

A message's blocks become chat messages: results of tools speak for themselves, and an assistant's thinking, text and
tool calls are one message. A conversation that ends with the assistant's text is continued within that text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from octavo.api.anthropic.types import (
    Block,
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    ToolChoiceParam,
    ToolParam,
)
from octavo.api.openai.types import (
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
)
from octavo.api.wire import missing
from octavo.errors import InvalidRequest

#: What fields of a ChatRequest are called here.
NAMES = {
    r"stop\b": "stop_sequences",
    r"response_format(\.json_schema)?": "output_config.format",
    r"reasoning_effort": "output_config.effort",
    r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(tools\[\d+\])\.function": r"\1",
    r"tool_choice\.function": "tool_choice",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(request: CountTokensRequest) -> ChatRequest:
    """Raises InvalidRequest, naming the fields of this dialect."""
    messages = list(_messages(request))
    prefilled = messages[-1].role == "assistant"
    if prefilled and messages[-1].tool_calls:
        raise _invalid("messages", "the conversation ends with a tool_use block; its tool_result is missing.")
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        continue_final_message=prefilled or None,
        **_tools(request),
        **_thinking(request),
    )
    if isinstance(request, MessagesRequest):
        chat.stop = request.stop_sequences or None
        chat.user = request.metadata.user_id if request.metadata else None
        chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    return chat


def _invalid(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {what}", param=param, code="invalid_value")


# ---- messages ----


def _messages(request: CountTokensRequest) -> Iterator[ChatMessage]:
    if request.system:
        yield ChatMessage(role="system", content=_text(request.system, "system"))
    for index, message in enumerate(request.messages):
        place = f"messages[{index}].content"
        if message.role == "assistant":
            yield _assistant(message, place)
        else:
            yield from _asking(message, place)


def _assistant(message: MessageParam, place: str) -> ChatMessage:
    if isinstance(message.content, str):
        return ChatMessage(role="assistant", content=message.content)
    chat = ChatMessage(role="assistant")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(message.content):
        where = f"{place}[{index}]"
        match block.type:
            case "text":
                texts.append(_field(block, "text", where))
            case "thinking":
                reasoning.append(_field(block, "thinking", where))
            case "redacted_thinking":
                pass  # nobody but its maker can read it
            case "tool_use":
                calls.append(_tool_call(block, where))
            case _:
                raise _unread(block, where)
    chat.content = "".join(texts) if texts or not calls else None
    chat.reasoning = "".join(reasoning) or None
    chat.tool_calls = calls or None
    return chat


def _tool_call(block: Block, where: str) -> ToolCall:
    arguments = msgspec.json.encode(_field(block, "input", where)).decode()
    function = FunctionCall(name=_field(block, "name", where), arguments=arguments)
    return ToolCall(id=_field(block, "id", where), type="function", function=function)


def _asking(message: MessageParam, place: str) -> Iterator[ChatMessage]:
    """A user's message; results of tools come as messages of their own, in the order of the blocks."""
    if isinstance(message.content, str):
        yield ChatMessage(role=message.role, content=message.content)
        return
    texts: list[ContentPart] = []
    for index, block in enumerate(message.content):
        where = f"{place}[{index}]"
        if block.type == "text":
            texts.append(ContentPart(type="text", text=_field(block, "text", where)))
            continue
        if block.type != "tool_result" or message.role != "user":
            raise _unread(block, where)
        if texts:
            yield ChatMessage(role=message.role, content=texts)
            texts = []
        result = _text(block.content or "", f"{where}.content")
        yield ChatMessage(role="tool", content=result, tool_call_id=_field(block, "tool_use_id", where))
    if texts or not message.content:
        yield ChatMessage(role=message.role, content=texts or "")


def _text(content: str | Sequence[Block], place: str) -> str:
    """What may hold nothing but text."""
    if isinstance(content, str):
        return content
    return "\n".join(_only_text(block, f"{place}[{index}]") for index, block in enumerate(content))


def _only_text(block: Block, where: str) -> str:
    if block.type != "text":
        raise _unread(block, where)
    text: str = _field(block, "text", where)
    return text


def _unread(block: Block, where: str) -> InvalidRequest:
    return _invalid(f"{where}.type", f"blocks of type {block.type[:64]!r} are not supported here.")


def _field(block: Block, name: str, where: str) -> Any:
    value = getattr(block, name)
    if value is None:
        raise missing(f"{where}.{name}")
    return value


# ---- tools and thinking ----


def _tools(request: CountTokensRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if request.tools:
        fields["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is not None:
        fields["tool_choice"] = _CHOICES.get(choice.type) or _named(choice)
        fields["parallel_tool_calls"] = False if choice.disable_parallel_tool_use else None
    return fields


def _named(choice: ToolChoiceParam) -> ToolChoice:
    if choice.name is None:
        raise missing("tool_choice.name")
    return ToolChoice(function=FunctionName(name=choice.name))


def _tool(tool: ToolParam, place: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise _invalid(f"{place}.type", f"this server has only 'custom' tools, not {tool.type[:64]!r}.")
    if tool.input_schema is None:
        raise missing(f"{place}.input_schema")
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool(function=function)


def _thinking(request: CountTokensRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    thinking, config = request.thinking, request.output_config
    if thinking is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": thinking.type != "disabled"}
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if config is not None and config.format is not None:
        schema = JsonSchemaFormat(schema=config.format.schema)
        fields["response_format"] = ResponseFormat(type="json_schema", json_schema=schema)
    return fields
