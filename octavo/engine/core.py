"""EngineCore: schedule → execute → update, the only loop of the engine. Token ids in, token ids out.

One thread drives it. It knows neither text nor sockets; the faces and the process around it do.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from msgspec import Struct, field

from octavo.config import EngineConfig
from octavo.energy import Meter
from octavo.engine.guidance import Grammar, Grammars, Guides
from octavo.errors import InvalidRequest
from octavo.execution.executor import Executor
from octavo.metrics import EngineStats
from octavo.plan import Row, StepPlan
from octavo.request import Output, Request
from octavo.scheduling.scheduler import Scheduler
from octavo.snapshot import Blocks

_LONG_CONTEXT = 1024  # tokens; attending to so many costs about as much as everything else


class StepOutputs(Struct, frozen=True, array_like=True):
    """What a step brought: new tokens, the requests that started (and when), and how the core is doing."""

    outputs: list[Output]
    started: dict[str, float] = field(default_factory=dict)
    stats: EngineStats = field(default_factory=EngineStats)
    work: float = 0.0  # of the step, as `work` counts it
    seconds: float = 0.0  # that the step took
    released: list[str] = field(default_factory=list)  # aborted requests: of their ids nothing more is said
    shares: dict[str, float] = field(default_factory=dict)  # each request's part of `work`; together all of it
    preempted: list[str] = field(default_factory=list)  # requests, once for each of their sequences that was
    joules: float | None = None  # that the machine used meanwhile, where it can be measured


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
        capacity = executor.capacity
        self.scheduler = Scheduler(
            config.scheduler,
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_model_len=capacity.max_model_len,
            kept_blocks=capacity.kept_blocks,
            enable_prefix_caching=config.cache.enable_prefix_caching,
            hash_seed=hash_seed or secrets.token_bytes(32),
            whole_prompts=capacity.ability.whole_prompts,
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

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

    def plan(self) -> StepPlan:
        """What the next step computes; `run` must follow."""
        return self.scheduler.schedule()

    def run(self, plan: StepPlan) -> StepOutputs:
        """Compute it and take in what came of it."""
        began = self._clock()
        used = self._meter() if self._meter else 0.0
        started = dict.fromkeys(self.scheduler.started, began)
        shares = self._shares(plan)
        outputs = self._compute(plan) if self._guides is None else self._guided(plan, self._guides)
        return StepOutputs(
            outputs,
            started,
            self.stats(plan.token_count),
            work(plan),
            self._clock() - began,
            shares=shares,
            preempted=list(self.scheduler.preempted),
            joules=self._meter() - used if self._meter else None,
        )

    def _shares(self, plan: StepPlan) -> dict[str, float]:
        shares: dict[str, float] = {}
        for row in plan.rows:
            request_id = self.scheduler.request_of(row)
            shares[request_id] = shares.get(request_id, 0.0) + row_work(row)
        return shares

    def _compute(self, plan: StepPlan) -> list[Output]:
        return self.scheduler.update(self.executor.submit(plan).result())

    def _guided(self, plan: StepPlan, guides: Guides) -> list[Output]:
        guides.mask(plan, self.scheduler.whose)
        outputs = self.scheduler.update(guides.advance(self.executor.submit(plan).result(), self.scheduler.whose))
        guides.forget(outputs)
        return outputs

    def step(self) -> StepOutputs:
        """One turn of the loop."""
        return self.run(self.plan())

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
