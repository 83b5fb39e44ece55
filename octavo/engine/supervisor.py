"""Keeps one core process running: starts it, hears it, notices when it dies or hangs, starts the next.

A death is known at once, because the channel ends with the process. A hang is silence while there is work, measured
against the steps before. What becomes of requests is the client's business. All time here is the event loop's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig, replace
from octavo.engine.channel import (
    UNANNOUNCED_WORK,
    Began,
    Channel,
    FromCore,
    Rested,
    Seen,
    Sleep,
    Stepped,
    ToCore,
    Wake,
)
from octavo.engine.core import StepOutputs
from octavo.errors import EngineDead, OctavoError
from octavo.processes import STACK_SIGNAL, Failed, Ready, end, setup, start
from octavo.snapshot import Blocks

logger = logging.getLogger(__name__)

_MARGIN = 10.0  # a step may take this many times as long as those before it
_UNKNOWN_PACE = 0.05  # seconds per unit of work, before a step was seen
_RECENT_STEPS = 64
_LOAD_SECONDS = 60.0  # granted to any core but the first
_TICKS = 40  # looks at a silent core before its patience is over
_STACK_SECONDS = 0.5  # for a hung core to write its stack
_MOST_FAILURES = 8  # cores in a row that never got ready
_BACKOFF_SECONDS = 0.5  # before a core that follows one which never finished a step; doubles
_LONGEST_BACKOFF = 10.0


class Line(Protocol):
    """Our end of the line to a core."""

    def send(self, message: ToCore) -> None: ...

    async def receive(self) -> FromCore:
        """Raises EOFError when the core is gone."""
        ...

    def close(self) -> None: ...


class Core(Protocol):
    """A core that was started, wherever it runs."""

    async def open(self, config: EngineConfig, checkpoint: Checkpoint) -> Line: ...

    async def write_stack(self) -> None:
        """Say in the log where it stands."""
        ...

    def kill(self) -> None: ...

    async def end(self) -> int:
        """After its line was closed: wait for it, kill it if it does not go. Its exit code."""
        ...


class CoreProcess:
    """A process of this machine. It imports its libraries while we look for the model."""

    def __init__(self, module: str = "octavo.engine.core_process") -> None:
        self._process, self._connection = start(module)
        logger.info("the engine process is %d", self._process.pid, extra={"engine_pid": self._process.pid})
        self._channel: Channel | None = None  # owns the connection once it is there

    async def open(self, config: EngineConfig, checkpoint: Checkpoint) -> Channel:
        self._channel = await Channel.open(self._connection)
        self._channel.send(setup(config, checkpoint))
        return self._channel

    async def write_stack(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(STACK_SIGNAL)
        await asyncio.sleep(_STACK_SECONDS)

    def kill(self) -> None:
        self._process.kill()

    async def end(self) -> int:
        if self._channel is None:
            self._connection.close()
        else:
            self._channel.close()
            await self._channel.wait_closed()
        reaper = ThreadPoolExecutor(1)  # the loop's own threads may have minutes of callers' texts before them
        try:
            return await asyncio.get_running_loop().run_in_executor(reaper, end, self._process)
        finally:
            reaper.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class Death:
    """How a core ended."""

    reason: OctavoError
    loaded: bool = False  # it had been ready
    worked: bool = False  # it had finished a step
    foreign_kill: bool = False  # by a SIGKILL that was not ours


class Client(Protocol):
    """Whose core it is."""

    @property
    def waits(self) -> bool:
        """Whether the core owes it something."""
        ...

    def welcome(self, ready: Ready) -> None:
        """A core is loaded and empty."""
        ...

    def hear(self, step: StepOutputs) -> None: ...

    def see(self, blocks: Blocks) -> None: ...

    def rest(self, answer: Rested) -> None:
        """The core sleeps or is awake, as it was told, or says why not."""
        ...

    def mourn(self, death: Death) -> None:
        """A core that was loaded is gone; another follows."""
        ...

    async def needs_core(self) -> None:
        """Until it does: nothing is loaded into memory that somebody has asked to be free."""


class Pace:
    """How long a step may take. floor: seconds granted to any; 0: no step ever takes too long.

    A large step needs less per unit of work than a small one, which reads all weights for a few tokens. So paces are
    kept apart by size, and steps of the nearest size that is not larger speak for one that was announced.
    """

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)  # seconds
        self._paces: dict[int, deque[float]] = {}  # seconds per unit of work, by the binary order of the work

    def note(self, work: float, seconds: float) -> None:
        if work:
            self._recent.append(seconds)
            paces = self._paces.setdefault(_size(work), deque(maxlen=_RECENT_STEPS))
            paces.append(seconds / work)

    def patience(self, work: float = 0.0) -> float:
        """Seconds for the next step. work: of one that was announced."""
        slowest = max(self._recent, default=_UNKNOWN_PACE * UNANNOUNCED_WORK)
        return max(self._floor, _MARGIN * slowest, _MARGIN * self._pace(work) * work)

    def _pace(self, work: float) -> float:
        size = max((size for size in self._paces if size <= _size(work)), default=None)
        return _UNKNOWN_PACE if size is None else max(self._paces[size])


def _size(work: float) -> int:
    return int(work).bit_length()


class Supervisor:
    """One core after another, all with the same configuration and checkpoint."""

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, client: Client, start_core: Callable[[], Core]
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._client = client
        self._start_core = start_core
        self._line: Line | None = None
        self._pace = Pace(config.execution.hang_timeout)
        self._loaded = self._worked = self._hung = False  # the present core
        self._silence = 0.0  # seconds that a busy core has said nothing
        self._moving_house = False  # it falls asleep or wakes: that takes as long as loading
        self._announced = 0.0  # work of the step it is in, if large
        self._load_patience = math.inf  # seconds a core may take to load; known once one has

    @property
    def up(self) -> bool:
        """Whether a core takes messages."""
        return self._loaded

    @property
    def moving(self) -> bool:
        """Whether the core is there and not late."""
        return self._loaded and self._silence <= self._patience / 2

    @property
    def _patience(self) -> float:
        if self._moving_house or not self._loaded:
            return self._load_patience
        return self._pace.patience(self._announced)

    def send(self, message: ToCore) -> None:
        assert self._line is not None
        self._moving_house = self._moving_house or isinstance(message, Sleep | Wake)
        self._line.send(message)

    async def run(self, core: Core) -> OctavoError:
        """Until no core can be started any more; why. The first one must load, later ones may take several attempts."""
        death = await self._live(core)
        if not death.loaded:
            return death.reason
        unloaded = fruitless = 0  # deaths in a row
        while unloaded < _MOST_FAILURES:
            logger.error("%s", death.reason.message)
            if death.loaded:
                self._client.mourn(death)
            await self._client.needs_core()
            logger.info("starting another engine process")
            if fruitless:
                await asyncio.sleep(min(_BACKOFF_SECONDS * 2 ** (fruitless - 1), _LONGEST_BACKOFF))
            death = await self._restart()
            unloaded = 0 if death.loaded else unloaded + 1
            fruitless = 0 if death.worked else fruitless + 1
        return death.reason

    async def _restart(self) -> Death:
        try:
            core = self._start_core()
        except OSError as error:  # no memory, no file descriptor
            return Death(EngineDead(f"the engine process cannot be started: {error}"))
        return await self._live(core)

    async def _live(self, core: Core) -> Death:
        """From a core's start to its end."""
        self._loaded = self._worked = self._hung = self._moving_house = False
        self._silence = 0.0
        failed: OctavoError | None = None
        try:
            failed = await self._listen(core)
        finally:
            loaded, self._loaded, self._line = self._loaded, False, None
            code = await core.end()
        if self._hung:
            return Death(EngineDead("the engine process hung and was killed"), loaded, self._worked)
        reason = failed or EngineDead(f"the engine process ended unexpectedly (exit code {code})")
        return Death(reason, loaded, self._worked, foreign_kill=code == -signal.SIGKILL)

    async def _listen(self, core: Core) -> OctavoError | None:
        """Until the line ends, or the core says why it cannot start."""
        line = self._line = await core.open(self._config, self._checkpoint)
        watch = asyncio.create_task(self._watch(core))
        try:
            while (failed := self._take(await line.receive())) is None:
                pass
            return failed
        except EOFError as error:
            logger.debug("%s", error)
            return None
        finally:
            watch.cancel()
            line.close()

    def _take(self, message: FromCore) -> OctavoError | None:
        """Pass on what the core said; the reason if it is that it cannot start."""
        load_seconds, self._silence, self._announced = self._silence, 0.0, 0.0
        match message:
            case Ready(capacity):
                # Whatever memory a later core finds: requests were promised room in a context of this length.
                model = replace(self._config.model, max_model_len=capacity.max_model_len)
                self._config = replace(self._config, model=model)
                self._load_patience = max(_LOAD_SECONDS, _MARGIN * load_seconds)
                self._loaded = True
                self._client.welcome(message)
            case Failed():
                return message.exception()
            case Began(work):
                self._announced = work
            case Stepped(step):
                self._worked = self._worked or step.work > 0
                self._pace.note(step.work, step.seconds)
                self._client.hear(step)
            case Seen(blocks):
                self._client.see(blocks)
            case Rested():
                self._moving_house = False
                self._client.rest(message)
        return None

    async def _watch(self, core: Core) -> None:
        """Kill the core when it is silent for too long.

        Silence is counted in looks, not read from a clock: when this process itself was stopped, time passed for it
        that the core did not have.
        """
        tick = self._config.execution.hang_timeout / _TICKS
        while tick:
            await asyncio.sleep(tick)
            busy = self._client.waits or self._moving_house or not self._loaded
            self._silence = self._silence + tick if busy else 0.0
            if self._silence > self._patience:
                what = "loaded" if not self._loaded else "moved" if self._moving_house else "finished a step"
                logger.error("the engine process has not %s in %.0f s; killing it", what, self._silence)
                self._hung = True
                await core.write_stack()
                core.kill()
                return
