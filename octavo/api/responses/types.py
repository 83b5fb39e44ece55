"""The bodies of the Responses API, as structs: what is asked, what is answered, and a stream's events.

`UNSUPPORTED` names what is refused rather than ignored. This server keeps nothing between requests: whoever goes on
with a conversation sends its items again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from octavo.api import limits
from octavo.api.openai.types import (
    INT_MAX,
    CacheSalt,
    Int32,
    Int64,
    MaxTokens,
    Name,
    Share,
    Stop,
    TemplateKwargs,
    Timeout,
    TokenLogprob,
)

_STATELESS = "This server is stateless: it keeps no responses, so send the conversation's items in 'input'."
UNSUPPORTED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": "This server is stateless: a response is computed while its request is open.",
    "prompt": "This server keeps no prompts; send the text itself in 'instructions' or 'input'.",
    "context_management": "This server shortens no conversations.",
    "moderation": "This server does not moderate.",
}

WITHOUT_EFFECT = {
    "store": "Nothing is stored.",
    "max_tool_calls": "It counts calls of tools that the server runs, and this one runs none.",
    "service_tier": "There is one.",
    "stream_options": "Events are not padded.",
    "prompt_cache_key": "Prompts are cached without being told to; it is told again in the answer.",
    "prompt_cache_retention": "Prompts are cached without being told to.",
    "safety_identifier": "It is told again in the answer.",
}

# ---- what is asked ----


class Content(Struct, kw_only=True):
    """A piece of a message, of reasoning or of a tool's output."""

    type: Name
    text: str | None = None
    refusal: str | None = None


Contents = Annotated[list[Content], Meta(max_length=limits.CONTENT_PARTS)]


class InputItem(Struct, kw_only=True):
    """A message, a call of a function, its output, or what the model thought; which fields it has depends on that."""

    type: Name | None = None  # none: a message
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Contents | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | Contents | None = None
    summary: Contents | None = None


class FunctionTool(Struct, kw_only=True):
    type: Name
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Struct, kw_only=True):
    type: Name
    name: Name | None = None


class ResponseToolChoice(Struct, kw_only=True, omit_defaults=True):
    type: Name
    name: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[NamedTool], Meta(max_length=limits.TOOLS)] | None = None


class TextFormat(Struct, kw_only=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, kw_only=True):
    effort: Name | None = None
    summary: Name | None = None


class ResponseStreamOptions(Struct, kw_only=True):
    include_obfuscation: bool | None = None


Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
                     Meta(max_length=16)]  # fmt: skip


class ResponsesRequest(Struct, kw_only=True):
    """The fields after `user` are vLLM's."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=limits.MESSAGES)]
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=limits.TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=0, le=INT_MAX)] | None = None  # of tools that OpenAI runs
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.CHAT_TOP_LOGPROBS)] | None = None
    include: Annotated[list[Name], Meta(max_length=16)] | None = None
    metadata: Metadata | None = None
    truncation: Literal["disabled", "auto"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    service_tier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Name | None = None
    safety_identifier: Name | None = None
    user: Name | None = None
    seed: Int64 | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT_MAX)] | None = None
    min_p: Share | None = None
    repetition_penalty: float | None = None
    stop: Stop | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    priority: Int32 | None = None
    cache_salt: CacheSalt | None = None
    timeout: Timeout | None = None


# ---- what is answered ----

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningItem(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[Any] = []
    content: list[ReasoningText]
    encrypted_content: None = None


class FunctionCallItem(Struct, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem


class InputTokensDetails(Struct, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct, kw_only=True):
    code: str
    message: str


class IncompleteDetails(Struct, kw_only=True):
    reason: Literal["max_output_tokens"]


class Response(Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float | None
    text: TextConfig
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice
    tools: list[Any]  # as they were asked for
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


# ---- a stream's events ----


class Event(Struct, kw_only=True, tag_field="type"):
    sequence_number: int = 0


class ResponseCreated(Event, tag="response.created", kw_only=True):
    response: Response


class ResponseInProgress(Event, tag="response.in_progress", kw_only=True):
    response: Response


class ResponseCompleted(Event, tag="response.completed", kw_only=True):
    response: Response


class ResponseIncomplete(Event, tag="response.incomplete", kw_only=True):
    response: Response


class ResponseFailed(Event, tag="response.failed", kw_only=True):
    response: Response


class ItemAdded(Event, tag="response.output_item.added", kw_only=True):
    output_index: int
    item: OutputItem


class ItemDone(Event, tag="response.output_item.done", kw_only=True):
    output_index: int
    item: OutputItem


class InItem(Event, kw_only=True):
    """What happens within an item."""

    item_id: str
    output_index: int


class InContent(InItem, kw_only=True):
    content_index: int = 0


class ContentAdded(InContent, tag="response.content_part.added", kw_only=True):
    part: OutputText | ReasoningText


class ContentDone(InContent, tag="response.content_part.done", kw_only=True):
    part: OutputText | ReasoningText


class OutputTextDelta(InContent, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(InContent, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(InContent, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningDone(InContent, tag="response.reasoning_text.done", kw_only=True):
    text: str


class ArgumentsDelta(InItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(InItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


ResponseEvent: Any = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | ItemAdded
    | ItemDone
    | ContentAdded
    | ContentDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
