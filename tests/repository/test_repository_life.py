"""Models that come, change and go while requests run: with engines that load when they are told to, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fake_loader import FakeLoader
from simulation.clock import Loop

from octavo.config import EngineConfig
from octavo.errors import EngineDead, InvalidRequest, LoadFailed, ModelNotFound, OctavoError, Overloaded
from octavo.repository.declared import Declared, DeclaredModel
from octavo.repository.lifecycle import PATIENCE
from octavo.repository.repository import Repository


def model(name: str, *sources: str, **fields: Any) -> DeclaredModel:
    """Version 1, 2, … of the given sources."""
    versions = {
        number: EngineConfig.of(model=source, served_model_name=(name,), max_num_seqs=4, max_num_queued_reqs=4)
        for number, source in enumerate(sources, 1)
    }
    return DeclaredModel(name=name, versions=versions, **fields)


def declared(*models: DeclaredModel, **limits: int) -> Declared:
    return Declared(models={each.name: each for each in models}, **limits)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scenario())  # type: ignore[arg-type]


async def settled() -> None:
    """Until nobody has anything to do at this moment."""
    for _ in range(50):
        await asyncio.sleep(0)


async def opened(declaration: Declared, loader: FakeLoader) -> Repository:
    loader.budget = declaration.memory_budget
    repository = Repository(declaration, loader)
    repository.open()
    await settled()
    return repository


async def asked(repository: Repository, name: str | None, key: str = "") -> str:
    """The source of the engine that a request of this name gets."""
    async with repository.lease(name, key) as served:
        assert served.engine.ready
        return str(served.engine.config.model.model)


def states(repository: Repository, name: str = "a") -> dict[int, str]:
    (status,) = (status for status in repository.status() if status.name == name)
    return {version.version: version.state for version in status.versions if not version.retired}


def test_a_new_version_takes_over_when_it_is_ready_and_the_old_one_ends_when_it_is_idle() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one")), loader)
        loader.by_itself = False
        async with repository.lease("a", "") as early:
            repository.declare(declared(model("a", "one", "two")))
            await settled()
            assert await asked(repository, "a") == "one"
            loader.latest("two").finish_loading()
            await settled()
            assert await asked(repository, "a") == "two"
            assert early.engine.ready, "a request in flight keeps its engine"
            assert states(repository) == {1: "draining", 2: "ready"}
        await settled()
        assert [engine.source for engine in loader.present] == ["two"]
        with pytest.raises(ModelNotFound):
            await asked(repository, "a:1")
        await repository.close()

    play(scenario)


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving() -> None:
    async def scenario() -> None:
        loader = FakeLoader(broken={"two"})
        repository = await opened(declared(model("a", "one")), loader)
        both = declared(model("a", "one", "two"))
        repository.declare(both)
        await settled()
        assert await asked(repository, "a") == "one"
        (status,) = repository.status()
        assert {version.version: version.reason for version in status.versions} == {1: None, 2: "two: no such file"}
        assert (status.changing, status.state, status.version) == (True, "ready", 1)
        assert repository.check_ready() == []
        await asyncio.sleep(3600)
        assert len(loader.engines) == 2, "it is tried again when somebody asks for it"
        assert await asked(repository, "a") == "one"
        loader.broken.clear()
        repository.declare(both)
        await settled()
        assert await asked(repository, "a") == "two"
        assert [engine.source for engine in loader.present] == ["two"]
        await repository.close()

    play(scenario)


@pytest.mark.parametrize("keep", [True, False])
def test_a_rollback_is_the_same_the_other_way_round(keep: bool) -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        policy = 2 if keep else 1
        repository = await opened(declared(model("a", "one", policy=policy)), loader)
        repository.declare(declared(model("a", "one", "two", policy=policy)))
        await settled()
        assert await asked(repository, "a") == "two"
        loader.by_itself = False
        started = len(loader.engines)
        repository.roll_back("a")
        await settled()
        if keep:
            assert len(loader.engines) == started, "it is loaded already"
        else:
            assert await asked(repository, "a") == "two"
            loader.latest("one").finish_loading()
            await settled()
        assert await asked(repository, "a") == "one"
        repository.roll_back("a")
        await settled()
        loader.latest("two").finish_loading()
        await settled()
        assert await asked(repository, "a") == "two", "twice is there and back"
        await repository.close()

    play(scenario)


def test_the_same_version_with_other_flags_is_loaded_anew() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one")), loader)
        loader.by_itself = False
        repository.declare(declared(model("a", "another")))
        await settled()
        assert await asked(repository, "a") == await asked(repository, "a:1") == "one"
        assert len(repository.engines()) == 1, "of one version there is one engine to look at"
        loader.latest("another").finish_loading()
        await settled()
        assert await asked(repository, "a:1") == "another"
        assert [engine.source for engine in loader.present] == ["another"]
        await repository.close()

    play(scenario)


def test_names_labels_versions_and_aliases() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        fields: dict[str, Any] = {"labels": {"stable": 1, "canary": 3}, "aliases": ("gpt-4o",), "traffic": {1: 1}}
        repository = await opened(declared(model("a", "one", "two", "three", **fields)), loader)
        expected = {
            "a": "one",
            "a:stable": "one",
            "a:canary": "three",
            "a:1": "one",
            "a@3": "three",
            "a:latest": "three",
            "gpt-4o": "one",
            "gpt-4o:canary": "three",
        }
        assert {name: await asked(repository, name) for name in expected} == expected
        assert await asked(repository, None) == "one"
        for name in ("a:2", "a:beta", "b", "a:", "a:0", "a:01", "", ":", "a:1:1"):
            with pytest.raises(ModelNotFound):
                await asked(repository, name)
        assert [known.name for known in repository.known()] == ["a", "gpt-4o"]
        await repository.close()

    play(scenario)


def test_a_label_moves_when_its_version_is_there() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one", "two", traffic={1: 1}, labels={"best": 1})), loader)
        loader.by_itself = False
        repository.redirect("a", labels={"best": 2})
        await settled()
        assert await asked(repository, "a:best") == "one"
        loader.latest("two").finish_loading()
        await settled()
        assert await asked(repository, "a:best") == "two"
        assert await asked(repository, "a") == "one"
        await repository.close()

    play(scenario)


def test_a_canary_takes_its_share_and_a_key_stays_where_it_is() -> None:
    async def scenario() -> None:
        repository = await opened(declared(model("a", "one", "two", traffic={1: 90, 2: 10})), FakeLoader())
        keys = [f"user {number}" for number in range(2000)]
        first = {key: await asked(repository, "a", key) for key in keys}
        assert first == {key: await asked(repository, "a", key) for key in keys}
        share = sum(source == "two" for source in first.values()) / len(keys)
        assert 0.07 < share < 0.13
        repository.redirect("a", traffic={1: 70, 2: 30})
        await settled()
        second = {key: await asked(repository, "a", key) for key in keys}
        assert all(second[key] == "two" for key in keys if first[key] == "two"), "whoever had it keeps it"
        await repository.close()

    play(scenario)


def test_a_stable_version_that_is_not_there_yet_is_not_replaced_by_its_canary() -> None:
    async def scenario() -> None:
        loader = FakeLoader(by_itself=False)
        repository = await opened(declared(model("a", "one", "two", traffic={1: 99, 2: 1})), loader)
        loader.latest("two").finish_loading()
        await settled()
        waiting = asyncio.create_task(asked(repository, "a", "somebody"))
        await settled()
        assert not waiting.done()
        loader.latest("one").finish_loading()
        assert await waiting == "one"
        await repository.close()

    play(scenario)


def test_many_who_wait_cause_one_load() -> None:
    async def scenario() -> None:
        loader = FakeLoader(by_itself=False)
        repository = await opened(declared(model("a", "one", preload=False)), loader)
        assert not loader.engines
        waiting = [asyncio.create_task(asked(repository, "a")) for _ in range(8)]
        await settled()
        assert len(loader.engines) == 1
        with pytest.raises(Overloaded):
            await asked(repository, "a")
        waiting.pop().cancel()
        await settled()
        waiting.append(asyncio.create_task(asked(repository, "a")))
        await settled()
        loader.latest("one").finish_loading()
        assert await asyncio.gather(*waiting) == ["one"] * 8
        assert len(loader.engines) == 1
        await repository.close()

    play(scenario)


def test_who_waits_for_a_load_that_fails_hears_of_it_and_the_next_try_is_not_at_once() -> None:
    async def scenario() -> None:
        loader = FakeLoader(broken={"one"})
        repository = await opened(declared(model("a", "one", preload=False), model("b", "two")), loader)
        answers = await asyncio.gather(*(asked(repository, "a") for _ in range(3)), return_exceptions=True)
        assert [type(answer).__mro__[1] for answer in answers] == [EngineDead] * 3
        assert "no such file" not in str(answers[0]), "what is on the server's disk is for its operator"
        with pytest.raises(EngineDead):
            await asked(repository, "a")
        assert sum(engine.source == "one" for engine in loader.engines) == 1
        await asyncio.sleep(3600)
        loader.broken.clear()
        assert await asked(repository, "a") == "one"
        await repository.close()

    play(scenario)


def test_unused_models_go_after_their_time_and_come_back_when_they_are_asked_for() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one", keep_alive=60.0)), loader)
        for _ in range(3):
            await asyncio.sleep(50)
            assert await asked(repository, "a") == "one"
        assert len(loader.engines) == 1
        async with repository.lease("a", ""):
            await asyncio.sleep(600)
            assert states(repository) == {1: "ready"}, "it is used"
        await asyncio.sleep(61)
        assert not loader.present
        assert states(repository) == {1: "declared"}
        assert await asked(repository, "a") == "one"
        await repository.close()

    play(scenario)


def test_who_sleeps_is_ready_and_told_apart_until_its_processes_begin_to_end() -> None:
    async def scenario() -> None:
        repository = await opened(declared(model("a", "one")), FakeLoader(ending_seconds=1.0))

        def asleep() -> list[bool]:
            return [version.asleep for each in repository.status() for version in each.versions]

        assert asleep() == [False]
        (engine,) = repository.engines()
        await engine.sleep()
        assert asleep() == [True]
        assert states(repository) == {1: "ready"}, "it is still loaded"
        repository.unload("a")
        await settled()
        assert states(repository) == {1: "draining"}
        assert not repository.engines("a"), "who ends can neither be woken nor sent to sleep"
        await repository.close()

    play(scenario)


def test_the_least_recently_used_makes_room() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 4, "two": 4, "three": 4}, ending_seconds=1.0)
        models = [
            model(name, source, preload=False) for name, source in zip("abc", ("one", "two", "three"), strict=True)
        ]
        repository = await opened(declared(*models, memory_budget=8), loader)
        for name in "abab":
            await asked(repository, name)
            await asyncio.sleep(1)
        assert await asked(repository, "c") == "three"
        assert sorted(engine.source for engine in loader.present) == ["three", "two"]
        async with repository.lease("b", ""), repository.lease("c", ""):
            waiting = asyncio.create_task(asked(repository, "a"))
            await asyncio.sleep(1)
            assert not waiting.done(), "who is used stays"
        assert await waiting == "one"
        await repository.close()

    play(scenario)


def test_who_waits_for_room_gets_it_in_the_end_though_all_others_are_busy() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 5, "two": 5})
        repository = await opened(
            declared(model("a", "one"), model("b", "two", preload=False), memory_budget=8), loader
        )
        stop = asyncio.Event()

        async def busy() -> None:
            while not stop.is_set():
                async with repository.lease("a", ""):
                    await asyncio.sleep(1.5)

        callers = []
        for _ in range(2):
            callers.append(asyncio.create_task(busy()))
            await asyncio.sleep(0.7)  # one is always there
        began = asyncio.get_running_loop().time()
        assert await asked(repository, "b") == "two"
        assert PATIENCE <= asyncio.get_running_loop().time() - began < PATIENCE + 3
        stop.set()
        await asyncio.gather(*callers)
        await repository.close()

    play(scenario)


def test_who_gives_up_waiting_for_a_model_that_makes_room_does_not_bring_it_back() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 5, "two": 5})
        models = model("a", "one", preload=False), model("b", "two", preload=False)
        repository = await opened(declared(*models, memory_budget=8), loader)
        async with repository.lease("a", ""):
            other = asyncio.create_task(asked(repository, "b"))
            await asyncio.sleep(PATIENCE + 1)
            assert states(repository, "a") == {1: "draining"}
            again = asyncio.create_task(asked(repository, "a"))
            await settled()
            again.cancel()
        assert await other == "two"
        await asyncio.sleep(PATIENCE * 3)
        assert [engine.source for engine in loader.engines] == ["one", "two"]
        await repository.close()

    play(scenario)


def test_who_gives_up_waiting_for_room_lets_those_behind_go_on() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 5, "two": 8, "three": 2})
        models = [
            model(name, source, preload=False) for name, source in zip("abc", ("one", "two", "three"), strict=True)
        ]
        repository = await opened(declared(*models, memory_budget=8), loader)
        async with repository.lease("a", ""):
            first = asyncio.create_task(asked(repository, "b"))
            await settled()
            behind = asyncio.create_task(asked(repository, "c"))
            await settled()
            assert not behind.done()
            first.cancel()
            await settled()
            assert behind.done()
        await repository.close()

    play(scenario)


def test_a_size_that_cannot_be_told_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        loader.measure = broken  # type: ignore[method-assign]
        repository = await opened(declared(model("a", "one", preload=False), memory_budget=8), loader)
        with pytest.raises(EngineDead):
            await asked(repository, "a")
        assert states(repository) == {1: "failed"}
        await repository.close()

    async def broken(_: EngineConfig) -> int:
        raise ZeroDivisionError

    play(scenario)


def test_what_can_never_fit_is_said_at_once() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 5 << 30, "two": 3 << 30})
        repository = await opened(declared(model("a", "one"), model("b", "two"), memory_budget=4 << 30), loader)
        assert states(repository, "a") == {1: "failed"}
        assert states(repository, "b") == {1: "ready"}
        (version,) = repository.status()[0].versions
        assert version.reason == "it needs about 5.00 GiB of memory and memory_budget is 4.00 GiB"
        assert repository.check_ready() == ["a"]
        both = declared(model("a", "one"), model("b", "two", "two"), memory_budget=4 << 30)
        repository.declare(both)
        await settled()
        assert states(repository, "b") == {1: "ready", 2: "failed"}
        reason = repository.status()[1].versions[1].reason
        assert reason is not None
        assert reason.endswith("there is no room for it beside b:1, which has to serve")
        assert await asked(repository, "b") == "two"
        await repository.close()

    play(scenario)


def test_preloading_takes_nobody_elses_room() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one"), model("b", "two"), max_loaded_models=1), loader)
        assert [engine.source for engine in loader.present] == ["one"]
        assert repository.check_ready() == []
        assert await asked(repository, "b") == "two"
        assert [engine.source for engine in loader.present] == ["two"]
        await repository.close()

    play(scenario)


def test_a_dead_engine_is_its_own_models_trouble_only() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one"), model("b", "two")), loader)
        loader.latest("one").die()
        await settled()
        assert states(repository, "a") == {1: "failed"}
        assert await asked(repository, "b") == "two"
        assert repository.check_ready() == ["a"]
        loader.latest("two").die()
        await settled()
        with pytest.raises(EngineDead):
            repository.check_ready()
        await asyncio.sleep(600)
        assert await asked(repository, "a") == "one", "asked again later, it is loaded again"
        assert not repository.fate.done()
        await repository.close()

    play(scenario)


def test_a_late_engine_among_others_is_named() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one"), model("b", "two")), loader)
        loader.latest("one").moving = False
        assert repository.check_ready() == ["a"]
        loader.latest("two").moving = False
        with pytest.raises(Overloaded) as caught:
            repository.check_ready()
        assert caught.value.code == "engine_recovering"
        await repository.close()

    play(scenario)


def test_until_the_first_model_is_ready_requests_are_refused_and_afterwards_wait() -> None:
    async def scenario() -> None:
        loader = FakeLoader(by_itself=False)
        repository = await opened(declared(model("a", "one"), model("b", "two")), loader)
        with pytest.raises(Overloaded) as caught:
            repository.check()
        assert caught.value.code == "model_loading"
        loader.latest("one").finish_loading()
        await settled()
        repository.check()
        with pytest.raises(Overloaded):
            repository.check_ready()
        waiting = asyncio.create_task(asked(repository, "b"))
        loader.latest("two").finish_loading()
        assert await waiting == "two"
        assert repository.check_ready() == []
        await repository.close()

    play(scenario)


def test_a_server_that_ends_lets_nobody_wait_for_a_load() -> None:
    async def scenario() -> None:
        loader = FakeLoader(by_itself=False)
        repository = await opened(declared(model("a", "one", preload=False)), loader)
        waiting = asyncio.create_task(asked(repository, "a"))
        await settled()
        repository.drain()
        with pytest.raises(Overloaded) as caught:
            await waiting
        assert caught.value.code == "shutting_down"
        await repository.close()
        assert not loader.present

    play(scenario)


def test_an_operator_loads_and_unloads() -> None:
    async def scenario() -> None:
        loader = FakeLoader(broken={"three"})
        repository = await opened(declared(model("a", "one", "two", "three", preload=False, traffic={2: 1})), loader)
        status = await repository.load("a")
        assert {version.version: version.state for version in status.versions} == {
            1: "declared",
            2: "ready",
            3: "declared",
        }
        await repository.load("a", 1)
        assert await asked(repository, "a:1") == "one", "loaded on demand, it may be asked for"
        with pytest.raises(LoadFailed, match="three: no such file"):
            await repository.load("a", 3)
        with pytest.raises(ModelNotFound):
            await repository.load("a", 4)
        with pytest.raises(ModelNotFound):
            repository.unload("b")
        repository.unload("a", 1)
        await settled()
        with pytest.raises(ModelNotFound):
            await asked(repository, "a:1")
        async with repository.lease("a", ""):
            repository.unload("a")
            await settled()
            assert states(repository)[2] == "draining"
            assert await asked(repository, "a") == "two", "what is still there is used"
        with pytest.raises(InvalidRequest, match="declared are 1, 2, 3"):
            repository.redirect("a", traffic={9: 1})
        await repository.close()

    play(scenario)


def test_versions_that_are_loaded_together_do_not_make_room_for_each_other() -> None:
    async def scenario() -> None:
        loader = FakeLoader(sizes={"one": 4, "two": 4, "three": 4})
        both = model("a", "one", "two", policy=2, preload=False)
        repository = await opened(declared(both, model("b", "three", preload=False), memory_budget=8), loader)
        await asked(repository, "a:1")
        await asyncio.sleep(1)
        await asked(repository, "b")
        await repository.load("a")
        assert states(repository, "a") == {1: "ready", 2: "ready"}
        assert states(repository, "b") == {1: "declared"}
        await repository.close()

    play(scenario)


def test_what_an_operator_loads_and_nobody_uses_goes_after_its_time() -> None:
    async def scenario() -> None:
        repository = await opened(
            declared(model("a", "one", preload=False, keep_alive=30.0), memory_budget=8), FakeLoader()
        )
        assert (await repository.load("a")).state == "ready"
        await asyncio.sleep(29)
        assert states(repository) == {1: "ready"}
        await asyncio.sleep(2)
        assert states(repository) == {1: "declared"}
        await repository.close()

    play(scenario)


def test_a_model_that_is_no_longer_declared_finishes_its_requests() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(declared(model("a", "one"), model("b", "two")), loader)
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(repository.lease("a", ""))
            repository.declare(declared(model("b", "two")))
            await settled()
            with pytest.raises(ModelNotFound):
                await asked(repository, "a")
            assert served.engine.ready
            repository.declare(declared(model("a", "one"), model("b", "two")))
            await settled()
            assert await asked(repository, "a") == "one"
        await settled()
        assert sorted(engine.source for engine in loader.present) == ["one", "two"]
        await repository.close()

    play(scenario)


def test_the_end_of_the_only_engine_is_the_servers() -> None:
    async def scenario() -> None:
        loader = FakeLoader()
        repository = await opened(Declared(models={"a": model("a", "one")}, only=True), loader)
        loader.latest("one").die()
        reason = await repository.fate
        assert isinstance(reason, OctavoError)
        with pytest.raises(EngineDead):
            repository.check()
        await repository.close()

    play(scenario)
