"""From a request's fields to `SamplingParams` or `BeamSearchParams`: defaults, and what excludes what."""

from __future__ import annotations

from typing import Any

from octavo.api.openai.structured import structured_outputs
from octavo.api.openai.types import OpenAIFields, SamplingFields, StreamOptions, StructureFields
from octavo.errors import ContextTooLong, InvalidRequest
from octavo.face import Engine
from octavo.request import BeamSearchParams, SamplingParams

_SHARED = [name for name in SamplingFields.__struct_fields__ if name not in StructureFields.__struct_fields__]
_OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_NOT_WITH_BEAMS = ("stop", "stop_token_ids", "logprobs", "prompt_logprobs", "logit_bias", "allowed_token_ids",
                   "bad_words", "min_tokens", "seed", "best_of")  # fmt: skip


def sampling_params(
    request: SamplingFields, engine: Engine, *, max_tokens: int | None, logprobs: int | None = None, **changes: Any
) -> SamplingParams:
    """What the caller set, over the model's defaults, over OpenAI's. Raises InvalidRequest."""
    given = {name: value for name in _SHARED if (value := getattr(request, name)) is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    given["structured_outputs"] = structured_outputs(request)
    chosen = {**_OPENAI_DEFAULTS, **engine.default_sampling, **given, **changes}
    return SamplingParams(**chosen, max_tokens=max_tokens, logprobs=logprobs)


def beam_params(request: OpenAIFields, *, max_tokens: int) -> BeamSearchParams:
    """n beams. Fields that beam search cannot honour are refused. Raises InvalidRequest."""
    for name in _NOT_WITH_BEAMS:
        if getattr(request, name, None) not in (None, False, [], {}):
            message = f"'{name}' cannot be combined with use_beam_search."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
    if structured_outputs(request) is not None:
        message = "A structure of the output cannot be combined with use_beam_search."
        raise InvalidRequest(message, param="use_beam_search", code="unsupported_parameter")
    return BeamSearchParams(
        beam_width=request.n or 1,
        max_tokens=max_tokens,
        ignore_eos=bool(request.ignore_eos),
        temperature=request.temperature or 0.0,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
    )


def check_common(request: OpenAIFields) -> StreamOptions:
    """Rules between fields that both endpoints share; the stream options with defaults. Raises InvalidRequest."""
    if request.stream_options is not None and not request.stream:
        message = "'stream_options' is only allowed when 'stream' is true."
        raise InvalidRequest(message, param="stream_options", code="invalid_value")
    if request.length_penalty is not None and not request.use_beam_search:
        message = "'length_penalty' is only allowed with use_beam_search."
        raise InvalidRequest(message, param="length_penalty", code="invalid_value")
    return request.stream_options or StreamOptions()


def check_room(engine: Engine, prompt_length: int, request: SamplingFields, max_tokens: int | None, param: str) -> None:
    """What the caller asked for outright must fit the context; only an unset limit is cut. Raises ContextTooLong."""
    room = engine.max_model_len - prompt_length
    if max_tokens is not None and max_tokens > room:
        message = (
            f"This model's maximum context length is {engine.max_model_len} tokens. However, you requested "
            f"{prompt_length + max_tokens} tokens ({prompt_length} in the prompt, {max_tokens} in the completion). "
            f"Shorten the prompt or lower '{param}'."
        )
        raise ContextTooLong(message, param=param)
    if (request.min_tokens or 0) > max(room, 1):
        message = f"'min_tokens' is {request.min_tokens}, but the context has room for {room} tokens after the prompt."
        raise InvalidRequest(message, param="min_tokens", code="integer_above_max_value")
