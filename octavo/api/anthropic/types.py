"""The bodies of Anthropic's Messages API, as structs: what is asked, what is answered, and a stream's events.

`UNSUPPORTED` names what is refused rather than ignored. `cache_control`, in whatever it stands, is neither: prompts are
cached without it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from octavo.api import limits
from octavo.api.openai.types import INT_MAX, MaxTokens, Name, Share, StopString

_STATELESS = "This server keeps nothing between requests and runs no tools of its own."
UNSUPPORTED = {"container": _STATELESS, "mcp_servers": _STATELESS}

WITHOUT_EFFECT = {
    "cache_control": "Prompts are cached without being told to.",
    "service_tier": "There is one.",
}

# ---- what is asked ----


class Block(Struct, kw_only=True):
    """A piece of a message or of a system prompt; which fields it has depends on its type."""

    type: Name
    text: str | None = None
    thinking: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | Annotated[list[Block], Meta(max_length=limits.CONTENT_PARTS)] | None = None
    is_error: bool | None = None


Blocks = Annotated[list[Block], Meta(max_length=limits.CONTENT_PARTS)]


class MessageParam(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolParam(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=limits.NAME_LENGTH)]
    type: Name | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoiceParam(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: MaxTokens | None = None
    display: Name | None = None


class OutputFormat(Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, kw_only=True):
    effort: Name | None = None
    format: OutputFormat | None = None


class Metadata(Struct, kw_only=True):
    user_id: str | None = None


class CountTokensRequest(Struct, kw_only=True):
    model: str
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=limits.MESSAGES)]
    system: str | Blocks | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: MaxTokens
    stop_sequences: Annotated[list[StopString], Meta(max_length=limits.STOP_SEQUENCES)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT_MAX)] | None = None
    metadata: Metadata | None = None
    service_tier: Name | None = None


# ---- what is answered ----


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class TextBlock(Struct, kw_only=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Struct, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Raw  # an object


class OutputDetails(Struct, kw_only=True):
    thinking_tokens: int


class MessageUsage(Struct, kw_only=True):
    """`input_tokens` are those that were not found in the cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails


class Message(Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(Struct, kw_only=True):
    input_tokens: int


# ---- a stream's events ----


class MessageStart(Struct, kw_only=True, tag_field="type", tag="message_start"):
    message: Message


class Ping(Struct, kw_only=True, tag_field="type", tag="ping"):
    pass


class BlockStart(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class TextDelta(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputJsonDelta(Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


class BlockStop(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    index: int


class StopDelta(Struct, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, kw_only=True, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: MessageUsage


class MessageStop(Struct, kw_only=True, tag_field="type", tag="message_stop"):
    pass
