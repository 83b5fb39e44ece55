"""The models of a server while it runs: loads, drains and ends engines as the declaration and requests ask for it.

Everything that happens (a request, a load's end, a new declaration, time) is noted in the lives it concerns; then
`_settle` looks at all of them and does what follows. One event loop owns it all, so between two awaits nothing changes.
Knows neither HTTP nor files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from octavo.checkpoint import resolve
from octavo.config import EngineConfig
from octavo.engine.async_engine import QUEUED_REQUESTS, AsyncLLMEngine
from octavo.errors import (
    Asleep,
    ConfigError,
    EngineDead,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    OctavoError,
    Overloaded,
)
from octavo.face import Known, ModelStatus, Served, State
from octavo.repository.declared import Declared
from octavo.repository.lifecycle import PATIENCE, Life, OwnEngine, Room, least_missed
from octavo.repository.memory import estimate
from octavo.repository.model import Model
from octavo.repository.names import listed, shown, split
from octavo.repository.views import known, status

logger = logging.getLogger("octavo.repository")


class Starting(Overloaded):
    code = "model_loading"


class Recovering(Overloaded):
    code = "engine_recovering"


class ModelFailed(EngineDead):
    code = "model_failed"


class Loader(Protocol):
    """Where engines come from."""

    async def measure(self, config: EngineConfig) -> int:
        """Bytes that the model will take. Raises OctavoError."""
        ...

    async def start(self, config: EngineConfig, version: int) -> OwnEngine:
        """Returns while it still loads. Raises OctavoError."""
        ...


class EngineLoader:
    """A core process for each."""

    async def measure(self, config: EngineConfig) -> int:
        return await asyncio.to_thread(lambda: estimate(config, resolve(config.model)))

    async def start(self, config: EngineConfig, version: int) -> OwnEngine:
        return await AsyncLLMEngine.start(config, version)


class Repository:
    """Made inside the event loop it belongs to; `open` begins, `close` ends it. The face of it is `Models`."""

    def __init__(self, declared: Declared, loader: Loader | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loader: Loader = loader or EngineLoader()
        self.declared = declared
        self._models: dict[str, Model] = {}
        self._leaving: list[Model] = []  # no longer declared, but not gone yet
        self._names: dict[str, str] = {}
        self._tasks: dict[Life, asyncio.Task[OctavoError]] = {}
        self._measuring: dict[Life, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()  # another one after each change of a state
        self._stirred = False  # a state has changed since the last event
        self._timer: asyncio.TimerHandle | None = None
        self._starting: set[Life] = set()  # that the server's start waits for
        self._draining = False
        self.room: int | None = None
        self.fate: asyncio.Future[OctavoError] = self._loop.create_future()  # why the only engine is gone

    def open(self) -> None:
        self._take(self.declared)
        self._starting = {life for life in self._all() if life.wanted}
        self._settle()

    async def close(self) -> None:
        """End all engines, whatever they are doing."""
        self.drain()
        if self._timer is not None:
            self._timer.cancel()
        for life, task in self._tasks.items():
            if not life.ending:
                task.cancel()
        for measuring in self._measuring.values():
            measuring.cancel()
        tasks: list[asyncio.Task[Any]] = [*self._tasks.values(), *self._measuring.values()]
        if tasks:
            await asyncio.wait(tasks)

    def declare(self, declared: Declared) -> None:
        """Another declaration takes over. What an administrator has changed besides is forgotten."""
        self._take(declared)
        self._settle()

    def drain(self) -> None:
        self._draining = self._stirred = True
        self._settle()

    def _take(self, declared: Declared) -> None:
        self.declared = declared
        self._stirred = True
        now = self._now
        for name in [name for name in self._models if name not in declared.models]:
            model = self._models.pop(name)
            model.retire()
            self._leaving.append(model)
        for name, declaration in declared.models.items():
            if name in self._models:
                self._models[name].declare(declaration, now)
            else:
                self._models[name] = Model(declaration, now)
        self._models = {name: self._models[name] for name in declared.models}
        self._names = {
            known: model.name for model in declared.models.values() for known in (model.name, *model.aliases)
        }
        self.room = sum(_bound(model.lives[model.route.main].config) for model in self._models.values())

    async def started(self) -> None:
        """Until the models that are to be there from the beginning are, or have failed."""
        while self._starting:
            await self._changed.wait()

    # ------------------------------------------------------------------ requests

    def check(self) -> None:
        if any(life.state == "ready" for life in self._all()):
            return
        if self._starting:
            raise Starting("The model is still loading; try again in a moment.")
        if self.fate.done():
            raise EngineDead("The engine has stopped; the server needs a restart.")

    def check_ready(self) -> list[str]:
        self.check()
        if self._starting:
            raise Starting(f"Still loading: {listed(sorted({life.model for life in self._starting}))}.")
        needed = [model for model in self._models.values() if model.declared.preload]
        late = [model.name for model in needed if _is_late(model.main)]
        failed = [model.name for model in needed if model.main.state == "failed"]
        if needed and len(late) + len(failed) == len(needed):
            if any(model.main.engine is not None and model.main.engine.is_sleeping for model in needed):
                raise Asleep(f"Asleep: {listed(late)}; POST /wake_up wakes them.")
            if late:
                raise Recovering("The engine is late or being restarted; requests wait for it.")
            raise ModelFailed(f"None of the models could be loaded: {listed(failed)}; the server's log says why.")
        return sorted(late + failed)

    @asynccontextmanager
    async def lease(self, name: str | None, key: str) -> AsyncIterator[Served]:
        answering, life = await self._admit(name, key)
        try:
            assert life.engine is not None
            yield Served(answering, life.engine)
        finally:
            life.give_back(self._now)
            if not life.leases:
                self._settle()

    async def _admit(self, name: str | None, key: str) -> tuple[str, Life]:
        """A life that is ready, with a lease on it."""
        waits_for: Life | None = None
        try:
            while True:
                model, selector, answering = self._find(name)
                life = self._pick(model, selector, key, answering)
                if life.state == "ready":
                    life.take()
                    return answering, life
                if life is not waits_for:
                    self._count_waiter(model, life)
                    if waits_for is not None:
                        self._leave(waits_for)
                    waits_for = life
                changed = self._changed
                if life.want(self._now, by_requests=True):
                    self._settle()
                await changed.wait()
        finally:
            if waits_for is not None:
                self._leave(waits_for)

    def _find(self, name: str | None) -> tuple[Model, str | None, str]:
        """The model, what is asked of it, and the name to answer with."""
        if name is None:
            if len(self._models) != 1:
                raise InvalidRequest(
                    f"This server has several models; name one of {listed(self._names)}.",
                    param="model",
                    code="missing_required_parameter",
                )
            (model,) = self._models.values()
            return model, None, model.name
        found = split(name, self._names)
        if found is None:
            raise self._unknown(name)
        return self._models[found[0]], found[1], name

    def _pick(self, model: Model, selector: str | None, key: str, name: str) -> Life:
        """Ready, or to be waited for. Raises ModelNotFound, Overloaded or EngineDead."""
        life = model.pick(selector, key)
        if life is None:
            raise self._not_found(model, name)
        if life.state == "draining" and not life.ending and not life.displaced and not life.retired:
            self._enter(life, "ready")  # its last requests are still running, so it can take more
        if life.state == "ready":
            return life
        if self._draining:
            raise Overloaded("The server is shutting down.", code="shutting_down")
        if life.state == "failed":
            if self.declared.only or self._now < life.retry_at:
                raise ModelFailed(f"The model {shown(name)} could not be loaded; the server's log says why.")
            self._enter(life, "declared")
        return life

    def _unknown(self, name: str) -> ModelNotFound:
        names = listed(self._names)
        return ModelNotFound(f"The model {shown(name)} does not exist; this server has {names}.", param="model")

    def _not_found(self, model: Model, name: str) -> ModelNotFound:
        has = f"{model.name} has versions {', '.join(map(str, model.addressable()))}"
        labels = f" and labels {', '.join(model.route.labels)}" if model.route.labels else ""
        return ModelNotFound(f"The model {shown(name)} does not exist; {has}{labels}.", param="model")

    def _count_waiter(self, model: Model, life: Life) -> None:
        waiting = sum(each.waiters for each in model.all())
        if waiting >= _bound(life.config):
            raise Overloaded(f"{waiting} requests wait for {model.name} to be loaded already; try again later.")
        life.waiters += 1

    def _leave(self, life: Life) -> None:
        life.waiters -= 1
        if not life.waiters and life.wanted and life.by_requests and life.state in ("declared", "draining"):
            life.wanted = False  # nobody is left who wants it
            self._settle()  # others need not wait behind it any more

    # ------------------------------------------------------------------ what follows from how things are

    def _settle(self) -> None:
        """Do what is to be done now, and look again when time alone will change something."""
        now = self._now
        for model in [*self._models.values(), *self._leaving]:
            for life in model.settle():
                self._let_go(life, "is not needed any more")
            for life in model.lives.values():
                if (expires := model.expires(life)) is not None and expires <= now:
                    self._let_go(life, "was not used")
        if not self._draining:
            self._load_what_fits(now)
        for life in self._all():
            if life.state == "draining" and not life.leases and not life.ending:
                life.ending = True
                self._tasks[life].cancel()
        self._starting = {life for life in self._starting if life.wanted and life.state not in ("ready", "failed")}
        self._look_again(now)
        if self._stirred:
            self._stirred = False
            self._changed.set()
            self._changed = asyncio.Event()

    def _enter(self, life: Life, state: State, reason: str | None = None) -> None:
        life.enter(state, self._now, reason)
        self._stirred = True

    def _look_again(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moments = [model.expires(life) for model in self._models.values() for life in model.lives.values()]
        moments += [life.since_wanted + PATIENCE for life in self._all() if life.wanted and life.state == "declared"]
        later = [moment for moment in moments if moment is not None and moment > now]
        if later and not self._draining:
            self._timer = self._loop.call_at(min(later), self._settle)

    def _let_go(self, life: Life, why: str) -> None:
        logger.info("%s %s: unloading it", life, why)
        life.wanted = False
        self._enter(life, "draining")

    def _load_what_fits(self, now: float) -> None:
        """In the order in which they were asked for: nobody overtakes one that waits for room."""
        pending = [life for life in self._all() if life.wanted and life.state == "declared"]
        for life in sorted(pending, key=lambda life: life.since_wanted):
            if self.declared.memory_budget is not None and life.needs is None:
                self._measure(life)
            elif not self._load_or_make_room(life, now):
                return

    def _load_or_make_room(self, life: Life, now: float) -> bool:
        """Whether another may be looked at: this one is being loaded, or never will be."""
        room = Room(self.declared.memory_budget, self.declared.max_loaded_models)
        loaded = [each for each in self._all() if each.loaded]
        lack = room.lacks(life, loaded)
        if lack is None:
            self._load(life)
            return True
        if room.lacks(life, ()) is not None:
            self._fail(life, ConfigError(lack))
            return True
        if life.gentle:
            logger.warning("%s is not loaded in advance: %s", life, lack)
            life.wanted = False
            return True
        beside = [each for each in loaded if each.state == "ready" and self._stays_beside(life, each)]
        if room.lacks(life, beside) is not None:
            serving = ", ".join(map(str, beside))
            self._fail(life, ConfigError(f"{lack}; there is no room for it beside {serving}, which has to serve"))
            return True
        staying = [each for each in loaded if each.state != "draining"]
        if room.lacks(life, staying) is None:
            return False  # room is being made
        stable = [each for each in staying if each.state == "ready" and not self._must_stay(each)]
        forever = {name for name, model in self._models.items() if model.declared.keep_alive is None}
        victims = room.victims(life, staying, least_missed((each for each in stable if not each.used), forever))
        if victims is None and now >= life.since_wanted + PATIENCE:
            victims = room.victims(life, staying, least_missed(stable, forever))
        for victim in victims or ():
            victim.displaced = True
            self._let_go(victim, f"makes room for {life}")
        return False

    def _stays_beside(self, life: Life, other: Life) -> bool:
        """Whether it is no use to wait until the other goes."""
        return self._must_stay(other) and (other.model == life.model or not self._models[other.model].is_changing)

    def _must_stay(self, life: Life) -> bool:
        model = self._models.get(life.model)
        return model is not None and model.must_stay(life)

    # ------------------------------------------------------------------ what is told

    def known(self) -> Sequence[Known]:
        return [known(model, name, model.main) for model in self._models.values() for name in _names(model)]

    def find(self, name: str) -> Known:
        model, selector, answering = self._find(name)
        life = model.pick(selector, "")
        if life is None:
            raise self._not_found(model, name)
        return known(model, answering, life if selector is not None else model.main)

    def engines(self, name: str | None = None) -> Sequence[OwnEngine]:
        """One for each version that is loaded: where it is twice, since it was declared anew, the one that serves."""
        of_version: dict[tuple[str, int], Life] = {}
        for life in self._all() if name is None else self._model(name).all():
            before = of_version.get((life.model, life.version))
            if life.engine is not None and not life.ending and (before is None or before.state != "ready"):
                of_version[life.model, life.version] = life
        return [life.engine for life in of_version.values() if life.engine is not None]

    def status(self) -> list[ModelStatus]:
        return [status(model, self._now, time.time()) for model in self._models.values()]

    # ------------------------------------------------------------------ what an operator asks

    async def load(self, name: str, version: int | None = None) -> ModelStatus:
        model = self._model(name)
        if version is not None:
            self._declared_version(model, version)
            model.extra.add(version)
        lives = model.targets() if version is None else [model.lives[version]]
        for life in lives:
            model.try_again(life, self._now)
            life.want(self._now)
            life.waiters += 1  # so that none of them makes room for another
        self._stirred = True
        try:
            await self._all_ready(name, lives)
        finally:
            for life in lives:
                life.waiters -= 1
            self._settle()  # from now on it may be idle
        return status(model, self._now, time.time())

    async def _all_ready(self, name: str, lives: Sequence[Life]) -> None:
        """Raises LoadFailed or Overloaded."""
        changed = self._changed
        self._settle()
        while missing := [life for life in lives if life.state != "ready"]:
            for life in missing:
                if life.state == "failed":
                    raise LoadFailed(f"{name}:{life.version} could not be loaded: {life.reason}", param="model")
                if not life.wanted:
                    raise LoadFailed(f"{name}:{life.version} was unloaded before it was ready.", param="model")
            if self._draining:
                raise Overloaded("The server is shutting down.", code="shutting_down")
            await changed.wait()
            changed = self._changed

    def unload(self, name: str, version: int | None = None) -> ModelStatus:
        model = self._model(name)
        if version is not None:
            self._declared_version(model, version)
        for life in list(model.all()):
            if version in (None, life.version):
                model.extra.discard(life.version)
                life.wanted = False
                if life.state in ("loading", "ready"):
                    self._let_go(life, "was asked to go")
        self._stirred = True
        self._settle()
        return status(model, self._now, time.time())

    def roll_back(self, name: str) -> ModelStatus:
        model = self._model(name)
        with _as_the_askers_mistake():
            model.roll_back(self._now)
        return self._redirected(model)

    def redirect(
        self, name: str, *, traffic: Mapping[int, int] | None = None, labels: Mapping[str, int] | None = None
    ) -> ModelStatus:
        model = self._model(name)
        with _as_the_askers_mistake():
            model.redirect(self._now, traffic=traffic, labels=labels)
        return self._redirected(model)

    def _redirected(self, model: Model) -> ModelStatus:
        shares = ", ".join(f"{version}: {weight}" for version, weight in model.route.shares)
        logger.info("requests of %s go to versions by weight {%s}, labels %s", model.name, shares, model.route.labels)
        self._stirred = True
        self._settle()
        return status(model, self._now, time.time())

    def _model(self, name: str) -> Model:
        if name not in self._names:
            raise self._unknown(name)
        return self._models[self._names[name]]

    def _declared_version(self, model: Model, version: int) -> None:
        if version not in model.lives:
            declared = ", ".join(map(str, model.lives))
            raise ModelNotFound(f"{model.name} has no version {version}; declared are {declared}.", param="version")

    # ------------------------------------------------------------------ engines

    def _measure(self, life: Life) -> None:
        if life not in self._measuring:
            self._measuring[life] = asyncio.create_task(self._measured(life))

    async def _measured(self, life: Life) -> None:
        try:
            life.needs = await self._loader.measure(life.config)
        except (OctavoError, OSError) as error:
            if life.state == "declared":
                self._fail(life, error if isinstance(error, OctavoError) else OctavoError(str(error)))
        except Exception:  # one model's fault ends here
            logger.exception("the size of %s could not be told", life)
            if life.state == "declared":
                self._fail(life, OctavoError("its size could not be told; see the log"))
        finally:
            del self._measuring[life]
        self._settle()

    def _load(self, life: Life) -> None:
        if not self.declared.only:
            logger.info("%s is being loaded", life)
        self._enter(life, "loading")
        task = self._tasks[life] = asyncio.create_task(self._live(life))
        task.add_done_callback(lambda task: self._ended(life, None if task.cancelled() else task.result()))

    async def _live(self, life: Life) -> OctavoError:
        """From the start of an engine to its end; why it ended, if nobody has asked it to."""
        try:
            engine = await self._loader.start(life.config, life.version)
            life.engine = engine
            try:
                await engine.wait_ready()
                self._became_ready(life)
                return await engine.wait_dead()
            finally:
                self._begins_to_end(life)
                await engine.shutdown()
        except OctavoError as error:
            return error
        except Exception:  # one model's fault ends here
            logger.exception("the engine of %s failed", life)
            return OctavoError("its engine failed; see the log")

    def _became_ready(self, life: Life) -> None:
        if life.state != "loading":
            return  # it is let go already
        assert life.engine is not None
        life.max_model_len = life.engine.max_model_len
        if life.needs is None:
            self._measure(life)  # for who asks, and for a budget that may yet be declared
        self._enter(life, "ready")
        logger.info("%s is ready", life.model if self.declared.only else life)
        self._settle()

    def _begins_to_end(self, life: Life) -> None:
        """Whatever the reason: nobody gets it any more, and it holds memory until it is gone."""
        life.ending = True
        if life.state != "draining":
            self._enter(life, "draining")
            self._settle()

    def _ended(self, life: Life, reason: OctavoError | None) -> None:
        del self._tasks[life]
        if reason is None:
            if life.state != "draining":  # it had not come so far
                self._enter(life, "draining")
            self._enter(life, "declared")
            if not self._draining:
                logger.info("%s is unloaded", life)
        else:
            self._fail(life, reason)
        for model in [*self._models.values(), *self._leaving]:
            if life in model.retired:
                model.retired.remove(life)
        self._leaving = [model for model in self._leaving if model.retired]
        if not self._draining:
            self._settle()

    def _fail(self, life: Life, reason: OctavoError) -> None:
        self._enter(life, "failed", reason.message)
        if self.declared.only:
            if not self.fate.done():
                self.fate.set_result(reason)
            return
        model = self._models.get(life.model)
        serving = [str(each.version) for each in model.all() if each.state == "ready"] if model is not None else []
        still = f"; version {', '.join(serving)} still serves" if serving else ""
        logger.error("%s has failed%s: %s", life, still, reason.message)

    @property
    def _now(self) -> float:
        return self._loop.time()

    def _all(self) -> list[Life]:
        return [life for model in (*self._models.values(), *self._leaving) for life in model.all()]


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.declared.aliases)


def _bound(config: EngineConfig) -> int:
    """Most requests that a model may have in flight."""
    queued = config.scheduler.max_num_queued_reqs
    return config.scheduler.max_num_seqs + (QUEUED_REQUESTS if queued is None else queued)


def _is_late(life: Life) -> bool:
    return life.state == "ready" and life.engine is not None and not life.engine.moving


@contextmanager
def _as_the_askers_mistake() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise InvalidRequest(error.message[0].upper() + error.message[1:] + ".") from None
