"""The models of a server, as far as tests of the HTTP door need them: one, with an engine that the test provides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from octavo.errors import EngineDead, ModelNotFound, Overloaded
from octavo.face import Engine, Known, ModelStatus, Served, VersionCard


class Starting(Overloaded):
    code = "model_loading"


class Recovering(Overloaded):
    code = "engine_recovering"


class OneModel:
    """`engine` is None until it has been started."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine
        self.unloaded: list[str] = []

    @property
    def room(self) -> int | None:
        if self.engine is None:
            return None
        scheduler = self.engine.config.scheduler
        queue = scheduler.max_num_queued_reqs
        return None if queue is None else scheduler.max_num_seqs + queue

    def check(self) -> None:
        self._serving()

    def check_ready(self) -> list[str]:
        if not self._serving().moving:
            raise Recovering("The engine is late or being restarted; requests wait for it.")
        return []

    @asynccontextmanager
    async def lease(self, name: str | None, key: str) -> AsyncIterator[Served]:
        engine = self._serving()
        names = self._names(engine)
        if name is not None and name not in names:
            shown = name if len(name) <= 64 else name[:64] + "…"
            raise ModelNotFound(
                f"The model {shown!r} does not exist; this server has {', '.join(names)}.", param="model"
            )
        yield Served(name or names[0], engine)

    def known(self) -> Sequence[Known]:
        engine = self._serving()
        return [
            Known(
                name=name,
                model=name,
                state="ready",
                version=1,
                versions=[VersionCard(version=1, state="ready", labels=[])],
                root=engine.checkpoint.name,
                max_model_len=engine.max_model_len,
            )
            for name in self._names(engine)
        ]

    def find(self, name: str) -> Known:
        known = [each for each in self.known() if each.name == name]
        if not known:
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
        return known[0]

    def engines(self, name: str | None = None) -> Sequence[Engine]:
        if name is not None:
            self.find(name)
        return [] if self.engine is None else [self.engine]

    def drain(self) -> None:
        pass

    def status(self) -> list[ModelStatus]:
        return []

    def unload(self, name: str, version: int | None = None) -> None:
        self.unloaded.append(self.find(name).model)

    def _names(self, engine: Engine) -> tuple[str, ...]:
        return engine.config.model.served_model_name or (engine.checkpoint.name,)

    def _serving(self) -> Engine:
        if self.engine is None:
            raise Starting("The server is still starting; try again in a moment.")
        if self.engine.dead:
            raise EngineDead("The engine has stopped; the server needs a restart.")
        if not self.engine.ready:
            raise Starting("The model is still loading; try again in a moment.")
        return self.engine
