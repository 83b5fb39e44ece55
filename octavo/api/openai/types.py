"""The bodies of the OpenAI-style endpoints, as structs. Ranges and lengths are checked while a body is decoded.

Field names and defaults are OpenAI's, then vLLM's for what OpenAI lacks. None means that the caller left it out: the
model's own sampling default, else OpenAI's, takes its place. `*_UNSUPPORTED` names what is refused rather than ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from octavo.api import limits
from octavo.face import State, VersionCard
from octavo.request import MAX_LOGIT_BIAS, MAX_SEQUENCES_PER_REQUEST, FinishReason

TurnFinish = FinishReason | Literal["tool_calls"]
ChatFinish = TurnFinish | Literal["function_call"]
INT_MAX = 2**31 - 1
Count = Annotated[int, Meta(ge=0, le=INT_MAX)]
Sequences = Annotated[int, Meta(ge=1, le=MAX_SEQUENCES_PER_REQUEST)]
MaxTokens = Annotated[int, Meta(ge=1, le=INT_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=INT_MAX)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=INT_MAX)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Bias = Annotated[float, Meta(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
PromptLogprobsCount = Annotated[int, Meta(ge=-1, le=INT_MAX)]
Timeout = Annotated[float, Meta(ge=0.001, le=limits.TIMEOUT_SECONDS)]
Name = Annotated[str, Meta(max_length=limits.NAME_LENGTH)]
StopString = Annotated[str, Meta(min_length=1, max_length=limits.STOP_STRING_LENGTH)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=limits.STOP_STRINGS)]
BadWord = Annotated[str, Meta(min_length=1, max_length=limits.BAD_WORD_LENGTH)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=limits.CACHE_SALT_LENGTH)]
Prompt = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
TemplateValue = bool | Int64 | float | Annotated[str, Meta(max_length=limits.TEMPLATE_KWARG_LENGTH)] | None
TemplateKwargs = Annotated[dict[str, TemplateValue], Meta(max_length=limits.TEMPLATE_KWARGS)]

_LATER = "This server does not support it yet."
_NOT_HERE = "This server does not support it."

CHAT_UNSUPPORTED = {
    "chat_template": "The server uses the model's own template; it can be set with --chat-template.",
    "audio": _NOT_HERE,
    "web_search_options": _NOT_HERE,
    "echo": "To continue the last message, use continue_final_message.",
    "mm_processor_kwargs": _NOT_HERE,
    "kv_transfer_params": _NOT_HERE,
    "truncate_prompt_tokens": _NOT_HERE,
    "logits_processors": _NOT_HERE,
    "thinking_token_budget": _NOT_HERE,
}
COMPLETION_UNSUPPORTED = {
    "prompt_embeds": _NOT_HERE,
    "kv_transfer_params": _NOT_HERE,
    "truncate_prompt_tokens": _NOT_HERE,
    "logits_processors": _NOT_HERE,
}


class StreamOptions(Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(Struct, kw_only=True):
    """`strict` or not, the answer follows the schema."""

    name: Name | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """json_object may come with a schema; regex, grammar and structural_tag are what other servers have added."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    structures: list[Any] | None = None
    triggers: list[str] | None = None


Choices = Annotated[list[str], Meta(min_length=1, max_length=limits.CHOICES)]


class StructuredOutputsFields(Struct, kw_only=True):
    """One of the first six."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None


class StructureFields(Struct, kw_only=True):
    """What the output has to look like, in one of these ways."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsFields | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None


class SamplingFields(StructureFields, kw_only=True):
    """What /v1/chat/completions, /v1/completions and /generate share, under the names of `SamplingParams`."""

    n: Sequences | None = None
    seed: Int64 | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT_MAX)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=limits.LOGIT_BIAS_ENTRIES)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=limits.ALLOWED_TOKEN_IDS)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=limits.BAD_WORDS)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=limits.STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: PromptLogprobsCount | None = None
    skip_special_tokens: bool | None = None


class OpenAIFields(SamplingFields, kw_only=True):
    """What the two OpenAI endpoints share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None  # these six only say something to OpenAI itself
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    priority: Int32 | None = None
    cache_salt: CacheSalt | None = None
    timeout: Timeout | None = None  # seconds for the whole answer
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    return_token_ids: bool | None = None
    include_cost: bool | None = None  # in `usage`


class ContentPart(Struct, kw_only=True):
    type: Name
    text: str | None = None


class FunctionCall(Struct, kw_only=True):
    name: Name
    arguments: str


class ToolCall(Struct, kw_only=True):
    id: Name | None = None
    type: Name | None = None
    function: FunctionCall


class FunctionDefinition(Struct, kw_only=True, omit_defaults=True):
    """`parameters`: a JSON schema of an object. `strict` changes nothing where calls are not constrained anyway."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Name = "function"
    function: FunctionDefinition | None = None


Tools = Annotated[list[Tool], Meta(max_length=limits.TOOLS)]


class FunctionName(Struct, kw_only=True):
    name: Name


class ToolReference(Struct, kw_only=True):
    type: Name = "function"
    function: FunctionName | None = None


class AllowedTools(Struct, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], Meta(min_length=1, max_length=limits.TOOLS)]


class ToolChoice(ToolReference, kw_only=True):
    """Of the type `function`: that one. Of the type `allowed_tools`: some of the tools."""

    allowed_tools: AllowedTools | None = None


class ChatMessage(Struct, kw_only=True):
    """An assistant's past `reasoning` (or `reasoning_content`) goes to the chat template, which may leave it out."""

    role: Name
    content: (
        str | Annotated[list[ContentPart], Meta(min_length=1, max_length=limits.CONTENT_PARTS)] | UnsetType | None
    ) = UNSET
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=limits.TOOL_CALLS)] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MESSAGES)]


class ChatRequest(OpenAIFields, kw_only=True):
    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.CHAT_TOP_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Meta(max_length=limits.TOOLS)] | None = None
    function_call: str | FunctionName | None = None
    reasoning_effort: Name | None = None
    include_reasoning: bool | None = None
    documents: Annotated[list[dict[str, str]], Meta(max_length=limits.DOCUMENTS)] | None = None


class CompletionRequest(OpenAIFields, kw_only=True):
    prompt: Prompt
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=limits.COMPLETION_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Sequences | None = None
    add_special_tokens: bool | None = None
    suffix: Annotated[str, Meta(max_length=limits.SUFFIX_LENGTH)] | None = None  # the answer stands before it


# ---- answers ----


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: int


class Cost(Struct, kw_only=True):
    """What an answer took of the machine: its share of each step that it was part of."""

    queue_seconds: float  # until its first step
    compute_seconds: float
    energy_joules: float | UnsetType = UNSET  # where the machine says what it uses


class CompletionTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int


class Usage(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    cost: Cost | UnsetType = UNSET


class PoolingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    cost: Cost | UnsetType = UNSET


class WireLogprob(Struct, kw_only=True):
    """One entry of `prompt_logprobs`."""

    logprob: float
    rank: int | None
    decoded_token: str | None


WirePromptLogprobs = list[dict[str, WireLogprob] | None]


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class WireToolCall(Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Struct, kw_only=True):
    """`reasoning` and `reasoning_content` say the same: clients read one or the other."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[WireToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: WirePromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionCallDelta(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    """The first one of a call has its id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallDelta


class ChatDelta(Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: WirePromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionLogprobs(Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: WirePromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """Also the shape of a stream's chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: None = None
    max_model_len: int | None  # known once the model has been loaded
    state: State  # here and below: what octavo adds
    version: int  # that a request of this name gets
    versions: list[VersionCard]


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]
