"""Sleep as an engine's callers see it: who runs is finished, who comes is told, and a crash wakes nobody."""

from __future__ import annotations

import asyncio

import pytest
from test_async_engine import READY, Stage, collect, run

from octavo.engine.channel import Abort, Add, Rested, Sleep, Wake
from octavo.errors import Asleep, ConfigError, EngineDead, InvalidRequest
from octavo.processes import Failed
from octavo.request import Output


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def sleeping(stage: Stage) -> None:
    task = asyncio.create_task(stage.engine.sleep())
    await heard(stage, Sleep)
    stage.line.says.put_nowait(Rested())
    await task


async def heard(stage: Stage, kind: type) -> None:
    while not any(isinstance(each, kind) for each in stage.line.sent):
        await asyncio.sleep(0)


@pytest.mark.parametrize("level", [1, 2])
def test_what_runs_is_finished_before_it_sleeps_and_who_comes_is_told(level):
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        asleep = asyncio.create_task(stage.engine.sleep(level))
        await settle()
        assert not stage.engine.moving
        with pytest.raises(Asleep, match="wake_up"):
            await collect(stage, name="late")
        assert len(stage.line.sent) == 1, "nothing but the request"
        stage.say(Output("r", token_ids=[67], finish_reason="length"))
        assert await answer == ["C"]
        await heard(stage, Sleep)
        assert stage.line.sent[1:] == [Sleep(level)]
        await settle()
        assert not asleep.done()
        assert not stage.engine.is_sleeping
        stage.line.says.put_nowait(Rested())
        await asleep
        assert stage.engine.is_sleeping
        assert (await stage.engine.look()).state == "asleep"
        await stage.engine.sleep(level)  # it does already
        awake = asyncio.create_task(stage.engine.wake_up())
        await heard(stage, Wake)
        with pytest.raises(Asleep):
            await collect(stage, name="early")
        stage.line.says.put_nowait(Rested())
        await awake
        assert not stage.engine.is_sleeping
        assert stage.engine.moving
        count = len(stage.line.sent)
        answer = asyncio.create_task(collect(stage))
        assert isinstance((await stage.line.received(count + 1))[-1], Add)
        stage.say(Output("r", token_ids=[68], finish_reason="length"))
        assert await answer == ["D"]

    run(play)


def test_an_aborted_request_leaves_the_core_before_it_sleeps():
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        answer.cancel()
        asleep = asyncio.create_task(stage.engine.sleep())
        await settle()
        assert [type(each) for each in stage.line.sent] == [Add, Abort]
        stage.line.say(released=["r"])
        await heard(stage, Sleep)
        stage.line.says.put_nowait(Rested())
        await asleep

    run(play)


def test_who_gives_up_waiting_has_asked_for_nothing():
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        asleep = asyncio.create_task(stage.engine.sleep())
        await settle()
        asleep.cancel()
        await asyncio.wait([asleep])
        assert stage.engine.moving
        stage.say(Output("r", token_ids=[67], finish_reason="length"))
        assert await answer == ["C"]
        assert not any(isinstance(each, Sleep) for each in stage.line.sent)

    run(play)


def test_who_gives_up_when_the_core_was_told_leaves_things_in_order():
    async def play():
        stage = Stage()
        asleep = asyncio.create_task(stage.engine.sleep())
        await heard(stage, Sleep)
        asleep.cancel()
        await asyncio.wait([asleep])
        awake = asyncio.create_task(stage.engine.wake_up())
        await settle()
        assert stage.line.sent == [Sleep(1)], "it has not fallen asleep yet"
        stage.line.says.put_nowait(Rested())
        await heard(stage, Wake)
        stage.line.says.put_nowait(Rested())
        await awake
        assert stage.engine.moving

    run(play)


def test_what_keeps_it_from_sleeping_or_waking_is_told_and_nothing_changes():
    async def play():
        stage = Stage()
        refusal = Rested(Failed.of(ConfigError("no room")))
        asleep = asyncio.create_task(stage.engine.sleep())
        await heard(stage, Sleep)
        stage.line.says.put_nowait(refusal)
        with pytest.raises(ConfigError, match="no room"):
            await asleep
        assert stage.engine.moving
        await sleeping(stage)
        for _ in range(2):
            count = len(stage.line.sent)
            awake = asyncio.create_task(stage.engine.wake_up())
            await stage.line.received(count + 1)
            stage.line.says.put_nowait(refusal)
            with pytest.raises(ConfigError, match="no room"):
                await awake
            assert stage.engine.is_sleeping
            with pytest.raises(Asleep):
                await collect(stage)

    run(play)


@pytest.mark.parametrize("when", ["asleep", "falling"])
def test_a_core_that_dies_asleep_is_not_replaced_before_it_is_woken(when):
    async def play():
        stage = Stage()
        if when == "asleep":
            await sleeping(stage)
            stage.line.die(-11)
        else:
            asleep = asyncio.create_task(stage.engine.sleep())
            await heard(stage, Sleep)
            stage.line.die(-11)
            await asleep
        await settle()
        assert len(stage.cores) == 1
        assert stage.engine.is_sleeping
        assert not stage.engine.dead
        await stage.engine.wake_up()
        assert len(stage.cores) == 2
        assert stage.line.sent == []
        assert stage.engine.moving

    run(play)


def test_a_core_that_dies_while_it_wakes_is_replaced():
    async def play():
        stage = Stage()
        await sleeping(stage)
        awake = asyncio.create_task(stage.engine.wake_up())
        await heard(stage, Wake)
        await stage.crash()
        await awake
        assert stage.engine.moving
        assert stage.line.config.model.max_model_len == READY.capacity.max_model_len

    run(play)


def test_an_engine_can_be_shut_down_asleep_and_without_a_core():
    async def play():
        stage = Stage()
        await sleeping(stage)
        stage.line.die(-11)
        await settle()
        await stage.engine.shutdown()
        with pytest.raises(EngineDead):
            await stage.engine.wake_up()

    run(play)


def test_a_core_that_hangs_while_it_wakes_is_replaced():
    async def play():
        stage = Stage(hang_timeout=0.04)
        await sleeping(stage)
        stage.engine._supervisor._load_patience = 0.05
        await stage.engine.wake_up()
        assert len(stage.cores) == 2
        assert stage.cores[0].wrote_stack

    run(play)


def test_there_are_two_levels():
    async def play():
        with pytest.raises(InvalidRequest, match="level"):
            await Stage().engine.sleep(3)

    run(play)
