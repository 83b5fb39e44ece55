"""Engines that load when they are told to, and the books of all that were ever started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from octavo.config import EngineConfig
from octavo.errors import CheckpointError, EngineDead, OctavoError
from octavo.metrics import Metrics


@dataclass
class FakeCheckpoint:
    name: str


@dataclass(eq=False)
class FakeEngine:
    """Takes requests between `ready` and its end; `held` is what it has of the machine's memory until it is gone."""

    config: EngineConfig
    version: int
    held: int
    ending_seconds: float = 0.0
    moving: bool = True
    max_model_len: int = 100
    is_sleeping: bool = False

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.checkpoint = FakeCheckpoint(str(self.config.model.model))
        self.metrics = Metrics("fake", longest=10, version=self.version)
        self.loaded: asyncio.Future[None] = loop.create_future()
        self.death: asyncio.Future[OctavoError] = loop.create_future()
        self.gone = False

    @property
    def source(self) -> str:
        return str(self.config.model.model)

    @property
    def ready(self) -> bool:
        return self.loaded.done() and not self.dead

    @property
    def dead(self) -> bool:
        return self.gone or self.death.done()

    def finish_loading(self, error: OctavoError | None = None) -> None:
        if self.loaded.done():
            return
        if error is None:
            self.loaded.set_result(None)
        else:
            self.loaded.set_exception(error)
            self.loaded.exception()

    def die(self) -> None:
        if not self.death.done():
            self.death.set_result(EngineDead("the engine process ended"))

    async def wait_ready(self) -> None:
        await asyncio.shield(self.loaded)

    async def wait_dead(self) -> OctavoError:
        return await asyncio.shield(self.death)

    async def sleep(self, level: int = 1) -> None:
        self.is_sleeping = True
        self.moving = False

    async def wake_up(self) -> None:
        self.is_sleeping = False
        self.moving = True

    async def shutdown(self) -> None:
        await asyncio.sleep(self.ending_seconds)
        self.gone = True


@dataclass
class FakeLoader:
    """`sizes` and `broken` are by source. `by_itself`: engines load without being told to."""

    sizes: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    by_itself: bool = True
    ending_seconds: float = 0.0
    engines: list[FakeEngine] = field(default_factory=list)
    budget: int | None = None  # that may never be exceeded

    async def measure(self, config: EngineConfig) -> int:
        await asyncio.sleep(0)
        return self._size(config)

    def _size(self, config: EngineConfig) -> int:
        return self.sizes.get(str(config.model.model), 1)

    async def start(self, config: EngineConfig, version: int) -> FakeEngine:
        engine = FakeEngine(config, version, self._size(config), self.ending_seconds)
        self.engines.append(engine)
        assert self.budget is None or self.held <= self.budget, "more memory than there is"
        try:
            await asyncio.sleep(0)
            if engine.source in self.broken:
                raise CheckpointError(f"{engine.source}: no such file")
        except BaseException:  # a start that is given up leaves nothing behind
            engine.gone = True
            raise
        if self.by_itself:
            engine.finish_loading()
        return engine

    @property
    def held(self) -> int:
        return sum(engine.held for engine in self.engines if not engine.gone)

    @property
    def present(self) -> list[FakeEngine]:
        return [engine for engine in self.engines if not engine.gone]

    def latest(self, source: str) -> FakeEngine:
        return next(engine for engine in reversed(self.engines) if engine.source == source)
