"""The bodies of Ollama's API, as structs. Durations are nanoseconds, times are RFC 3339.

Options that only say how a model is loaded there (num_gpu, num_thread, ...) are nobody's business here and not read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from octavo.api import limits
from octavo.api.openai.types import INT_MAX, Int64, Name, Share, StopString, TokenLogprob

_NO_IMAGES = "This server reads only text."
_OWN_TEMPLATE = "The server uses the model's own template; it can be set with --chat-template."
CHAT_UNSUPPORTED = {"images": _NO_IMAGES, "template": _OWN_TEMPLATE}
GENERATE_UNSUPPORTED = {
    **CHAT_UNSUPPORTED,
    "context": "It is deprecated; send the conversation's messages to /api/chat.",
    "width": _NO_IMAGES,
    "height": _NO_IMAGES,
    "steps": _NO_IMAGES,
}

WITHOUT_EFFECT = {
    "keep_alive": "How long a model stays is the server's setting; 0 without a prompt unloads it.",
    "truncate": "A conversation that is too long is refused.",
    "shift": "An answer ends where the context does.",
}
EMBED_WITHOUT_EFFECT = {
    "keep_alive": WITHOUT_EFFECT["keep_alive"],
    "options": "They say how texts are written.",
}

# ---- what is asked ----


class Options(Struct, kw_only=True):
    num_predict: Annotated[int, Meta(ge=-2, le=INT_MAX)] | None = None  # 0 and less: as many as fit
    num_ctx: Annotated[int, Meta(ge=0, le=INT_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT_MAX)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    seed: Int64 | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.STOP_SEQUENCES)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None


Format = Literal["", "json"] | dict[str, Any]
Think = bool | Literal["low", "medium", "high", "max"]
KeepAlive = float | Annotated[str, Meta(max_length=64)]


class CommonFields(Struct, kw_only=True):
    model: str
    stream: bool | None = None
    format: Format | None = None
    options: Options | None = None
    think: Think | None = None
    keep_alive: KeepAlive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.CHAT_TOP_LOGPROBS)] | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaGenerateRequest(CommonFields, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None


class CalledFunction(Struct, kw_only=True):
    name: Name
    arguments: dict[str, Any] | None = None


class OllamaToolCall(Struct, kw_only=True):
    id: Name | None = None
    function: CalledFunction


class OllamaMessage(Struct, kw_only=True):
    role: Name
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[OllamaToolCall], Meta(max_length=limits.TOOL_CALLS)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class ToolFunction(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=limits.FUNCTION_NAME_LENGTH)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OllamaTool(Struct, kw_only=True):
    type: Name | None = None
    function: ToolFunction


class OllamaChatRequest(CommonFields, kw_only=True):
    messages: Annotated[list[OllamaMessage], Meta(max_length=limits.MESSAGES)] | None = None
    tools: Annotated[list[OllamaTool], Meta(max_length=limits.TOOLS)] | None = None


# ---- what is answered ----


class CallToMake(Struct, kw_only=True):
    index: int
    name: str
    arguments: Raw  # an object


class AnsweredCall(Struct, kw_only=True):
    id: str
    function: CallToMake


class AnswerMessage(Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[AnsweredCall] = []


class Answer(Struct, kw_only=True, omit_defaults=True):
    """What comes at the end of an answer stands in the last piece of a stream only."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    logprobs: list[TokenLogprob] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class ChatAnswer(Answer, kw_only=True, omit_defaults=True):
    message: AnswerMessage


class GenerateAnswer(Answer, kw_only=True, omit_defaults=True):
    response: str
    thinking: str = ""


# ---- models ----


class Details(Struct, kw_only=True):
    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(Struct, kw_only=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class OllamaModelList(Struct, kw_only=True):
    models: list[ListedModel]


class RunningModel(Struct, kw_only=True):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(Struct, kw_only=True):
    models: list[RunningModel]


class ShowRequest(Struct, kw_only=True):
    model: str | None = None
    name: str | None = None  # its older name
    verbose: bool | None = None


class ShownModel(Struct, kw_only=True):
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


# ---- embeddings ----


Texts = Annotated[list[str], Meta(max_length=limits.POOLED_TEXTS)]


class EmbedRequest(Struct, kw_only=True):
    model: str
    input: str | Texts | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=INT_MAX)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class EmbedAnswer(Struct, kw_only=True):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsRequest(Struct, kw_only=True):
    model: str
    prompt: str | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class EmbeddingsAnswer(Struct, kw_only=True):
    embedding: list[float]


# ---- the models on this machine ----


class PullRequest(Struct, kw_only=True):
    model: Name | None = None
    name: Name | None = None  # its older name
    stream: bool | None = None
    insecure: bool | None = None


class PullProgress(Struct, kw_only=True, omit_defaults=True):
    status: str
    digest: str = ""  # of what is being fetched
    total: int = 0
    completed: int = 0


class DeleteRequest(Struct, kw_only=True):
    model: Name | None = None
    name: Name | None = None


class VersionAnswer(Struct, kw_only=True):
    version: str
