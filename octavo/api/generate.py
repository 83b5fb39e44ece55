"""POST /generate: the plain endpoint, in the manner of transformers' text-generation pipeline.

    {"prompt": "Once upon a time", "max_length": 50, "num_return_sequences": 2}
    → {"generated_text": ["Once upon a time …", "Once upon a time …"]}

As in the pipeline, `max_length` counts the prompt's tokens too, `max_new_tokens` does not and wins, and the text begins
with the prompt unless `return_full_text` is false. A list of prompts gives the texts of the first prompt, then those of
the second, and so on. All sampling fields of /v1/completions work here, its `max_tokens` as another name of
`max_new_tokens`; without any, the model's defaults do.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.generation import Job, collect, deltas
from octavo.api.limits import PROMPTS, check_product
from octavo.api.openai.sampling import check_room, sampling_params
from octavo.api.openai.structured import field_name
from octavo.api.openai.types import COMPLETION_UNSUPPORTED, MaxTokens, SamplingFields, Sequences, Timeout
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest
from octavo.face import Engine

_DEFAULT_NEW_TOKENS = 128
_UNSUPPORTED = {**COMPLETION_UNSUPPORTED, "stream": "Use /v1/completions to stream."}

PromptText = Annotated[str, Meta(min_length=1)]


class GenerateRequest(SamplingFields, kw_only=True):
    prompt: PromptText | Annotated[list[PromptText], Meta(min_length=1, max_length=PROMPTS)]
    model: str | None = None
    max_length: MaxTokens | None = None
    max_new_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    timeout: Timeout | None = None
    num_return_sequences: Sequences | None = None
    do_sample: bool | None = None
    return_full_text: bool | None = None


class GenerateResponse(Struct, kw_only=True):
    generated_text: list[str]


async def generate(call: Call) -> Response:
    request = await call.read(GenerateRequest, _UNSUPPORTED)
    engine = (await call.model(request.model, task="generate")).engine
    call.deadline.shorten(request.timeout)
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    count = _count(request)
    check_product(len(prompts), count, "num_return_sequences")
    jobs = [await _job(call, engine, request, prompt, index) for index, prompt in enumerate(prompts)]
    with field_name(request):
        choices = await collect(deltas(call, engine, jobs), len(prompts) * count)
    full = request.return_full_text is not False
    texts = [(prompts[index // count] if full else "") + choice.text for index, choice in enumerate(choices)]
    return json_response(GenerateResponse(generated_text=texts))


async def _job(call: Call, engine: Engine, request: GenerateRequest, prompt: str, index: int) -> Job:
    _, ids = await engine.encode(prompt)
    count = _count(request)
    changes: dict[str, Any] = {"temperature": 0.0} if request.do_sample is False else {}
    params = sampling_params(request, engine, max_tokens=_max_tokens(request, engine, len(ids)), n=count, **changes)
    request_id = f"gen-{call.request_id}-{index}"
    return Job(request_id=request_id, prompt_token_ids=ids, params=params, first_index=index * count, n=count)


def _count(request: GenerateRequest) -> int:
    return request.num_return_sequences or request.n or 1


def _max_tokens(request: GenerateRequest, engine: Engine, prompt_length: int) -> int:
    name = "max_tokens" if request.max_new_tokens is None else "max_new_tokens"
    new_tokens: int | None = getattr(request, name)
    check_room(engine, prompt_length, request, new_tokens, name)
    if new_tokens is not None:
        return new_tokens
    if request.max_length is None:
        return max(1, min(_DEFAULT_NEW_TOKENS, engine.max_model_len - prompt_length))
    if request.max_length <= prompt_length:
        counted = f"'max_length' counts the prompt's {prompt_length} tokens too"
        message = f"{counted}: {request.max_length} leaves none to generate."
        raise InvalidRequest(message, param="max_length", code="integer_below_min_value")
    check_room(engine, prompt_length, request, request.max_length - prompt_length, "max_length")
    return request.max_length - prompt_length


OPERATIONS = (
    Operation(
        method="POST",
        path="/generate",
        handler=generate,
        takes=GenerateRequest,
        gives=GenerateResponse,
        unsupported=_UNSUPPORTED,
    ),
)
