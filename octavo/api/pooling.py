"""From texts to vectors and scores: what /v1/embeddings, /v1/rerank, /v1/score and other dialects' ways have in common.

Each text (each pair, for a cross-encoder) becomes a job of the engine, which computes many in one step. Of one HTTP
request POOLED_AT_ONCE are there at a time, so that a long list does not fill the queue for everybody else. Knows
nothing of JSON shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from msgspec import Raw, json
from msgspec.structs import replace

from octavo.api.desk import Call
from octavo.api.generation import merge
from octavo.api.limits import POOLED_AT_ONCE, POOLED_TOKENS
from octavo.engine.ability import check_scores
from octavo.errors import InvalidRequest
from octavo.face import Engine
from octavo.request import BACKGROUND, PoolingParams, RequestOutput, TextPair
from octavo.vectors import cosine, floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a request's texts are read, and how urgent they are.

    truncate: cut longer texts to so many tokens, -1 to the longest that the model takes; None refuses them.
    """

    truncate: int | None = None
    add_special_tokens: bool = True
    priority: int = 0
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    token_ids: list[int]
    params: PoolingParams


async def embed(
    call: Call,
    engine: Engine,
    texts: Sequence[str | list[int]],
    params: PoolingParams,
    reading: Reading,
    param: str = "input",
) -> list[bytes]:
    """A vector of each text. Tokens are counted in `call.tally`.

    Raises InvalidRequest, which names `param`, ContextTooLong, Overloaded and what the engine raises.
    """
    return await _pool(call, engine, texts, params, reading, param)


async def compare(call: Call, engine: Engine, pairs: Sequence[TextPair], reading: Reading, param: str) -> list[float]:
    """How well the texts of each pair go together: by a cross-encoder, else the cosine of their embeddings.

    Raises as `embed` does.
    """
    if "classify" in engine.ability.tasks:
        check_scores(engine.ability)
        scores = await _pool(call, engine, pairs, PoolingParams(task="classify"), reading, param)
        return [_single(score) for score in scores]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    vectors = dict(zip(texts, await _pool(call, engine, texts, PoolingParams(), reading, param), strict=True))
    cosines: list[float] = []
    for first, second in pairs:
        cosines.append(cosine(vectors[first], vectors[second]))
        await asyncio.sleep(0)  # a long list keeps nobody else waiting
    return cosines


async def written(vectors: Sequence[bytes]) -> list[Any]:
    """The JSON of each one's numbers: all those of a long list as Python's own would take long, and much memory."""
    texts = []
    for vector in vectors:
        texts.append(Raw(json.encode(floats(vector))))
        await asyncio.sleep(0)
    return texts


async def _pool(
    call: Call,
    engine: Engine,
    texts: Sequence[str | list[int] | TextPair],
    params: PoolingParams,
    reading: Reading,
    param: str,
) -> list[bytes]:
    try:
        jobs = await _jobs(engine, texts, params, reading)
        return await _run(call, engine, jobs, reading)
    except InvalidRequest as error:
        error.param = param if error.param == "prompt" else error.param
        raise


async def _jobs(
    engine: Engine, texts: Sequence[str | list[int] | TextPair], params: PoolingParams, reading: Reading
) -> list[_Job]:
    jobs: list[_Job] = []
    total = 0
    for index, text in enumerate(texts):
        token_ids, second = await engine.encode_to_pool(
            text, truncate=reading.truncate, add_special_tokens=reading.add_special_tokens
        )
        total += len(token_ids)
        if total > POOLED_TOKENS:
            message = (
                f"The texts of one request may have at most {POOLED_TOKENS} tokens together; send them in several."
            )
            raise InvalidRequest(message, param="prompt", code="array_above_max_length")
        jobs.append(_Job(index, token_ids, params if second is None else replace(params, second=second)))
        await asyncio.sleep(0)  # a long list keeps nobody else waiting
    return jobs


async def _run(call: Call, engine: Engine, jobs: Sequence[_Job], reading: Reading) -> list[bytes]:
    tally = call.tally
    tally.prompt_tokens = sum(len(job.token_ids) for job in jobs)
    tally.params = jobs[0].params
    lanes = min(len(jobs), POOLED_AT_ONCE, engine.config.scheduler.max_num_seqs)  # an idle server has room for all
    vectors = [b""] * len(jobs)
    with call.desk.accept_more(lanes - 1, call.background), call.tenant.charge(tally.prompt_tokens):
        call.deadline.await_first_token()
        sources = [_lane(call, engine, jobs[first::lanes], reading) for first in range(lanes)]
        async with aclosing(merge(sources)) as outputs:
            async for _, (job, output) in outputs:
                call.deadline.first_token()
                assert output.pooled is not None
                vectors[job.index] = output.pooled
                tally.cached_tokens += output.num_cached_tokens
                tally.finish_reasons.append("stop")
                if output.metrics is not None:
                    tally.times[job.index] = output.metrics
    return vectors


async def _lane(
    call: Call, engine: Engine, jobs: Sequence[_Job], reading: Reading
) -> AsyncGenerator[tuple[_Job, RequestOutput], None]:
    """One after another."""
    for job in jobs:
        outputs = engine.generate(
            job.token_ids,
            job.params,
            f"pool-{call.request_id}-{job.index}",
            priority=BACKGROUND if call.background else reading.priority,
            cache_salt=call.tenant.salt(reading.cache_salt),
            output_kind="delta",
        )
        assert isinstance(outputs, AsyncGenerator)  # closing it is how a request is aborted
        async with aclosing(outputs):
            async for output in outputs:
                yield job, output


def _single(packed: bytes) -> float:
    (score,) = floats(packed)
    return score
