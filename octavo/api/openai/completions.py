"""POST /v1/completions: prompts in, their continuations out, whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import ASGIApp

from octavo.api.desk import Call
from octavo.api.generation import Delta, Job, collect, deltas
from octavo.api.limits import SUFFIX_LENGTH, check_product
from octavo.api.openai.logprobs import Position, completion_logprobs, wire_prompt_logprobs
from octavo.api.openai.models import fingerprint
from octavo.api.openai.prompts import split_prompts
from octavo.api.openai.sampling import beam_params, check_common, check_room, sampling_params
from octavo.api.openai.structured import field_name
from octavo.api.openai.types import (
    COMPLETION_UNSUPPORTED,
    Completion,
    CompletionChoice,
    CompletionRequest,
    StreamOptions,
)
from octavo.api.openai.usage import usage
from octavo.api.operation import Operation
from octavo.api.stream import EventStream
from octavo.api.wire import json_response
from octavo.engine.infill import fill_in
from octavo.errors import InvalidRequest
from octavo.face import Engine, Served
from octavo.request import BeamSearchParams, FinishReason, SamplingParams

_DEFAULT_MAX_TOKENS = 16


async def completions(call: Call) -> ASGIApp:
    request = await call.read(CompletionRequest, COMPLETION_UNSUPPORTED)
    options = _check(request)
    call.deadline.shorten(request.timeout)
    call.tally.costs_are_shown = request.include_cost is True
    served = await call.model(request.model, request.user, task="generate")
    engine = served.engine
    prompts = split_prompts(request.prompt)
    width = max(request.n or 1, request.best_of or 1)
    check_product(len(prompts), width)
    jobs = [
        await _job(call, engine, request, prompt, width, index, len(prompts)) for index, prompt in enumerate(prompts)
    ]
    answer = CompletionAnswer(call, served, request, options, prompts)
    if request.stream:
        return await EventStream.open(answer.chunks(jobs))
    return json_response(await answer.whole(jobs, width))


def _check(request: CompletionRequest) -> StreamOptions:
    n, best_of = request.n or 1, request.best_of
    if best_of is not None and best_of < n:
        message = f"'best_of' must be at least n ({n}), not {best_of}."
        raise InvalidRequest(message, param="best_of", code="integer_below_min_value")
    if best_of is not None and best_of > n and request.stream:
        message = "'best_of' above n cannot be streamed: the best are known only at the end."
        raise InvalidRequest(message, param="best_of", code="invalid_value")
    if request.max_tokens == 0 and not request.echo:
        message = "Invalid 'max_tokens': must be at least 1, or 0 with echo."
        raise InvalidRequest(message, param="max_tokens", code="integer_below_min_value")
    for name in ("echo", "use_beam_search"):
        if request.suffix and getattr(request, name):
            message = f"'{name}' cannot be combined with suffix."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
    return check_common(request)


async def _job(
    call: Call, engine: Engine, request: CompletionRequest, prompt: str | list[int], width: int, index: int, count: int
) -> Job:
    ends: list[int] = []
    if request.suffix:
        prompt, ends = await prompt_with_gap(engine, prompt, request.suffix)
    _, ids = await engine.encode(prompt, add_special_tokens=request.add_special_tokens is not False)
    return Job(
        request_id=f"cmpl-{call.request_id}" + (f"-{index}" if count > 1 else ""),
        prompt_token_ids=ids,
        params=_params(request, engine, len(ids), width, ends),
        first_index=index * width,
        n=width,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )


async def prompt_with_gap(engine: Engine, prompt: str | list[int], suffix: str) -> tuple[list[int], list[int]]:
    """The prompt whose continuation stands between the two, and the tokens that end it. Raises InvalidRequest."""
    if len(prompt) > SUFFIX_LENGTH:
        message = f"With suffix, 'prompt' must have at most {SUFFIX_LENGTH} characters."
        raise InvalidRequest(message, param="prompt", code="string_above_max_length")
    gap = await asyncio.to_thread(fill_in, engine.tokenizer, prompt, suffix)
    return gap.token_ids, gap.stop_token_ids


def _params(
    request: CompletionRequest, engine: Engine, prompt_length: int, width: int, ends: list[int]
) -> SamplingParams | BeamSearchParams:
    max_tokens = request.max_tokens
    check_room(engine, prompt_length, request, max_tokens, "max_tokens")
    if max_tokens is None:  # only an unset limit is cut to what fits
        max_tokens = min(_DEFAULT_MAX_TOKENS, engine.max_model_len - prompt_length)
    max_tokens = max(1, max_tokens)
    if request.use_beam_search:
        return beam_params(request, max_tokens=max_tokens)
    changes: dict[str, Any] = {"n": width}
    if ends:
        changes["stop_token_ids"] = [*(request.stop_token_ids or []), *ends]
    logprobs = request.logprobs
    if request.echo and logprobs is not None:
        changes["prompt_logprobs"] = logprobs if request.prompt_logprobs is None else request.prompt_logprobs
    if logprobs is None and width > (request.n or 1):
        logprobs = 0  # best_of chooses by them
    return sampling_params(request, engine, max_tokens=max_tokens, logprobs=logprobs, **changes)


class CompletionAnswer:
    """The deltas of the jobs as one `Completion` or as a stream of them."""

    def __init__(
        self,
        call: Call,
        served: Served,
        request: CompletionRequest,
        options: StreamOptions,
        prompts: Sequence[str | list[int]],
    ) -> None:
        self.common: dict[str, Any] = {
            "id": f"cmpl-{call.request_id}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": fingerprint(served.engine),
        }
        self.call = call
        self.engine = served.engine
        self.request = request
        self.options = options
        self.prompts = prompts

    async def whole(self, jobs: Sequence[Job], width: int) -> Completion:
        choices = await collect(self._deltas(jobs), len(jobs) * width)
        if width > (self.request.n or 1):
            choices = _best(choices, width, self.request.n or 1)
        offsets: defaultdict[int, int] = defaultdict(int)
        wire = [self._choice(choice, index // (self.request.n or 1), offsets) for index, choice in enumerate(choices)]
        return Completion(choices=wire, usage=usage(self.call.tally), **self.common)

    async def chunks(self, jobs: Sequence[Job]) -> AsyncGenerator[Completion, None]:
        offsets: defaultdict[int, int] = defaultdict(int)
        async with aclosing(self._deltas(jobs)) as parts:
            async for delta in parts:
                choice = self._choice(delta, delta.index // jobs[0].n, offsets)
                if _says_something(choice):
                    yield self._chunk([choice])
        if self.options.include_usage:
            yield self._chunk([], usage=usage(self.call.tally))

    def _chunk(self, choices: list[CompletionChoice], **fields: Any) -> Completion:
        if self.options.continuous_usage_stats:
            fields["usage"] = usage(self.call.tally)
        elif self.options.include_usage:
            fields.setdefault("usage", None)
        return Completion(choices=choices, **fields, **self.common)

    async def _deltas(self, jobs: Sequence[Job]) -> AsyncGenerator[Delta, None]:
        with field_name(self.request):
            async with aclosing(deltas(self.call, self.engine, jobs)) as parts:
                async for delta in parts:
                    yield self._shown(delta)

    def _shown(self, delta: Delta) -> Delta:
        if self.request.max_tokens != 0:
            return delta
        self.call.tally.completion_tokens = 0  # the engine made one token, which nobody asked for
        finish: FinishReason | None = "length" if delta.finish_reason else None
        return Delta(index=delta.index, opening=delta.opening, finish_reason=finish)

    def _choice(self, delta: Delta, prompt: int, offsets: defaultdict[int, int]) -> CompletionChoice:
        """A delta on the wire, be it a step or a whole; with echo, its opening brings the prompt's text and tokens.

        `offsets`: how far each choice's text has come, as its logprobs count; kept here.
        """
        request, opening = self.request, delta.opening
        choice = CompletionChoice(index=delta.index, text=delta.text)
        choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
        token_ids: list[int] = delta.token_ids
        positions: Sequence[Position] | None = delta.logprobs
        if opening is not None and request.echo:
            choice.text = self._prompt_text(prompt) + choice.text
            if opening.prompt_logprobs is not None:
                token_ids = opening.prompt_token_ids + token_ids
                positions = [*opening.prompt_logprobs, *(positions or ())]
        if request.logprobs is not None and positions is not None:
            choice.logprobs, offsets[delta.index] = completion_logprobs(
                token_ids, positions, offsets[delta.index], self.engine.tokenizer
            )
        if request.return_token_ids:
            choice.token_ids = delta.token_ids
        if opening is not None and request.return_token_ids:
            choice.prompt_token_ids = opening.prompt_token_ids
        if opening is not None and request.prompt_logprobs is not None and opening.prompt_logprobs is not None:
            choice.prompt_logprobs = wire_prompt_logprobs(opening.prompt_logprobs)
        return choice

    def _prompt_text(self, which: int) -> str:
        prompt = self.prompts[which]
        if isinstance(prompt, str):
            return prompt
        return self.engine.tokenizer.decode(prompt, self.request.skip_special_tokens is not False)


def _says_something(choice: CompletionChoice) -> bool:
    return bool(
        choice.text
        or choice.finish_reason
        or (choice.logprobs and choice.logprobs.tokens)
        or choice.token_ids
        or choice.prompt_token_ids
        or choice.prompt_logprobs
    )


def _best(choices: list[Delta], width: int, n: int) -> list[Delta]:
    """Of each prompt's `width` choices the n with the highest log-probability per token."""
    best: list[Delta] = []
    for begin in range(0, len(choices), width):
        ranked = sorted(choices[begin : begin + width], key=_mean_logprob, reverse=True)
        best += ranked[:n]
    for index, choice in enumerate(best):
        choice.index = index
    return best


def _mean_logprob(choice: Delta) -> float:
    chosen = zip(choice.token_ids, choice.logprobs or (), strict=False)
    return sum(position[token_id].logprob for token_id, position in chosen) / max(1, len(choice.token_ids))


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/completions",
        handler=completions,
        takes=CompletionRequest,
        gives=Completion,
        events=Completion,
        unsupported=COMPLETION_UNSUPPORTED,
        in_batches=True,
    ),
)
