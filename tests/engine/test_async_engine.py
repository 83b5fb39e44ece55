"""The asynchronous face with a core that says what the test wants: nobody waits for ever, whoever fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.engine.channel import Abort, Add, Stepped
from octavo.engine.core import StepOutputs
from octavo.errors import EngineDead, InvalidRequest, Overloaded
from octavo.plan import Capacity
from octavo.processes import Ready
from octavo.request import Output, SamplingParams

READY = Ready(Capacity(num_blocks=8, block_size=4, max_model_len=20_000, vocab_size=200))
GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


class Letters:
    eos_token_ids = (0,)
    special_ids = frozenset({0})
    chat_template = None
    bos_token = eos_token = None

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) for letter in text]

    def token(self, token_id):
        return chr(token_id)

    def token_bytes(self, token_id):
        return chr(token_id).encode()


class Line:
    """Both ends of the channel: what was sent, and what the core says next."""

    def __init__(self) -> None:
        self.sent: list[Add | Abort] = []
        self.says: asyncio.Queue = asyncio.Queue()

    def send(self, message):
        self.sent.append(message)

    async def receive(self):
        message = await self.says.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def close(self):
        self.says.put_nowait(EOFError())


class Core:
    async def end(self):
        return -9


class Stage:
    """An engine that is ready, and its line."""

    def __init__(self) -> None:
        checkpoint = Checkpoint(name="letters", path=Path("x"), format="dummy", config={"model_type": "x"})
        self.line = Line()
        self.engine = AsyncLLMEngine(EngineConfig(), checkpoint, Letters(), Core())
        self.engine._channel = self.line
        self.engine._reader = asyncio.create_task(self.engine._read(self.line))
        self.line.says.put_nowait(READY)

    def say(self, *outputs: Output) -> None:
        self.line.says.put_nowait(Stepped(StepOutputs(list(outputs))))

    async def request(self) -> Add:
        while not self.line.sent:
            await asyncio.sleep(0)
        return self.line.sent[0]


async def collect(stage: Stage, prompt="AB", name="r", **options) -> list[str]:
    return [output.outputs[0].text async for output in stage.engine.generate(prompt, GREEDY, name, **options)]


def run(play) -> None:
    asyncio.run(asyncio.wait_for(play(), 20))


@pytest.mark.parametrize(("kind", "texts"), [("delta", ["C", "D"]), ("cumulative", ["C", "CD"]), ("final", ["CD"])])
def test_outputs_carry_what_was_asked_for(kind, texts):
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage, output_kind=kind))
        await stage.request()
        stage.say(Output("r", token_ids=[67]))
        stage.say(Output("r", token_ids=[68], finish_reason="length"))
        assert await answer == texts
        assert len(stage.line.sent) == 1  # nothing to abort

    run(play)


def test_closing_the_generator_aborts():
    async def play():
        stage = Stage()
        outputs = stage.engine.generate("AB", GREEDY, "r")
        task = asyncio.create_task(anext(outputs))
        await stage.request()
        stage.say(Output("r", token_ids=[67]))
        await task
        await outputs.aclose()
        assert stage.line.sent[1:] == [Abort("r")]

    run(play)


def test_a_request_that_is_refused_or_fails_ends_alone():
    async def play():
        stage = Stage()
        refused, good = (asyncio.create_task(collect(stage, name=name)) for name in ("x", "y"))
        while len(stage.line.sent) < 2:
            await asyncio.sleep(0)
        stage.say(Output("x", finish_reason="error", error="full", fault="overloaded"))
        stage.say(Output("y", token_ids=[67], finish_reason="stop"))
        with pytest.raises(Overloaded):
            await refused
        assert await good == ["C"]

    run(play)


@pytest.mark.parametrize("prompt", ["AB", "A" * 10_000], ids=["waiting", "encoding"])
def test_everyone_hears_that_the_core_died(prompt):
    async def play():
        stage = Stage()
        await stage.engine.wait_ready()
        answer = asyncio.create_task(collect(stage, prompt))
        await asyncio.sleep(0)
        stage.line.close()
        with pytest.raises(EngineDead, match="-9"):
            await answer
        assert stage.engine.dead
        with pytest.raises(EngineDead):
            await collect(stage, name="later")

    run(play)


def test_an_id_in_use_is_refused_even_while_its_prompt_is_encoded():
    async def play():
        stage = Stage()
        await stage.engine.wait_ready()
        first = asyncio.create_task(collect(stage, "A" * 10_000))
        await asyncio.sleep(0)
        with pytest.raises(InvalidRequest, match="in use"):
            await collect(stage)
        await stage.request()
        stage.say(Output("r", token_ids=[67], finish_reason="stop"))
        assert await first == ["C"]

    run(play)


def test_a_fault_of_ours_while_reading_outputs_is_no_silence(caplog):
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        stage.say(Output("r", index=5, token_ids=[67]))  # the request has one sequence
        with pytest.raises(EngineDead):
            await answer
        assert stage.engine.dead

    run(play)
    assert "could not be handled" in caplog.text


def test_a_failed_start_is_told_with_the_cores_own_words():
    async def play():
        stage = Stage()
        stage.line.says.get_nowait()
        stage.line.close()
        with pytest.raises(EngineDead):
            await stage.engine.wait_ready()

    run(play)
