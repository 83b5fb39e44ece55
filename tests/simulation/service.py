"""The whole engine under a clock of its own: `AsyncLLMEngine`, its supervisor and roster, and cores that can be killed.

Everything runs in one thread on an event loop whose time passes only when nobody has anything to do. A core runs the
real turn with the simulated worker; between it and the engine travel real frames, each after a delay. Cores crash, are
killed, hang, do not load; callers leave, read slowly, send what kills the core. Each caller gets exactly one end, and
whatever is said is what the request says alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from octavo import frames
from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.engine.channel import Abort, Add, FromCore, Stepped, ToCore
from octavo.engine.core import EngineCore
from octavo.engine.core_process import turn
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineDead, InvalidRequest, OctavoError, Overloaded, RequestFailed
from octavo.plan import StepPlan
from octavo.processes import Ready
from octavo.request import Request, SamplingParams
from simulation.books import Books, Violation, demand
from simulation.callers import Caller, Spelling, pick
from simulation.clock import Loop
from simulation.oracle import Alone
from simulation.scenario import Ask, Break, Crash, Drain, Hang, Jump, Lag, Leave, Op, Settle, Setup, Step, Unloadable
from simulation.worker import Killed, make_worker

_STEP_SECONDS = 0.01
_LOAD_SECONDS = 0.05
_SLOWEST_STEP = 5.0  # less than any patience
_PATIENCE = 10_000.0  # seconds in which everything must end once nothing goes wrong any more
_CHECKPOINT = Checkpoint(name="simulated", path=Path("simulated"), format="dummy", config={})
_EOS = 7
_CRASH, _FOREIGN_KILL, _REFUSED = 3, 1, 6  # what a death may weigh against a request, and when that is too much


class Core:
    """A core process and both ends of its line, as the supervisor knows them."""

    def __init__(self, service: Service, loads: bool) -> None:
        self.worker = make_worker(service.setup, self._watch)
        self.core = EngineCore(
            service.config, self.worker, hash_seed=service.next_seed(), clock=asyncio.get_running_loop().time
        )
        self.core.scheduler.swap_space.least = service.setup.least_swapped
        self.books = Books(self.core.scheduler, self.worker, service.alone)
        self.sent: set[str] = set()  # requests
        self.hangs = False
        self.slow: list[float] = []  # seconds that the next steps take beside their own
        self.heard = 0  # messages that arrive still when it dies in a step
        self.foreign = False
        self.loaded = False
        self._welcomed = False  # the supervisor knows that it is loaded
        self._service = service
        self._code: int | None = None
        self._inbox: deque[ToCore] = deque()
        self._outbox: deque[tuple[float, bytes]] = deque()
        self._last_here = self._last_there = 0.0  # when the last message arrives: none overtakes another
        self._has_mail, self._said = asyncio.Event(), asyncio.Event()
        self._life = asyncio.create_task(service.guard(partial(self._live, loads)))

    def due_here(self) -> float:
        """When a message that is sent to the core now arrives."""
        self._last_here = self._service.due(self._service.lag.to_core, self._last_here)
        return self._last_here

    @property
    def alive(self) -> bool:
        return self._code is None

    @property
    def idle(self) -> bool:
        return self.loaded and self.alive and not self.core.has_work and not self._inbox

    # ------------------------------------------------------------------ the supervisor's end

    async def open(self, config: EngineConfig, checkpoint: Checkpoint) -> Core:
        return self

    def send(self, message: Add | Abort) -> None:
        if isinstance(message, Add):
            self.sent.add(message.request.request_id)
        body = frames.encode(message)[frames.HEADER :]
        loop = asyncio.get_running_loop()
        loop.call_at(self.due_here(), self._take_in, body)

    async def receive(self) -> FromCore:
        time = asyncio.get_running_loop().time
        while True:
            if self._outbox and self._outbox[0][0] <= time() + 1e-6:
                message = self._service.from_core.decode(self._outbox.popleft()[1])
                self._welcomed = self._welcomed or isinstance(message, Ready)
                if isinstance(message, Stepped):
                    self._service.progress(message)
                return message
            if self._code is not None and not self._outbox:
                if self._welcomed:
                    self._service.bury(self, self._code)
                raise EOFError
            self._said.clear()
            await self._said.wait()

    def close(self) -> None: ...

    async def write_stack(self) -> None:
        await asyncio.sleep(0.5)

    def kill(self) -> None:
        if not self.hangs:
            self._service.break_off(Violation("liveness", "a core that works was killed"))
        self.die(-9)

    async def end(self) -> int:
        if self._code is None:
            self.die(0)
        assert self._code is not None
        return self._code

    # ------------------------------------------------------------------ the process

    def die(self, code: int) -> None:
        if self._code is not None:
            return
        self._code = code
        now = asyncio.get_running_loop().time()
        self._outbox = deque((now, body) for _, body in list(self._outbox)[: self.heard])
        self._said.set()
        self._life.cancel()

    def _take_in(self, body: bytes) -> None:
        self._inbox.append(self._service.to_core.decode(body))
        self._has_mail.set()

    async def _live(self, loads: bool) -> None:
        await asyncio.sleep(_LOAD_SECONDS)
        if not loads:
            self.die(1)
            return
        self.loaded = True
        self._say(Ready(self.worker.capacity))
        while True:
            while not self._inbox and not self.core.has_work:
                self._has_mail.clear()
                await self._has_mail.wait()
            if self.hangs:
                await asyncio.Event().wait()
            self._turn()
            await asyncio.sleep(_STEP_SECONDS + (self.slow.pop() if self.slow else 0.0))

    def _turn(self) -> None:
        messages = list(self._inbox)
        self._inbox.clear()
        self.books.expect(messages)
        try:
            turn(self.core, messages, self._say)
        except Killed:
            self.die(-9 if self.foreign else -11)
        else:
            self.books.check()

    def _watch(self, plan: StepPlan) -> None:
        self._service.steps += 1
        self.books.watch(plan)
        now = asyncio.get_running_loop().time()
        for request_id in self.books:
            known = self._service.gone.get(request_id, now)
            demand(known >= now - _STEP_SECONDS, "leak", "{} is computed for nobody", request_id)

    def _say(self, message: FromCore) -> None:
        if isinstance(message, Stepped):
            self.books.take(message.step)
        due = self._last_there = self._service.due(self._service.lag.to_caller, self._last_there)
        self._outbox.append((due, frames.encode(message)[frames.HEADER :]))
        asyncio.get_running_loop().call_at(due, self._said.set)


class Service:
    """The engine from its start to its shutdown, and everyone who asks it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.config = setup.config
        self.steps = 0
        self._left: str | None = None  # the id of the last one who left
        self.gone: dict[str, float] = {}  # who has left, and when the core has to know
        self.lag = Lag(0, 0)
        self.to_core: frames.Decoder[ToCore] = frames.Decoder(ToCore)
        self.from_core: frames.Decoder[FromCore] = frames.Decoder(FromCore)
        self._cores: list[Core] = []
        self._callers: list[Caller] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._blame: dict[
            str, int
        ] = {}  # what deaths weigh against a request that was on the core, since it got further
        self._deaths = 0
        self._unloadable = 0
        self._closing = False
        self._broken: Exception | None = None

    def run(self, ops: list[Op]) -> None:
        loop = Loop()
        try:
            loop.run_until_complete(self._run(ops))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _run(self, ops: list[Op]) -> None:
        self._engine = AsyncLLMEngine(
            self.config, _CHECKPOINT, cast(Tokenizer, Words()), self._start_core, asyncio.get_running_loop().time
        )
        self._engine.run(self._start_core())
        await self._engine.wait_ready()
        for op in ops:
            await self._play(op)
            self._raise_broken()
        if not (ops and isinstance(ops[-1], Drain)):
            await self._settle()
            await self._drain(0.0)

    # ------------------------------------------------------------------ what happens

    async def _play(self, op: Op) -> None:
        match op:
            case Ask():
                self._ask(op)
            case Leave(number):
                if (caller := pick(self._callers, number)) is not None:
                    self._leave(caller)
                    await asyncio.sleep(0)  # the engine is told
            case Step(count):
                await asyncio.sleep(count * _STEP_SECONDS)
            case Lag():
                self.lag = op
            case Settle():
                await self._settle()
            case Drain(seconds):
                await self._drain(seconds)
            case _:
                self._harm(self._cores[-1], op)

    def _harm(self, core: Core, op: Op) -> None:
        """Something happens to the present core."""
        match op:
            case Break(row):
                core.worker.faulty_row = row
            case Jump(seconds):
                core.slow = [min(seconds, _SLOWEST_STEP)] * 4
            case Crash(in_step, heard, foreign):
                self._crash(core, in_step, heard, foreign)
            case Hang():
                core.hangs = core.loaded
            case Unloadable(count):
                self._unloadable = count
                self._crash(core, False, 0, True)

    def _crash(self, core: Core, in_step: bool, heard: int, foreign: bool) -> None:
        if not core.loaded:
            return
        core.heard, core.foreign = heard, foreign
        if in_step:
            core.worker.doomed = True
        else:
            core.die(-9 if foreign else -11)

    async def _settle(self) -> None:
        """Nothing more goes wrong: everyone hears an end, and nothing stays behind."""
        self._unloadable = 0
        worker = self._cores[-1].worker
        worker.faulty_row, worker.doomed = None, False
        await self._hear_ends()
        await asyncio.sleep(1.0)  # aborts arrive
        for _ in range(100):  # a core that just died is replaced, work that nobody awaits ends
            if self._cores[-1].idle:
                break
            await asyncio.sleep(1.0)
        self._raise_broken()
        core = self._cores[-1]
        if not core.hangs:  # nobody waits for it, so nobody has noticed; the next request will
            demand(core.idle and self._engine.moving, "liveness", "the core is not back at rest")
            demand(core.core.scheduler.pool.free == self.setup.num_blocks, "leak", "blocks")
        self._check_books()

    async def _drain(self, seconds: float) -> None:
        """Everyone hears an end, in time, and no core lives on."""
        self._closing = True
        began = asyncio.get_running_loop().time()
        await self._engine.shutdown(seconds)
        took = asyncio.get_running_loop().time() - began
        demand(took <= seconds + 1.0, "liveness", "the shutdown took {} s", took)
        await self._hear_ends()
        demand(not any(core.alive for core in self._cores), "leak", "a core outlives the engine")
        self._check_books()

    async def _hear_ends(self) -> None:
        if self._tasks:
            _, waiting = await asyncio.wait(self._tasks, timeout=_PATIENCE)
            self._raise_broken()
            demand(not waiting, "liveness", "{} callers hear no end", len(waiting))
        self._tasks.clear()

    def _check_books(self) -> None:
        engine = self._engine
        total = engine.metrics.total
        rest = (engine._outputs.unfinished, len(engine._mailboxes), len(engine._roster._entries))
        demand(not any(rest), "leak", "(outputs, streams, roster) = {}", rest)
        taken, restarts = total("requests_accepted"), total("core_restarts")
        ended = sum(map(total, ("requests_completed", "requests_errored", "requests_cancelled")))
        demand(taken == ended, "ledger", "{} taken, {} ended", taken, ended)
        demand(self._closing or restarts == self._deaths, "ledger", "{} deaths, {} known", self._deaths, restarts)

    # ------------------------------------------------------------------ callers

    def _ask(self, ask: Ask) -> None:
        request_id = self._left if ask.again and self._left is not None else f"r{len(self._callers)}"
        self._left = None
        self.gone.pop(request_id, None)
        request = _as_request(request_id, ask, self.setup)
        alone = Alone(request, min(self.setup.max_model_len, self.setup.num_blocks * self.setup.block_size))
        caller = Caller(request, ask.kind, alone)
        self._callers.append(caller)
        self._tasks.append(asyncio.create_task(self.guard(partial(self._listen, caller, ask)), name=request.request_id))

    async def _listen(self, caller: Caller, ask: Ask) -> None:
        request = caller.request
        outputs = self._engine.generate(
            request.prompt_token_ids,
            ask.search or request.params,
            request.request_id,
            priority=request.priority,
            cache_salt=request.cache_salt,
            output_kind=ask.kind,
        )
        try:
            async for output in outputs:
                demand(caller.open, "transcript", "{} is told something after its end", request.request_id)
                caller.hear(output)
                await asyncio.sleep(ask.priority * _STEP_SECONDS)  # some read slowly
            demand(not caller.open, "transcript", "{} hears no end", request.request_id)
        except OctavoError as error:
            self._check_error(caller, error)
        finally:
            caller.open = False
            await outputs.aclose()  # type: ignore[attr-defined]  # an async generator

    def _check_error(self, caller: Caller, error: OctavoError) -> None:
        request = caller.request
        demand(caller.open, "transcript", "{} fails after its end", request.request_id)
        length = len(request.prompt_token_ids)
        match error:
            case InvalidRequest():
                fits = 0 < length < min(self.setup.max_model_len, self.setup.num_blocks * self.setup.block_size)
                demand(not fits, "transcript", "{} was refused: {}", request.request_id, error.message)
            case Overloaded():
                bounds = (self.setup.max_num_queued_reqs, self.setup.max_num_queued_tokens)
                demand(any(bounds), "transcript", "{} was refused: {}", request.request_id, error.message)
            case RequestFailed() if "crashed" in error.message:
                blame = self._blame.get(request.request_id, 0)
                demand(blame >= _REFUSED, "transcript", "{} was refused for {}", request.request_id, blame)
            case EngineDead():
                demand(self._closing, "transcript", "{}: {}", request.request_id, error.message)
            case RequestFailed():
                demand(error.message == "not a number", "transcript", "{}: {}", request.request_id, error.message)
            case _:
                raise Violation("transcript", f"{request.request_id}: {error!r}")

    def _leave(self, caller: Caller) -> None:
        caller.open = False
        request_id = caller.request.request_id
        self.gone.setdefault(request_id, self._cores[-1].due_here())
        for task in self._tasks:
            if task.get_name() == request_id:
                task.cancel()
                self._left = request_id

    def alone(self, request: Request) -> Alone:
        """What the core is sent, as it was asked; an id may have been used before."""
        said = _words(request)
        for caller in self._callers:
            if caller.request.request_id == request.request_id and _words(caller.request) == said:
                return caller.alone
        raise Violation("transcript", f"nobody asked for {request}")

    # ------------------------------------------------------------------ cores

    def _start_core(self) -> Core:
        loads = self._unloadable <= 0
        self._unloadable -= 1
        core = Core(self, loads)
        self._cores.append(core)
        return core

    def next_seed(self) -> bytes:
        return (len(self._cores) + 1).to_bytes(32, "little")

    def bury(self, core: Core, code: int) -> None:
        """A core that was known to work died: those on it may be blamed."""
        self._deaths += 1
        weight = _FOREIGN_KILL if code == -9 and not core.hangs else _CRASH
        for request_id in core.sent:
            self._blame[request_id] = self._blame.get(request_id, 0) + weight

    def progress(self, message: Stepped) -> None:
        for output in message.step.outputs:
            self._blame.pop(output.request_id, None)

    def due(self, lag: int, last: float) -> float:
        """When a message that is sent now arrives, behind the one that arrives last."""
        return max(last, asyncio.get_running_loop().time() + lag * _STEP_SECONDS)

    # ------------------------------------------------------------------ what is wrong

    def break_off(self, error: Exception) -> None:
        self._broken = self._broken or error

    async def guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Nothing that goes wrong in a task is lost."""
        try:
            await work()
        except Exception as error:
            self.break_off(error)

    def _raise_broken(self) -> None:
        if isinstance(self._broken, Violation):
            raise self._broken
        if self._broken is not None:
            raise Violation("crash", f"{type(self._broken).__name__}: {self._broken}") from self._broken


class Words(Spelling):
    """The tokenizer, as far as the engine needs one for prompts that are token ids."""

    eos_token_ids = (_EOS,)
    chat_template = None
    bos_token = eos_token = None


def _as_request(request_id: str, ask: Ask, setup: Setup) -> Request:
    """What the engine should make of it."""
    room = setup.max_model_len - len(ask.prompt)
    params = ask.params(stop_token_ids=ask.stop_token_ids + ask.eos)
    if ask.search:
        params = SamplingParams(temperature=0.0, max_tokens=ask.max_tokens)
    return Request(
        request_id=request_id,
        prompt_token_ids=ask.prompt,
        params=params,
        max_tokens=min(ask.max_tokens, room),
        seed=ask.seed,
        eos_token_ids=[_EOS],
        priority=ask.level,
        cache_salt=ask.salt,
        beam=ask.search,
    )


def _words(request: Request) -> tuple[object, ...]:
    """All that what a request says depends on."""
    params = replace(request.params, prompt_logprobs=None)  # not asked for again when it goes on elsewhere
    seed = None if request.beam else request.seed
    rest = (request.max_tokens, request.eos_token_ids, request.cache_salt, request.beam)
    return (request.prompt_token_ids, params, seed, *rest)
