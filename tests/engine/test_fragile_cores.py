"""Real core processes that die and hang: what was said is not said again, and only the one that kills is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fragile_core import CRASH, HANG, RAISE
from letters import CHECKPOINT, Letters

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.engine.channel import Abort, FromCore, Stepped
from octavo.engine.supervisor import CoreProcess
from octavo.errors import EngineDead, RequestFailed
from octavo.frames import FrameSocket
from octavo.processes import Ready, end, setup, start
from octavo.request import SamplingParams

HERE = Path(__file__).parent
BOUND = 300  # seconds until a test that hangs fails: a bound, not an expectation
PARENT = """
import sys, threading
from fragile_core import BUSY
from letters import CHECKPOINT
from octavo.config import EngineConfig
from octavo.engine.channel import Add, FromCore
from octavo.frames import FrameSocket
from octavo.processes import setup, start
from octavo.request import Request, SamplingParams

def main():
    _, connection = start("fragile_core")
    link = FrameSocket(connection, FromCore)
    link.send(setup(EngineConfig(), CHECKPOINT))
    params = SamplingParams()
    link.send(Add(Request(request_id="r", prompt_token_ids=[BUSY], params=params, max_tokens=2, seed=0)))
    while True:
        link.receive()

if "thread" in sys.argv:
    threading.Thread(target=main).start()
else:
    main()
"""


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Where children find their modules."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, sys.path)]))


def play(scene, **config) -> None:
    """Run `scene(engine, cores)` with an engine whose cores are fragile."""
    cores: list[CoreProcess] = []

    def start() -> CoreProcess:
        cores.append(CoreProcess("fragile_core"))
        return cores[-1]

    async def main() -> None:
        engine = AsyncLLMEngine(EngineConfig.of(**config), CHECKPOINT, Letters(), start)
        engine.run(start())
        try:
            await scene(engine, cores)
            total = engine.metrics.total
            ends = ("completed", "errored", "cancelled")
            assert total("requests_accepted") == sum(total(f"requests_{end}") for end in ends)
        finally:
            await engine.shutdown()

    asyncio.run(asyncio.wait_for(main(), BOUND))


async def tokens_of(engine: AsyncLLMEngine, prompt: list[int], max_tokens: int, into: list[int]) -> None:
    params = SamplingParams(max_tokens=max_tokens, detokenize=False)
    async for output in engine.generate(prompt, params, f"{prompt}", output_kind="delta"):
        into += output.outputs[0].token_ids


@pytest.mark.parametrize("killer", [[1] * 85, [7, CRASH], [7, RAISE]], ids=["after some tokens", "at once", "raises"])
def test_a_request_that_kills_is_refused_and_the_others_are_complete(killer):
    async def scene(engine: AsyncLLMEngine, cores: list[CoreProcess]) -> None:
        said: dict[int, list[int]] = {place: [] for place in range(5)}
        good = [asyncio.create_task(tokens_of(engine, [5] * (2 + place), 60, said[place])) for place in range(4)]
        with pytest.raises(RequestFailed, match="crashed each time"):
            await tokens_of(engine, killer, 30, said[4])
        await asyncio.gather(*good)
        assert said == {
            **{place: list(range(2 + place, 62 + place)) for place in range(4)},
            4: list(range(85, CRASH + 1)) if len(killer) == 85 else [],
        }
        assert engine.metrics.total("core_restarts") == len(cores) - 1 >= 2

    play(scene)


def test_a_core_that_hangs_says_where_and_is_replaced(capfd):
    async def scene(engine: AsyncLLMEngine, cores: list[CoreProcess]) -> None:
        said: list[int] = []
        await tokens_of(engine, [1, 2, 3], 10, said)
        with pytest.raises(RequestFailed):
            await tokens_of(engine, [HANG], 10, said)
        await tokens_of(engine, [1, 2, 3, 4], 10, said)
        assert said == [*range(3, 13), *range(4, 14)]

    play(scene, hang_timeout=1.0)
    assert "fragile_core.py" in capfd.readouterr().err, "the stack of a core that hung"


def test_a_core_stopped_from_outside_is_replaced():
    async def scene(engine: AsyncLLMEngine, cores: list[CoreProcess]) -> None:
        said: list[int] = []
        await tokens_of(engine, [1, 2, 3], 10, said)
        cores[-1]._process.send_signal(signal.SIGSTOP)
        assert engine.moving, "nobody asks anything of it"
        await tokens_of(engine, [1, 2, 3, 4], 10, said)
        assert said == [*range(3, 13), *range(4, 14)]
        assert len(cores) == 2

    play(scene, hang_timeout=1.0)


def test_a_core_is_replaced_though_all_threads_are_busy_with_callers_texts():
    async def scene(engine: AsyncLLMEngine, cores: list[CoreProcess]) -> None:
        await engine.wait_ready()
        busy = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        texts = asyncio.create_task(asyncio.to_thread(busy.wait, BOUND))
        try:
            await asyncio.sleep(0)
            cores[0]._process.kill()
            said: list[int] = []
            await tokens_of(engine, [1, 2, 3], 10, said)
            assert said == [*range(3, 13)]
            assert len(cores) == 2
            assert not texts.done()
        finally:
            busy.set()
            await texts

    play(scene)


def test_signals_that_ask_to_end_are_the_parents_business():
    """A service manager sends them to every process of a server that is to drain."""

    async def scene(engine: AsyncLLMEngine, cores: list[CoreProcess]) -> None:
        said: list[int] = []
        await engine.wait_ready()
        for ending in (signal.SIGTERM, signal.SIGINT):
            cores[0]._process.send_signal(ending)
        await tokens_of(engine, [1, 2, 3], 10, said)
        assert said == [*range(3, 13)]
        assert len(cores) == 1

    play(scene)


def test_a_module_that_cannot_run_is_told_at_once():
    async def main() -> None:
        engine = AsyncLLMEngine(EngineConfig(), CHECKPOINT, Letters(), pytest.fail)
        engine.run(CoreProcess("no_such_module"))
        with pytest.raises(EngineDead, match="exit code 1"):
            await engine.wait_ready()
        await engine.shutdown()

    asyncio.run(asyncio.wait_for(main(), BOUND))


@pytest.mark.parametrize("place", ["main", "thread"])
def test_a_child_leaves_in_the_middle_of_a_step_when_its_parent_is_killed(place):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, place], stdout=subprocess.PIPE, text=True)
    with parent, parent.stdout as said:
        assert said.readline() == "busy\n"
        parent.kill()
        assert said.read() == ""  # ends when the child, who has it too, is gone


def test_a_child_outlives_a_thread_that_started_it():
    links: list[FrameSocket[FromCore]] = []

    def begin() -> None:
        process, connection = start("fragile_core")
        processes.append(process)
        links.append(FrameSocket(connection, FromCore))
        links[0].send(setup(EngineConfig(), CHECKPOINT))
        assert isinstance(links[0].receive(), Ready)

    processes: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    links[0].send(Abort("never there"))
    assert isinstance(links[0].receive(), Stepped)
    links[0].close()
    assert end(processes[0]) == 0
