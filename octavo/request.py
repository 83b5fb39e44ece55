"""What a caller asks (`Request`, `SamplingParams`) and gets (`Output` inside, `RequestOutput` outside).

Structs that cross a process are msgspec structs: validated when decoded, no pickle. Names and defaults are those that
vLLM's users know. This module knows nothing of tokenizers, models or HTTP.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from octavo.errors import InvalidRequest

FinishReason = Literal["stop", "length", "abort", "error"]
#: Whose an error is: ours, the caller's, or the moment's (retrying later may help).
Fault = Literal["failed", "invalid", "overloaded"]
#: What a model can do with a prompt: continue it, make a vector of it, tell how much it is of each of its classes.
Task = Literal["generate", "embed", "classify"]
Pooling = Literal["last", "mean", "cls"]

MAX_SEQUENCES_PER_REQUEST = 128
BACKGROUND = 2**31  # a priority behind all that a caller may ask for: of work that nobody waits for
MAX_LOGIT_BIAS = 100.0
_MIN_TEMPERATURE = 0.01


def _require(condition: bool, param: str, message: str, code: str = "invalid_value") -> None:
    if not condition:
        raise InvalidRequest(f"{param} {message}", param=param, code=code)


def _whole(param: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    _require(value >= low, param, f"must be at least {low}, not {value}", "integer_below_min_value")
    _require(value <= high, param, f"must be at most {high}, not {value}", "integer_above_max_value")


def _real(param: str, value: float, low: float, high: float) -> None:
    _require(math.isfinite(value), param, "must be a finite number")
    _require(value >= low, param, f"must be at least {low:g}, not {value:g}", "decimal_below_min_value")
    _require(value <= high, param, f"must be at most {high:g}, not {value:g}", "decimal_above_max_value")


class StructuredOutputs(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an output has to look like: exactly one of the first six. The names are vLLM's.

    json: a JSON schema, as text or as what the text says. regex: what the whole output matches. choice: one of these
    texts. grammar: context-free, in Lark's or GBNF's notation. json_object: any JSON object. structural_tag: free text
    in which certain beginnings call for JSON, described by JSON text. disable_any_whitespace and whitespace_pattern (a
    regular expression): what may stand between the parts of JSON. Whether all this can be followed shows later.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in STRUCTURES if getattr(self, name) not in (None, False)]
        needs = f"needs one of {', '.join(STRUCTURES)}"
        _require(len(given) == 1, "structured_outputs", f"{needs}, not {' and '.join(given) or 'none'}")
        _require(self.choice != [], "structured_outputs", "needs a choice of at least one text", "empty_array")


STRUCTURES = StructuredOutputs.__struct_fields__[:6]


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How tokens are chosen and when to stop.

    temperature 0 is greedy; 0 < temperature < 0.01 counts as 0.01. top_k 0 or -1 and top_p 1 switch those filters off.
    `seed` makes a request reproducible whatever runs beside it. `logprobs=k` returns the k best tokens at each position
    beside the chosen one; -1 the whole vocabulary. `max_tokens=None` means up to the end of the context.
    Raises `InvalidRequest`, with the field's name in `param`.
    """

    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    visible_special_token_ids: list[int] = field(default_factory=list)  # not skipped all the same
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        stop: object = self.stop
        if isinstance(stop, str):  # vLLM's users pass a single string too
            force_setattr(self, "stop", [stop])
        _whole("n", self.n, 1, MAX_SEQUENCES_PER_REQUEST)
        if self.seed == -1:  # vLLM's way to say "none"
            force_setattr(self, "seed", None)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        _real("temperature", self.temperature, 0.0, 1e4)
        if 0.0 < self.temperature < _MIN_TEMPERATURE:
            force_setattr(self, "temperature", _MIN_TEMPERATURE)
        _real("top_p", self.top_p, 0.0, 1.0)
        _require(self.top_p > 0.0, "top_p", "must be above 0", "decimal_below_min_value")
        _whole("top_k", self.top_k, -1)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        for token_id, bias in (self.logit_bias or {}).items():
            _whole("logit_bias", token_id, 0)
            _real("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        _require(self.allowed_token_ids != [], "allowed_token_ids", "must not be empty", "empty_array")
        _require(all(self.bad_words), "bad_words", "must not contain an empty string")
        _require(all(self.stop), "stop", "must not contain an empty string")
        for name in ("stop_token_ids", "allowed_token_ids"):
            _whole(name, min(getattr(self, name) or [0]), 0)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
            _require(self.min_tokens <= self.max_tokens, "min_tokens", "must not exceed max_tokens")
        _whole("min_tokens", self.min_tokens, 0)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _whole(name, value, -1)


class BeamSearchParams(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Beam search: keep the `beam_width` most likely continuations, score = cumulative logprob / length ** penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        _whole("beam_width", self.beam_width, 1, MAX_SEQUENCES_PER_REQUEST)
        _whole("max_tokens", self.max_tokens, 1)
        _real("temperature", self.temperature, 0.0, 1e4)
        _real("length_penalty", self.length_penalty, -10.0, 10.0)


class PoolingParams(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is made of a prompt's hidden states where no output is wanted.

    embed: a vector, that of the last token, of the first (`cls`) or the mean of all, cut to its first `dimensions`, and
    brought to length 1 with `normalize`. classify: what the model's own head says. None: as the model was trained.
    Raises `InvalidRequest`, with the field's name in `param`.
    """

    task: Literal["embed", "classify"] = "embed"
    pooling: Pooling | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    second: int | None = None  # of a pair of texts: the place of the second one's first token

    def __post_init__(self) -> None:
        if self.dimensions is not None:
            _whole("dimensions", self.dimensions, 1)
        if self.second is not None:
            _whole("second", self.second, 1)

    @property
    def needs_every_position(self) -> bool:
        """Whether positions whose keys and values are at hand must be computed all the same."""
        return self.pooling != "last"


class Continuation(Struct, frozen=True, array_like=True):
    """What one sequence of a request has said so far."""

    index: int
    token_ids: list[int]


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request as the core sees it: encoded, checked against the model, every choice resolved."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_tokens: int  # resolved: params.max_tokens cut to the context
    seed: int  # 64 bits, resolved even when the caller gave none: a resumed request draws the same numbers
    eos_token_ids: list[int] = field(default_factory=list)
    bad_words: list[list[int]] = field(default_factory=list)  # params.bad_words as token ids
    grammar: str | None = None  # params.structured_outputs as the core reads it
    arrival: float = 0.0  # seconds on the caller's clock; orders requests of equal priority
    priority: int = 0  # lower is served first under the `priority` policy; BACKGROUND is served last under each
    adapter: str | None = None
    cache_salt: str | None = None  # tenants with different salts never share cached blocks
    beam: BeamSearchParams | None = None
    pooling: PoolingParams | None = None  # resolved; no token is drawn, `params` means nothing
    #: None: a new request. Else one taken over from a core that is gone: its unfinished sequences, if any has begun.
    resumes: list[Continuation] | None = None

    @property
    def draws(self) -> int:
        """Tokens to be drawn when the prompt is computed."""
        return self.params.n if self.pooling is None else 0

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end the output: the caller's stop ids and, unless ignored, the model's own."""
        eos = [] if self.params.ignore_eos else self.eos_token_ids
        return [*self.params.stop_token_ids, *eos]


class Logprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities at one position: the chosen token first, then the best ones in falling order."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]  # 1 = most likely


class Output(Struct, frozen=True, array_like=True, omit_defaults=True):
    """What the core reports for one sequence of a request after a step: only what is new."""

    request_id: str
    index: int = 0  # which of the request's n sequences (or beams, best first)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the id of end_token_ids that ended it
    prompt_logprobs: list[Logprobs] | None = None  # positions 1 … of the prompt, with the first output
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    cumulative_logprob: float | None = None  # beams only
    error: str | None = None
    fault: Fault = "failed"  # whose the error is
    pooled: bytes | None = None  # float32, little-endian: what the request's pooling has made
    param: str | None = None  # which of the caller's fields it is about


class Logprob(Struct, frozen=True):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class CompletionOutput(Struct, kw_only=True):
    """One continuation of a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class RequestMetrics(Struct, kw_only=True):
    """Seconds on the monotonic clock of the machine; None until it happened."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    compute_seconds: float = 0.0  # of the steps that it was part of, by its share of the tokens computed in each
    energy_joules: float | None = None  # likewise; None where the machine does not say what it uses
    preemptions: int = 0  # times that it had to give its memory back and begin again

    @property
    def queue_seconds(self) -> float:
        """Until its first step; 0 before that."""
        return 0.0 if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time


class RequestOutput(Struct, kw_only=True):
    """What a caller of `LLM`, `LLMEngine` or `AsyncLLMEngine` receives for one request."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    pooled: bytes | None = None  # float32, little-endian: of a request with PoolingParams, whose outputs are empty


class PoolingOutput(Struct, kw_only=True):
    """What pooling made of one prompt: an embedding, or what a classifier says of each class."""

    data: list[float]

    @property
    def embedding(self) -> list[float]:
        return self.data

    @property
    def probs(self) -> list[float]:
        return self.data

    @property
    def score(self) -> float:
        return self.data[0]


class PoolingRequestOutput(Struct, kw_only=True):
    """What `LLM.embed`, `classify`, `score` and `encode` give for one prompt."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class BeamSearchSequence(Struct, kw_only=True):
    tokens: list[int]  # prompt and continuation
    text: str  # the continuation's text
    cum_logprob: float
    finish_reason: FinishReason | None = None


class BeamSearchOutput(Struct, kw_only=True):
    """The best sequences of one prompt, best first."""

    sequences: list[BeamSearchSequence]


TokensPrompt = dict[str, Any]  # {"prompt_token_ids": [...]} or {"prompt": "..."}
PromptType = str | list[int] | TokensPrompt
TextPair = tuple[str, str]  # two texts that a model reads as one, to compare them
