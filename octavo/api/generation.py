"""From prompts to deltas: what /v1/chat/completions, /v1/completions and /generate have in common.

One HTTP request becomes one job per prompt; the engine's outputs of all jobs become one sequence of `Delta`s, in the
order in which they are made. A stream sends deltas as they come, an answer in one piece is the same deltas folded by
`collect`. Knows nothing of JSON shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from octavo.api.desk import Call
from octavo.face import Engine
from octavo.request import BACKGROUND, BeamSearchParams, FinishReason, Logprob, RequestOutput, SamplingParams

T = TypeVar("T")
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass(slots=True, kw_only=True)
class Job:
    """One prompt to be continued `n` times; its continuations are choices first_index, first_index + 1, …"""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams | BeamSearchParams
    first_index: int = 0
    n: int = 1
    priority: int = 0
    cache_salt: str | None = None


@dataclass(slots=True, kw_only=True)
class Opening:
    """What is known of a choice's prompt when its first token is."""

    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None


@dataclass(slots=True, kw_only=True)
class Delta:
    """What is new in one choice. A choice begins with a delta that has nothing but its opening."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    opening: Opening | None = None

    def add(self, later: Delta) -> None:
        """Become the two in one: all deltas of a choice added up are the choice."""
        self.text += later.text
        self.token_ids += later.token_ids
        if later.logprobs is not None:
            self.logprobs = [] if self.logprobs is None else self.logprobs
            self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason or self.finish_reason
        self.stop_reason = self.stop_reason if later.stop_reason is None else later.stop_reason
        self.opening = later.opening or self.opening


async def deltas(call: Call, engine: Engine, jobs: Sequence[Job]) -> AsyncGenerator[Delta, None]:
    """Run the jobs. Raises what the engine raises, and what `Call.running` does; closing it aborts all of them."""
    tally = call.tally
    tally.prompt_tokens = sum(len(job.prompt_token_ids) for job in jobs)
    tally.params = jobs[0].params
    with call.running(len(jobs)), call.tenant.charge(tally.prompt_tokens):
        call.deadline.await_first_token()
        opened: set[int] = set()
        async with aclosing(merge([_outputs(call, engine, job) for job in jobs])) as outputs:
            async for which, output in outputs:
                call.deadline.first_token()
                if output.metrics is not None:
                    tally.times[which] = output.metrics
                job = jobs[which]
                if which not in opened:
                    opened.add(which)
                    tally.cached_tokens += output.num_cached_tokens
                    opening = Opening(prompt_token_ids=job.prompt_token_ids, prompt_logprobs=output.prompt_logprobs)
                    for index in range(job.n):
                        yield Delta(index=job.first_index + index, opening=opening)
                for part in output.outputs:
                    tally.completion_tokens += len(part.token_ids)
                    call.tenant.spend(len(part.token_ids))
                    if part.finish_reason is not None:
                        tally.finish_reasons.append(part.finish_reason)
                    yield Delta(
                        index=job.first_index + part.index,
                        text=part.text,
                        token_ids=part.token_ids,
                        logprobs=part.logprobs,
                        finish_reason=part.finish_reason,
                        stop_reason=part.stop_reason,
                    )


def _outputs(call: Call, engine: Engine, job: Job) -> AsyncGenerator[RequestOutput, None]:
    outputs = engine.generate(
        job.prompt_token_ids,
        job.params,
        job.request_id,
        priority=BACKGROUND if call.background else job.priority,
        cache_salt=call.tenant.salt(job.cache_salt),
        output_kind="delta",
    )
    assert isinstance(outputs, AsyncGenerator)  # closing it is how a request is aborted
    return outputs


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all sources as they come, each with its source's number. Closing it closes all sources."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | asyncio.Task[None] | None] = asyncio.Queue()
    room = asyncio.Semaphore(len(sources))  # nobody runs ahead of a reader who is slow

    async def pump(which: int, source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await room.acquire()
                    queue.put_nowait((which, item))
        finally:
            queue.put_nowait(asyncio.current_task())

    pumps = {asyncio.create_task(pump(which, source)) for which, source in enumerate(sources)}
    try:
        running = len(pumps)
        while running:
            entry = await queue.get()
            if isinstance(entry, tuple):
                yield entry
                room.release()
            elif entry is not None:
                running -= 1
                await entry  # raises what the source raised
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collect(parts: AsyncGenerator[Delta, None], count: int) -> list[Delta]:
    """The whole choices 0 … count - 1."""
    choices = [Delta(index=index) for index in range(count)]
    async with aclosing(parts):
        async for delta in parts:
            choices[delta.index].add(delta)
    return choices
