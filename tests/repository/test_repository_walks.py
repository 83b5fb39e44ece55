"""Random walks: requests, declarations, loads that succeed and fail, deaths and operators, in any order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fake_loader import FakeEngine, FakeLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.clock import Loop
from test_repository_life import declared, model, settled

from octavo.errors import CheckpointError, OctavoError
from octavo.repository.declared import Declared
from octavo.repository.lifecycle import PATIENCE
from octavo.repository.repository import Repository

BUDGET = 10
SIZES = {"small": 2, "other": 3, "large": 6, "huge": 11}
NAMES = ("a", "a:best", "a:2", "b", "c", "nobody")


def declarations() -> list[Declared]:
    b, c = model("b", "other", keep_alive=30.0), model("c", "large", preload=False, keep_alive=0.0)
    variants = [
        model("a", "small"),
        model("a", "small", "other"),
        model("a", "small", "other", "large"),
        model("a", "other"),
        model("a", "small", "huge"),
        model("a", "small", "other", policy=2, labels={"best": 1}),
        model("a", "small", "other", traffic={1: 90, 2: 10}, labels={"best": 2}),
        model("a", "small", "other", policy=(1,), preload=False, keep_alive=5.0),
    ]
    found = [declared(a, b, c, memory_budget=BUDGET) for a in variants]
    return [*found, declared(b, c, memory_budget=BUDGET), declared(variants[0], c, memory_budget=BUDGET)]


DECLARATIONS = declarations()
NUMBERS = st.integers(0, 50)
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(NAMES), st.integers(0, 40)),
    st.tuples(st.just("leave"), NUMBERS),
    st.tuples(st.just("loaded"), NUMBERS),
    st.tuples(st.just("loaded"), NUMBERS),
    st.tuples(st.just("broken"), NUMBERS),
    st.tuples(st.just("die"), NUMBERS),
    st.tuples(st.just("sleep"), st.sampled_from([1, 7, 40, 1000])),
    st.tuples(st.just("declare"), st.integers(0, len(DECLARATIONS) - 1)),
    st.tuples(st.just("operator"), st.sampled_from(["load", "unload", "roll_back", "traffic", "labels"])),
)


@dataclass
class World:
    loader: FakeLoader
    repository: Repository
    requests: list[asyncio.Task[None]] = field(default_factory=list)
    operators: list[asyncio.Task[Any]] = field(default_factory=list)
    used: list[FakeEngine] = field(default_factory=list)

    async def request(self, name: str, seconds: float) -> None:
        async with self.repository.lease(name, str(len(self.requests))) as served:
            engine: Any = served.engine
            assert engine.ready
            self.used.append(engine)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.used.remove(engine)

    async def take(self, step: tuple[Any, ...]) -> None:
        loading = [engine for engine in self.loader.present if not engine.loaded.done()]
        ready = [engine for engine in self.loader.present if engine.ready]
        match step:
            case ("ask", name, seconds):
                self.requests.append(asyncio.create_task(self.request(name, seconds)))
            case ("leave", which) if self.requests:
                self.requests[which % len(self.requests)].cancel()
            case ("loaded", which) if loading:
                loading[which % len(loading)].finish_loading()
            case ("broken", which) if loading:
                loading[which % len(loading)].finish_loading(CheckpointError("broken"))
            case ("die", which) if ready:
                ready[which % len(ready)].die()
            case ("sleep", seconds):
                await asyncio.sleep(seconds)
            case ("declare", which):
                before = await self.answers()
                self.repository.declare(DECLARATIONS[which])
                await self.still_answers(before)
            case ("operator", "load"):
                self.operators.append(asyncio.create_task(self.repository.load("a")))
            case ("operator", wish):
                before = wish != "unload" and await self.answers()
                self.operators.append(asyncio.create_task(self.ask_operator(wish)))
                await self.still_answers(before)
        await settled()

    async def ask_operator(self, wish: str) -> None:
        match wish:
            case "unload":
                self.repository.unload("a")
            case "roll_back":
                self.repository.roll_back("a")
            case "traffic":
                self.repository.redirect("a", traffic={1: 1, 2: 3})
            case "labels":
                self.repository.redirect("a", labels={"best": 2})

    async def answers(self) -> bool:
        """Whether a request of the model that changes need not wait."""
        if "a" not in self.repository.declared.models or self.repository.find("a").state != "ready":
            return False
        probe = asyncio.create_task(self.request("a", 0))
        await settled()
        done = probe.done() and probe.exception() is None
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        return done

    async def still_answers(self, before: bool) -> None:
        """No change of what is declared makes requests wait that did not before."""
        if before and "a" in self.repository.declared.models:
            assert await self.answers(), "it was served before it changed"

    def check(self) -> None:
        assert self.loader.held <= BUDGET
        for engine in self.used:
            assert not engine.gone or engine.death.done(), "a request uses an engine that is gone"

    async def end(self) -> None:
        """Whoever waits is answered: with what was asked for, or with an error."""
        self.loader.by_itself = True
        for _ in range(20):
            for engine in self.loader.present:
                engine.finish_loading()
            await asyncio.sleep(PATIENCE * 3)
            self.check()
        for task in self.requests + self.operators:
            assert task.done(), "somebody waits for ever"
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, OctavoError), error
        assert not self.used
        await self.repository.close()
        assert not self.loader.present


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40), st.integers(0, len(DECLARATIONS) - 1))
def test_whatever_happens_the_promises_hold(steps: list[tuple[Any, ...]], first: int) -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes=SIZES, by_itself=False, ending_seconds=0.5, budget=BUDGET)
        world = World(loader, Repository(DECLARATIONS[first], loader))
        world.repository.open()
        for step in steps:
            await world.take(step)
            world.check()
        await world.end()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scenario())
