"""EngineCore: schedule → execute → update, the only loop of the engine. Token ids in, token ids out.

An executor that takes steps ahead is given the next one while it computes: what the one before draws is not known then,
and the scheduler plans with it all the same. One thread drives the loop. It knows neither text nor sockets; the faces
and the process around it do.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct, field

from octavo.config import EngineConfig
from octavo.energy import Meter
from octavo.engine.guidance import Grammar, Grammars, Guides
from octavo.errors import InvalidRequest
from octavo.execution.executor import Executor
from octavo.metrics import EngineStats
from octavo.plan import Pending, Row, StepPlan
from octavo.request import Output, Request
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.step import Step
from octavo.snapshot import Blocks

_LONG_CONTEXT = 1024  # tokens; attending to so many costs about as much as everything else


class StepOutputs(Struct, frozen=True, array_like=True):
    """What a step brought: new tokens, the requests that started (and when), and how the core is doing."""

    outputs: list[Output]
    started: dict[str, float] = field(default_factory=dict)
    stats: EngineStats = field(default_factory=EngineStats)
    work: float = 0.0  # of the step, as `work` counts it
    seconds: float = 0.0  # that the step took; of one that began under way of another, since that one's end
    released: list[str] = field(default_factory=list)  # aborted requests: of their ids nothing more is said
    #: Each request's part of `work`: together all of it, but for what was computed for those that had ended meanwhile.
    shares: dict[str, float] = field(default_factory=dict)
    preempted: list[str] = field(default_factory=list)  # requests, once for each of their sequences that was
    joules: float | None = None  # that the machine used meanwhile, where it can be measured


@dataclass(slots=True)
class _UnderWay:
    """A step that was submitted and not collected."""

    plan: StepPlan
    step: Step
    work: float
    began: float
    pending: Pending

    def shares(self) -> dict[str, float]:
        shares: dict[str, float] = {}
        for row in self.plan.rows:
            if (whose := self.step.whose(row.sequence_id)) is not None:
                shares[whose[0]] = shares.get(whose[0], 0.0) + row_work(row)
        return shares


class EngineCore:
    """The scheduler and the executor of one model.

    hash_seed makes the prefix cache's keys unguessable: random bytes unless given. clock: seconds, monotonic. grammars:
    for requests that have one. meter: what the machine has used.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        hash_seed: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.executor = executor
        self.grammars = grammars
        self._guides = Guides(grammars) if grammars is not None else None
        self._clock = clock
        self._meter = meter
        self._under_way: deque[_UnderWay] = deque()
        self._settled = 0.0, 0.0  # seconds and joules that are accounted for
        capacity = executor.capacity
        self.scheduler = Scheduler(
            config.scheduler,
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_model_len=capacity.max_model_len,
            host_blocks=capacity.host_blocks,
            kept_blocks=capacity.kept_blocks,
            enable_prefix_caching=config.cache.enable_prefix_caching,
            hash_seed=hash_seed or secrets.token_bytes(32),
            whole_prompts=capacity.ability.whole_prompts,
        )

    @property
    def has_work(self) -> bool:
        """A step that is under way has to be taken in, even if all that it was for has ended."""
        return self.scheduler.has_work or bool(self._under_way)

    def add(self, request: Request, grammar: Grammar | None = None) -> None:
        """Its grammar is compiled unless it is given. Raises InvalidRequest or Overloaded; then it was never here."""
        if request.grammar is not None:
            assert self.grammars is not None
            grammar = grammar or self.grammars.compile(request.grammar)
        self.scheduler.add(request)
        if grammar is not None:
            assert self._guides is not None
            try:
                self._guides.add(request, grammar)
            except InvalidRequest:
                self.scheduler.abort(request.request_id)
                raise

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.scheduler.abort(request_id, index)
        if self._guides is not None:
            self._guides.drop(request_id, index)

    def step(self, announce: Callable[[float], None] = lambda _: None) -> StepOutputs:
        """One turn of the loop: submit what can be, then take in what came of the first step under way. There is work.

        announce: told of each step how much work it is, before it is waited for.
        """
        if self._under_way:
            announce(self._under_way[0].work)
        while len(self._under_way) <= self._steps_ahead and (plan := self.scheduler.schedule()) is not None:
            self._submit(plan, announce)
        assert self._under_way, "there is work, and nothing can be computed"
        return self._collect()

    @property
    def _steps_ahead(self) -> int:
        """What a grammar allows next is known when all that was drawn is."""
        return 0 if self._guides else self.executor.capacity.steps_ahead

    def _submit(self, plan: StepPlan, announce: Callable[[float], None]) -> None:
        amount, began = work(plan), self._clock()
        if not self._under_way:
            self._settled = began, self._meter() if self._meter else 0.0
            announce(amount)
        step = self.scheduler.under_way[-1]
        if self._guides:
            self._guides.mask(plan, step.whose)
        self._under_way.append(_UnderWay(plan, step, amount, began, self.executor.submit(plan)))

    def _collect(self) -> StepOutputs:
        first = self._under_way.popleft()
        result = first.pending.result()
        step = first.step
        if self._guides:
            result = self._guides.advance(result, step.whose)
        started = {group.request.request_id: first.began for group in step.started if group.live}
        preempted = [each.group.request.request_id for each in step.preempted if each.alive]
        shares = first.shares()
        outputs = self.scheduler.update(result)
        if self._guides:
            self._guides.forget(outputs)
        (seconds, joules), self._settled = self._settled, (self._clock(), self._meter() if self._meter else 0.0)
        return StepOutputs(
            outputs,
            started,
            self.stats(first.plan.token_count),
            first.work,
            self._settled[0] - seconds,
            shares=shares,
            preempted=preempted,
            joules=self._settled[1] - joules if self._meter else None,
        )

    def sleep(self, level: int) -> None:
        """Free the memory that the model takes, and forget what is in the KV cache. There may be no work.

        Raises ConfigError as `Worker.sleep` does.
        """
        assert not self.has_work
        self.executor.sleep(level)
        self.scheduler.forget()

    def wake(self) -> None:
        """Raises ConfigError or CheckpointError, and then it sleeps on."""
        self.executor.wake()

    def stats(self, step_tokens: int = 0) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_cache_usage=scheduler.kv_usage,
            prefix_cache_queries=scheduler.prefix_cache.queries,
            prefix_cache_hits=scheduler.prefix_cache.hits,
            preemptions=scheduler.preemptions,
            step_tokens=step_tokens,
            refused_requests=scheduler.refused_requests,
            refused_tokens=scheduler.refused_tokens,
        )

    def look(self) -> Blocks:
        """The KV cache, for who watches."""
        return self.scheduler.pool.look(self.scheduler.block_size)

    def close(self) -> None:
        self.executor.close()


def work(plan: StepPlan) -> float:
    """How long a step takes, in a unit that only compares steps: its tokens, those of long contexts counting more."""
    return sum(map(row_work, plan.rows))


def row_work(row: Row) -> float:
    return len(row.token_ids) * (1.0 + row.start / _LONG_CONTEXT)
