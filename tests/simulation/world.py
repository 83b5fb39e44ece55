"""One simulated service: callers, the real `OutputProcessor`, a transport that may lag, and the real core's turn.

It is its own supervisor: a core that died is replaced at once and goes on with everything, which is fast and tells the
scheduler's part in it. `service` has the real one. Whatever breaks an invariant, or raises where nothing may, is a
`Violation`.
"""

from __future__ import annotations

from collections import deque
from typing import TypeVar, cast

from octavo.engine.channel import Abort, Add, FromCore, Stepped, ToCore
from octavo.engine.core import EngineCore
from octavo.engine.core_process import turn
from octavo.engine.output import OutputProcessor
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequest, Overloaded, RequestFailed
from octavo.metrics import Metrics
from octavo.plan import StepPlan
from octavo.request import Request
from simulation.books import Books, Violation, demand
from simulation.callers import Caller, Spelling, pick
from simulation.oracle import Alone
from simulation.scenario import Ask, Break, Crash, Drain, Hang, Jump, Lag, Leave, Op, Settle, Setup, Step, Unloadable
from simulation.worker import Killed, make_worker

_TURN_SECONDS = 0.01
_ERRORS = {"invalid": InvalidRequest, "overloaded": Overloaded, "failed": RequestFailed}

Message = TypeVar("Message")


class World:
    """A service from its start; `play` lets something happen, `settle` sees it come to rest."""

    def __init__(self, setup: Setup) -> None:
        self.steps = 0
        self._setup, self._config = setup, setup.config
        self._now = 0.0
        self._turns = 0
        self._lag = Lag(0, 0)
        self._heard = 0  # messages of a core dying in the next step that will arrive
        self._cores = 0
        self._callers: list[Caller] = []
        self._alone: dict[str, Alone] = {}
        self._metrics = Metrics("simulated", longest=setup.max_model_len)
        self._outputs = OutputProcessor(cast(Tokenizer, Spelling()), self._metrics, lambda: self._now)
        self._to_core: deque[tuple[int, ToCore]] = deque()  # with the turn at which each is there
        self._to_caller: deque[tuple[int, FromCore]] = deque()
        self._start_core()

    def _start_core(self) -> None:
        self._cores += 1
        self._worker = make_worker(self._setup, self._watch)
        seed = self._cores.to_bytes(32, "little")
        self._core = EngineCore(self._config, self._worker, hash_seed=seed, clock=lambda: self._now)
        self._core.scheduler.swap_space.least = self._setup.least_swapped
        self._books = Books(self._core.scheduler, self._worker, lambda request: self._alone[request.request_id])

    def run(self, ops: list[Op]) -> None:
        for op in ops:
            self.play(op)
        self.settle()

    def play(self, op: Op) -> None:
        match op:
            case Ask():
                self._ask(op)
            case Leave(number):
                if (caller := pick(self._callers, number)) is not None:
                    self._leave(caller)
            case Step(count):
                for _ in range(count):
                    self._turn()
            case Break(row):
                self._worker.faulty_row = row
            case Lag():
                self._lag = op
            case Jump(seconds):
                self._now += seconds
            case Crash(in_step, heard):
                self._crash(in_step, heard)
            case Hang() | Unloadable():  # nobody watches here, and a core is there at once
                self._crash(True, 0)
            case Settle() | Drain():
                self.settle()

    def settle(self) -> None:
        """Nothing more goes wrong: everyone gets the end of what they asked for, and nothing stays behind."""
        self._worker.faulty_row, self._worker.doomed = None, False
        bound = 20 + 4 * sum(caller.remaining for caller in self._callers if caller.open)
        bound += 4 * (self._lag.to_core + self._lag.to_caller)
        while self._core.has_work or self._to_core or self._to_caller:
            demand(bound > 0, "liveness", "{} requests do not end", len(self._books))
            bound -= 1
            self._turn()
        pool, total = self._core.scheduler.pool, self._metrics.total
        demand(pool.free == pool.count, "leak", "{} blocks", pool.count - pool.free)
        demand(not self._core.scheduler.under_way, "leak", "a step that nobody takes in")
        demand(not self._outputs.unfinished, "leak", "{} requests of callers", self._outputs.unfinished)
        demand(not any(caller.open for caller in self._callers), "transcript", "a caller has heard no end")
        ended = sum(map(total, ("requests_completed", "requests_errored", "requests_cancelled")))
        demand(total("requests_accepted") == ended, "ledger", "{} taken, {} ended", total("requests_accepted"), ended)

    # ------------------------------------------------------------------ callers

    def _ask(self, ask: Ask) -> None:
        request = as_request(f"r{len(self._callers)}", ask, self._now)
        alone = Alone(request, min(self._setup.max_model_len, self._setup.num_blocks * self._setup.block_size))
        self._alone[request.request_id] = alone
        self._callers.append(Caller(request, ask.kind, alone))
        self._outputs.add(request, None, ask.kind)
        self._send(Add(request))

    def _leave(self, caller: Caller) -> None:
        """Also one who has gone already: an abort may come at any time."""
        caller.open = False
        self._outputs.drop(caller.request.request_id)
        self._send(Abort(caller.request.request_id))

    def _deliver(self, message: FromCore) -> None:
        """What has arrived from the core goes its way out."""
        if not isinstance(message, Stepped):
            return
        news = self._outputs.take(message.step)
        for report in news.reports:
            caller = self._caller(report.request_id)
            demand(caller.open, "transcript", "{} is told something after its end", report.request_id)
            caller.hear(report)
        failed = {output.request_id: output for output in message.step.outputs if output.error is not None}
        for request_id, error in news.failures.items():
            output = failed.get(request_id)
            true = output is not None and (type(error), error.message) == (_ERRORS[output.fault], output.error)
            demand(true, "transcript", "{} failed on its way out: {}", request_id, error)
            self._caller(request_id).open = False
        for request_id, index in news.aborts:
            self._send(Abort(request_id, index))

    def _caller(self, request_id: str) -> Caller:
        return self._callers[int(request_id[1:])]

    # ------------------------------------------------------------------ the core

    def _turn(self) -> None:
        self._now += _TURN_SECONDS
        self._turns += 1
        messages = self._arrived(self._to_core)
        if messages or self._core.has_work:
            self._books.expect(messages)
            try:
                turn(self._core, messages, self._say)
            except Killed:
                self._die()
            except Exception as error:
                if isinstance(error, Violation):
                    raise
                raise Violation("crash", f"{type(error).__name__}: {error}") from error
            else:
                self._books.check()
        for message in self._arrived(self._to_caller):
            self._deliver(message)

    def _watch(self, plan: StepPlan) -> None:
        self.steps += 1
        self._books.watch(plan)

    def _say(self, message: FromCore) -> None:
        if isinstance(message, Stepped):
            self._books.take(message.step)
        self._to_caller.append((self._turns + self._lag.to_caller, message))

    def _send(self, message: ToCore) -> None:
        self._to_core.append((self._turns + self._lag.to_core, message))

    def _arrived(self, pipe: deque[tuple[int, Message]]) -> list[Message]:
        messages: list[Message] = []
        while pipe and pipe[0][0] <= self._turns:
            messages.append(pipe.popleft()[1])
        return messages

    def _crash(self, in_step: bool, heard: int) -> None:
        self._heard = heard
        if in_step:
            self._worker.doomed = True
        else:
            self._die()

    def _die(self) -> None:
        """The core is gone with all it knew; another one goes on with what callers have not heard."""
        for _ in range(min(self._heard, len(self._to_caller))):
            self._deliver(self._to_caller.popleft()[1])
        self._to_caller.clear()
        self._to_core.clear()
        self._metrics.restart()
        self._start_core()
        for caller in self._callers:
            if caller.open:
                resumed = self._outputs[caller.request.request_id].resumed()
                caller.check_resumed(resumed)
                self._send(Add(resumed))


def as_request(request_id: str, ask: Ask, now: float) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=ask.prompt,
        params=ask.params(stop_token_ids=ask.stop_token_ids),
        max_tokens=ask.max_tokens,
        seed=ask.seed,
        eos_token_ids=ask.eos,
        arrival=now,
        priority=ask.level,
        adapter=ask.adapter,
        cache_salt=ask.salt,
        beam=ask.search,
    )
