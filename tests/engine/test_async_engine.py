"""The asynchronous face with a core that says what the test wants: nobody waits for ever, whoever fails."""

from __future__ import annotations

import asyncio

import pytest
from letters import CHECKPOINT, Letters
from msgspec import structs

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.engine.channel import Abort, Add, Began, Look, Seen, Stepped
from octavo.engine.core import StepOutputs
from octavo.errors import ConfigError, EngineDead, InvalidRequest, Overloaded, RequestFailed
from octavo.metrics import EngineStats
from octavo.plan import Capacity
from octavo.processes import Failed, Ready
from octavo.request import Continuation, Logprobs, Output, SamplingParams
from octavo.snapshot import Blocks

READY = Ready(Capacity(num_blocks=8, block_size=4, max_model_len=20_000, vocab_size=200))
GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


class FakeCore:
    """A core and both ends of its line: what was sent, and what the core says next."""

    def __init__(self) -> None:
        self.sent: list[Add | Abort] = []
        self.says: asyncio.Queue = asyncio.Queue()
        self.wrote_stack = False
        self.code = 0

    def send(self, message):
        self.sent.append(message)

    async def receive(self):
        await asyncio.sleep(0)  # callers read before the next message, if they wait for one
        message = await self.says.get()
        if isinstance(message, BaseException):
            raise message
        return message

    def close(self): ...

    async def open(self, config, checkpoint):
        self.config = config
        return self

    async def write_stack(self):
        self.wrote_stack = True

    def kill(self):
        self.die(-9)

    def die(self, code):
        self.code = code
        self.says.put_nowait(EOFError())

    async def end(self):
        return self.code

    def say(self, *outputs: Output, **facts) -> None:
        self.says.put_nowait(Stepped(StepOutputs(list(outputs), **facts)))

    async def received(self, count: int) -> list[Add | Abort]:
        while len(self.sent) < count:
            await asyncio.sleep(0)
        return self.sent


class Stage:
    """An engine whose cores are ready at once, and the present one."""

    def __init__(self, *, first=READY, later=READY, **config) -> None:
        self.later = later
        self.cores: list[FakeCore] = []
        self.engine = AsyncLLMEngine(EngineConfig.of(**config), CHECKPOINT, Letters(), lambda: self.start(self.later))
        self.engine.run(self.start(first))

    def start(self, says) -> FakeCore:
        core = FakeCore()
        core.says.put_nowait(says)
        self.cores.append(core)
        return core

    @property
    def line(self) -> FakeCore:
        return self.cores[-1]

    def say(self, *outputs: Output) -> None:
        self.line.say(*outputs)

    async def request(self) -> Add:
        return (await self.line.received(1))[0]

    async def crash(self, code=-11) -> FakeCore:
        """The present core dies; the next one."""
        count = len(self.cores)
        self.line.die(code)
        while len(self.cores) == count:
            await asyncio.sleep(0)
        return self.line

    def balance(self) -> int:
        """Accepted requests without an end."""
        total = self.engine.metrics.total
        return total("requests_accepted") - sum(
            total(f"requests_{end}") for end in ("completed", "errored", "cancelled")
        )


async def collect(stage: Stage, prompt="AB", name="r", params=GREEDY, **options) -> list[str]:
    return [output.outputs[0].text async for output in stage.engine.generate(prompt, params, name, **options)]


def run(play) -> None:
    asyncio.run(asyncio.wait_for(play(), 300))


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


def test_a_caller_who_pauses_finds_one_output_with_everything():
    async def play():
        stage = Stage()
        params = SamplingParams(temperature=0.0, max_tokens=20)
        outputs = stage.engine.generate("AB", params, "r", output_kind="delta")
        first = asyncio.create_task(anext(outputs))
        await stage.request()
        for token in range(67, 87):
            stage.say(Output("r", token_ids=[token], finish_reason="length" if token == 86 else None))
        texts = [(await first).outputs[0].text]
        while stage.balance():
            await asyncio.sleep(0)
        texts += [output.outputs[0].text async for output in outputs]
        assert texts == ["C", "DEFGHIJKLMNOPQRSTUV"]

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


@pytest.mark.parametrize("ending", ["the core lets go", "the core dies"])
def test_an_id_that_is_used_again_hears_nothing_of_its_predecessor(ending):
    async def play():
        stage = Stage()
        outputs = stage.engine.generate("AB", GREEDY, "r")
        task = asyncio.create_task(anext(outputs))
        await stage.request()
        stage.say(Output("r", token_ids=[67]))
        await task
        await outputs.aclose()
        again = asyncio.create_task(collect(stage))
        if ending == "the core dies":
            await stage.crash()
        else:
            stage.say(Output("r", token_ids=[68]))  # computed before the abort arrived
            stage.line.say(released=["r"])
        while not isinstance(stage.line.sent[-1:][0] if stage.line.sent else None, Add):
            await asyncio.sleep(0)
        stage.say(Output("r", token_ids=[69], finish_reason="stop"))
        assert await again == ["E"]
        assert stage.balance() == 0

    run(play)


def test_an_id_that_is_used_again_hears_nothing_of_one_that_a_stop_string_ended():
    async def play():
        stage = Stage()
        params = SamplingParams(temperature=0.0, max_tokens=3, stop=["C"])
        texts = asyncio.create_task(collect(stage, params=params))
        await stage.request()
        stage.say(Output("r", token_ids=[67]))
        assert await texts == [""]
        again = asyncio.create_task(collect(stage))
        stage.say(Output("r", token_ids=[68]))  # computed before the core heard of the end
        stage.line.say(released=["r"])
        while len([message for message in stage.line.sent if isinstance(message, Add)]) < 2:
            await asyncio.sleep(0)
        stage.say(Output("r", token_ids=[69], finish_reason="stop"))
        assert await again == ["E"]
        assert stage.balance() == 0

    run(play)


def test_an_aborted_request_keeps_nobody_waiting():
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        await stage.engine.abort("r")
        with pytest.raises(RequestFailed, match="aborted"):
            await answer
        assert stage.line.sent[1:] == [Abort("r")]
        assert stage.engine.metrics.total("requests_cancelled") == 1
        assert stage.balance() == 0

    run(play)


def test_a_shutdown_reaches_everyone_suspects_too():
    async def play():
        stage = Stage()
        answers = [asyncio.create_task(collect(stage, name=name)) for name in "abc"]
        await stage.line.received(3)
        await stage.crash()
        await stage.request()
        ending = asyncio.create_task(stage.engine.shutdown())
        assert [type(each) for each in await asyncio.gather(*answers, return_exceptions=True)] == [EngineDead] * 3
        await ending
        assert stage.balance() == 0

    run(play)


def test_a_request_that_is_refused_or_fails_ends_alone():
    async def play():
        stage = Stage()
        refused, good = (asyncio.create_task(collect(stage, name=name)) for name in ("x", "y"))
        while len(stage.line.sent) < 2:
            await asyncio.sleep(0)
        stage.say(
            Output("x", token_ids=[67]),  # one of its sequences, in the same step
            Output("x", finish_reason="error", error="full", fault="overloaded"),
        )
        stage.say(Output("y", token_ids=[67], finish_reason="stop"))
        with pytest.raises(Overloaded, match="full"):
            await refused
        assert await good == ["C"]

    run(play)


@pytest.mark.parametrize("prompt", ["AB", "A" * 10_000], ids=["waiting", "encoding"])
def test_everyone_hears_that_no_core_can_be_started(prompt, monkeypatch):
    monkeypatch.setattr("octavo.engine.supervisor._BACKOFF_SECONDS", 0.0)

    async def play():
        stage = Stage(later=EOFError())
        await stage.engine.wait_ready()
        answer = asyncio.create_task(collect(stage, prompt))
        await asyncio.sleep(0)
        await stage.crash()
        with pytest.raises(EngineDead, match="exit code 0"):
            await answer
        assert stage.engine.dead
        assert len(stage.cores) == 9
        with pytest.raises(EngineDead):
            await collect(stage, name="later")
        assert stage.balance() == 0

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


def test_a_fault_while_an_output_is_made_ends_that_request_alone(caplog):
    async def play():
        stage = Stage()
        bad, good = (asyncio.create_task(collect(stage, name=name)) for name in ("bad", "good"))
        await stage.line.received(2)
        outputs = [Output("bad", index=5, token_ids=[67]), Output("good", token_ids=[67], finish_reason="stop")]
        stage.say(*outputs)  # bad has one sequence
        with pytest.raises(RequestFailed):
            await bad
        assert await good == ["C"]
        assert stage.line.sent[2:] == [Abort("bad")]
        assert stage.balance() == 0

    run(play)
    assert "bad" in caplog.text


def test_a_fault_of_ours_while_reading_is_no_silence(caplog):
    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        stage.line.says.put_nowait(Stepped("no step"))
        with pytest.raises(EngineDead):
            await answer
        assert stage.engine.dead
        assert stage.balance() == 0

    run(play)
    assert "could not be handled" in caplog.text


@pytest.mark.parametrize("first", [EOFError(), Failed("ConfigError", "no room")])
def test_a_failed_start_is_told_with_the_cores_own_words(first):
    async def play():
        stage = Stage(first=first)
        with pytest.raises(EngineDead if isinstance(first, EOFError) else ConfigError, match=r"exit code|no room"):
            await stage.engine.wait_ready()
        assert await stage.engine.wait_dead()
        assert len(stage.cores) == 1

    run(play)


def test_a_stream_goes_on_in_the_next_core():
    """Each token is sent once, in order, with what belongs to it; finished sequences stay finished."""
    params = SamplingParams(n=3, max_tokens=5, logprobs=0, prompt_logprobs=0, stop=["X"])

    def said(index, letter, cached=1, **fields):
        logprobs = [Logprobs([ord(letter)], [-1.0], [1])]
        return Output("r", index, [ord(letter)], logprobs, cached_tokens=cached, **fields)

    async def play():
        stage = Stage()
        outputs = stage.engine.generate("AB", params, "r", output_kind="delta")
        first = asyncio.create_task(anext(outputs))
        request = (await stage.request()).request
        prompt = [Logprobs([66], [-2.0], [3])]
        facts = {"started": {"r": 1.0}, "stats": EngineStats(preemptions=5)}
        opening = said(0, "C", prompt_logprobs=prompt)
        stage.line.say(opening, said(1, "D", finish_reason="stop"), said(2, "X"), **facts)
        assert (await first).num_cached_tokens == 1
        assert (await stage.line.received(2))[1] == Abort("r", 2)
        again = (await (await stage.crash()).received(1))[0].request
        assert again == structs.replace(
            request, resumes=[Continuation(0, [67])], params=structs.replace(params, prompt_logprobs=None)
        )
        stage.line.say(said(0, "E", finish_reason="length", cached=7), started={"r": 9.0})
        last = await anext(outputs)
        assert [(part.index, part.text, part.cumulative_logprob) for part in last.outputs] == [(0, "E", -2.0)]
        assert (last.finished, last.num_cached_tokens, last.metrics.first_scheduled_time) == (True, 1, 1.0)
        with pytest.raises(StopAsyncIteration):
            await anext(outputs)
        counts = ("prompt_tokens", "generation_tokens", "requests_resumed", "core_restarts", "num_preemptions")
        assert [stage.engine.metrics.total(name) for name in counts] == [2, 4, 1, 1, 5]
        assert stage.balance() == 0

    run(play)


def test_suspects_board_one_at_a_time_and_the_killer_alone_is_refused(monkeypatch):
    monkeypatch.setattr("octavo.engine.supervisor._BACKOFF_SECONDS", 0.0)

    async def play():
        stage = Stage()
        names = ["a", "killer", "b"]
        answers = {}
        for name in names:
            answers[name] = asyncio.create_task(collect(stage, name=name, output_kind="delta"))
            await stage.line.received(len(answers))
        stage.say(*(Output(name, token_ids=[67]) for name in names))
        await stage.crash()  # anyone's fault
        for again in range(2):
            assert [add.request.request_id for add in await stage.line.received(1)] == ["killer" if again else "a"]
            if not again:
                answers["late"] = asyncio.create_task(collect(stage, name="late", output_kind="delta"))
                stage.say(Output("a", token_ids=[68]))
                await stage.line.received(2)
                assert len(stage.line.sent) == 2, "who comes later waits for the suspects"
            await stage.crash()
        with pytest.raises(RequestFailed, match="crashed each time"):
            await answers["killer"]
        for place, name in enumerate(["a", "b", "late"], start=1):
            assert (await stage.line.received(place))[-1].request.request_id == name
            stage.say(Output(name, token_ids=[69], finish_reason="stop"))
        assert [await answers[name] for name in ("a", "b", "late")] == [["C", "D", "E"], ["C", "E"], ["E"]]
        assert stage.balance() == 0

    run(play)


def test_a_silent_core_is_killed_and_replaced_but_only_when_it_owes_something():
    async def play():
        stage = Stage(hang_timeout=0.05)
        answer = asyncio.create_task(collect(stage, output_kind="delta"))
        await stage.request()
        stage.line.say(Output("r", token_ids=[67]), work=1.0, seconds=0.001)
        while len(stage.cores) == 1:
            await asyncio.sleep(0)
        assert stage.cores[0].wrote_stack
        await stage.request()
        assert stage.engine.moving
        stage.say(Output("r", token_ids=[68], finish_reason="length"))
        assert await answer == ["C", "D"]
        await asyncio.sleep(0.2)
        assert len(stage.cores) == 2

    run(play)


def test_a_core_that_hangs_is_replaced_though_its_callers_have_lost_patience():
    async def play():
        stage = Stage(hang_timeout=0.05)
        outputs = stage.engine.generate("AB", GREEDY, "r")
        task = asyncio.create_task(anext(outputs))
        await stage.request()
        stage.line.say(Output("r", token_ids=[67]), work=1.0, seconds=0.001)
        await task
        await outputs.aclose()
        while len(stage.cores) == 1:
            await asyncio.sleep(0)
        assert stage.cores[0].wrote_stack

    run(play)


def test_a_request_made_while_no_core_is_up_waits_for_one():
    async def play():
        stage = Stage()
        await stage.engine.wait_ready()
        stage.later = Began(1.0)  # that is, it still loads
        await stage.crash()
        assert stage.engine.ready
        assert not stage.engine.moving
        answer, left = (asyncio.create_task(collect(stage, name=name)) for name in ("waits", "leaves"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        stage.line.says.put_nowait(READY)
        assert (await stage.request()).request.resumes == [], "accepted already: no queue may refuse it"
        stage.say(Output("waits", token_ids=[67], finish_reason="stop"))
        assert await answer == ["C"]
        assert len(stage.line.sent) == 1
        assert stage.balance() == 0

    run(play)


def test_a_core_that_never_gets_loaded_is_replaced_too(monkeypatch):
    monkeypatch.setattr("octavo.engine.supervisor._LOAD_SECONDS", 0.05)

    async def play():
        stage = Stage(hang_timeout=0.1)
        await stage.engine.wait_ready()
        stage.later = Began(1.0)  # whatever it says, it is not ready
        stuck = await stage.crash()
        stage.later = READY
        while stage.line is stuck:
            await asyncio.sleep(0)
        assert stuck.wrote_stack
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        stage.say(Output("r", token_ids=[67], finish_reason="stop"))
        assert await answer == ["C"]

    run(play)


def test_later_cores_promise_the_same_context_and_chance_goes_on():
    """Two requests without a seed, one before and one after a crash, are not given the same one."""

    async def play():
        stage = Stage()
        seeds = []
        for name in "ab":
            answer = asyncio.create_task(collect(stage, name=name))
            seeds.append((await stage.request()).request.seed)
            stage.say(Output(name, token_ids=[67], finish_reason="stop"))
            await answer
            await stage.crash()
        await asyncio.sleep(0)
        assert {core.config.model.max_model_len for core in stage.cores[1:]} == {READY.capacity.max_model_len}
        assert len({*seeds}) == 2

    run(play)


def test_who_looks_costs_the_core_one_message_and_nobody_else_any():
    blocks = Blocks(block_size=4, total=8, used=1, shared=0, kept=0, stride=1, runs=[2, 1, 0, 7])

    async def play():
        stage = Stage()
        answer = asyncio.create_task(collect(stage))
        await stage.request()
        looks = [asyncio.create_task(stage.engine.look()) for _ in range(3)]
        assert await stage.line.received(2) == [stage.line.sent[0], Look()]
        stage.line.says.put_nowait(Seen(blocks))
        views = await asyncio.gather(*looks)
        assert [(view.state, view.blocks, view.hidden_requests) for view in views] == [("ready", blocks, 0)] * 3
        [request] = views[0].requests
        assert (request.id, request.state, request.prompt_tokens, request.output_tokens) == ("r", "waiting", 2, 0)
        stage.line.say(Output("r", 0, [67], cached_tokens=1), started={"r": 0.0})
        while not (request := (await stage.engine.look()).requests[0]).output_tokens:
            await asyncio.sleep(0)
        assert (request.state, request.output_tokens, request.cached_tokens) == ("running", 1, 1)
        assert request.first_token_seconds is not None
        stage.say(Output("r", 0, [67], finish_reason="stop"))
        await answer
        view = await stage.engine.look()
        assert (view.requests, view.totals["requests_completed"], view.totals["generation_tokens"]) == ([], 1, 2)
        assert sum(isinstance(message, Look) for message in stage.line.sent) == 1

    run(play)
