"""The core is asked only when somebody looks, and not too often; who looks never waits for long."""

from __future__ import annotations

import asyncio

from octavo.engine.lookout import Lookout
from octavo.snapshot import Blocks


def blocks(used: int) -> Blocks:
    return Blocks(block_size=16, total=8, used=used, shared=0, kept=0, stride=1, runs=[2, used, 0, 8 - used])


class Loop(asyncio.SelectorEventLoop):
    """Its time is what the test says, and jumps when nothing else happens."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def play(scene) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scene(runner.get_loop()))


def test_one_question_for_all_who_look_and_half_a_second_between_two():
    async def scene(loop):
        lookout = Lookout()
        assert await lookout.newest() is None
        assert lookout.due()
        assert not lookout.due()
        both = asyncio.gather(lookout.newest(), lookout.newest())
        await asyncio.sleep(0)
        lookout.see(blocks(3))
        assert await both == [blocks(3), blocks(3)]
        assert loop.now == 0.0
        assert not lookout.due()
        loop.now = 0.49
        assert not lookout.due()
        loop.now = 0.5
        assert lookout.due()

    play(scene)


def test_a_core_in_a_long_step_leaves_the_last_look():
    async def scene(loop):
        lookout = Lookout()
        assert lookout.due()
        lookout.see(blocks(1))
        loop.now = 10.0
        assert lookout.due()
        assert await lookout.newest() == blocks(1)
        assert 10.0 < loop.now < 11.0
        loop.now = 60.0
        assert not lookout.due()  # it still owes the answer
        lookout.see(blocks(2))
        assert await lookout.newest() == blocks(2)
        assert lookout.due()

    play(scene)


def test_nothing_is_known_of_a_core_that_is_gone():
    async def scene(loop):
        lookout = Lookout()
        assert lookout.due()
        lookout.see(blocks(1))
        loop.now = 1.0
        assert lookout.due()
        waiting = asyncio.ensure_future(lookout.newest())
        await asyncio.sleep(0)
        lookout.see(None)
        assert await waiting is None
        assert loop.now == 1.0

    play(scene)
