"""The core process's loop over a real socket, with an executor that only counts."""

from __future__ import annotations

import socket
import threading

import pytest
from letters import Letters
from msgspec import structs

from octavo.config import EngineConfig
from octavo.engine.channel import Abort, Add, Began, FromCore, Look, Rested, Seen, Sleep, Stepped, ToCore, Wake
from octavo.engine.core import EngineCore
from octavo.engine.core_process import run, turn
from octavo.engine.grammar import grammar_text
from octavo.engine.guidance import Grammars
from octavo.errors import ConfigError, OctavoError
from octavo.frames import FrameSocket
from octavo.plan import Capacity, Computed, RowResult, StepPlan, StepResult
from octavo.request import Request, SamplingParams, StructuredOutputs


class Counter:
    """Draws each row's next position as its token."""

    capacity = Capacity(num_blocks=8, block_size=4, max_model_len=32, vocab_size=100)

    def submit(self, plan: StepPlan) -> Computed:
        rows = [RowResult(row.sequence_id, [row.start + len(row.token_ids)] * row.draws) for row in plan.rows]
        return Computed(StepResult(plan.step, [row for row in rows if row.token_ids]))

    rested: tuple[object, ...] = ()
    refusal: OctavoError | None = None

    def sleep(self, level: int) -> None:
        self.obey(level)

    def wake(self) -> None:
        self.obey("wake")

    def obey(self, what: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.rested += (what,)

    def close(self) -> None: ...


class Large(Counter):
    capacity = Capacity(num_blocks=64, block_size=4, max_model_len=256, vocab_size=100)


class Ahead(Counter):
    capacity = structs.replace(Counter.capacity, steps_ahead=1)


class LargeAhead(Large):
    capacity = structs.replace(Large.capacity, steps_ahead=1)


@pytest.fixture(params=[Counter, Ahead])
def line(request):
    ours, theirs = socket.socketpair()
    core = EngineCore(EngineConfig.of(max_num_queued_reqs=2, max_num_seqs=1), request.param())
    inside: FrameSocket[ToCore] = FrameSocket(theirs, ToCore)
    thread = threading.Thread(target=run, args=(core, inside))
    thread.start()
    link: FrameSocket[FromCore] = FrameSocket(ours, FromCore)
    yield link, core
    link.close()
    thread.join(10)
    assert not thread.is_alive(), "the core outlived its API process"
    inside.close()


def request(name: str, length=3, max_tokens=4) -> Add:
    params = SamplingParams(max_tokens=max_tokens)
    return Add(Request(request_id=name, prompt_token_ids=[1] * length, params=params, max_tokens=max_tokens, seed=0))


def collect(link, *names):
    """Tokens, errors and start times until every named request has ended."""
    tokens, errors, started, open_ = {}, {}, {}, set(names)
    while open_:
        message = link.receive()
        assert isinstance(message, Stepped)
        started |= message.step.started
        for output in message.step.outputs:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.error is not None:
                errors[output.request_id] = output
            if output.finish_reason:
                open_.discard(output.request_id)
    return tokens, errors, started


def test_requests_are_served_and_their_start_is_known(line):
    link, _ = line
    link.send(request("a"))
    link.send(request("b", max_tokens=2))
    tokens, errors, started = collect(link, "a", "b")
    assert tokens == {"a": [3, 4, 5, 6], "b": [3, 4]}
    assert not errors
    assert set(started) == {"a", "b"}


def test_what_cannot_run_is_answered_and_the_rest_goes_on(line):
    link, _ = line
    link.send(request("long", length=32))
    link.send(request("fine"))
    tokens, errors, _ = collect(link, "long", "fine")
    assert "32 tokens" in errors["long"].error
    assert errors["long"].fault == "invalid"
    assert tokens["fine"] == [3, 4, 5, 6]


def test_it_ends_when_nobody_listens_any_more(line):
    """Also with steps under way; the fixture sees to it."""
    link, core = line
    link.send(request("endless", max_tokens=20))
    link.receive()
    assert len(core.scheduler.under_way) <= core.executor.capacity.steps_ahead + 1


def test_a_full_queue_refuses_with_a_hint_to_retry(line):
    link, core = line
    core.scheduler.config = EngineConfig.of(max_num_queued_reqs=1, max_num_seqs=1).scheduler
    names = [str(number) for number in range(30)]
    for name in names:
        link.send(request(name, max_tokens=20))
    tokens, errors, _ = collect(link, *names)
    assert errors
    assert all(output.fault == "overloaded" for output in errors.values())
    assert all(len(tokens[name]) == 20 for name in names if name not in errors)


def test_a_fault_while_a_request_is_admitted_ends_it_alone(line, monkeypatch, caplog):
    link, core = line
    whole = core.scheduler.prefix_cache.root

    def root(adapter, salt):
        if salt == "bad":
            raise RuntimeError("a fault of ours")
        return whole(adapter, salt)

    monkeypatch.setattr(core.scheduler.prefix_cache, "root", root)
    bad = request("bad").request
    link.send(Add(structs.replace(bad, cache_salt="bad")))
    link.send(request("fine"))
    tokens, errors, _ = collect(link, "bad", "fine")
    assert errors["bad"].fault == "failed"
    assert tokens["fine"] == [3, 4, 5, 6]
    assert "a fault of ours" in caplog.text
    assert core.scheduler._queued_requests == 0


def test_only_large_steps_are_announced():
    core = EngineCore(EngineConfig(), Large())
    said: list[FromCore] = []
    turn(core, [request("large", length=100)], said.append)
    turn(core, [], said.append)
    assert [type(message) for message in said] == [Began, Stepped, Stepped]
    assert [message.step.work for message in said[1:]] == [said[0].work, pytest.approx(1.0, abs=0.2)]


def test_a_large_step_is_announced_when_it_is_the_next_to_be_awaited():
    """Whoever watches takes a finished step for news of the step that was announced."""
    core = EngineCore(EngineConfig(), LargeAhead())
    said: list[FromCore] = []
    turn(core, [request("small", max_tokens=9)], said.append)
    turn(core, [request("large", length=100)], said.append)
    assert [type(message) for message in said] == [Stepped, Stepped]
    said.clear()
    turn(core, [], said.append)
    assert [type(message) for message in said] == [Began, Stepped]
    assert said[0].work == said[1].step.work > 100


def test_steps_ahead_are_taken_in_even_when_all_has_ended():
    core = EngineCore(EngineConfig(), LargeAhead())
    said: list[FromCore] = []
    turn(core, [request("r", max_tokens=9)], said.append)
    turn(core, [Abort("r")], said.append)
    while core.has_work:
        turn(core, [], said.append)
    assert not core.scheduler.under_way
    steps = [message.step for message in said if isinstance(message, Stepped)]
    assert [len(step.outputs) for step in steps] == [1, 0, 0]
    assert steps[1].released == ["r"]
    assert steps[2].shares == {}
    assert steps[2].work > 0


def test_seconds_of_overlapping_steps_add_up_to_the_time_that_passed():
    looks: list[float] = []

    def clock() -> float:
        looks.append(float(len(looks)))
        return looks[-1]

    core = EngineCore(EngineConfig(), LargeAhead(), clock=clock)
    core.add(request("r", max_tokens=6).request)
    steps = []
    while core.has_work:
        steps.append(core.step())
    assert len(steps) == 6
    assert sum(step.seconds for step in steps) == looks[-1] - looks[0]


def test_a_core_sleeps_and_wakes_and_has_forgotten_what_was_cached(line):
    link, core = line
    link.send(request("before", length=12))
    collect(link, "before")
    assert core.look().kept == 3
    link.send(Sleep(2))
    link.send(Wake())
    answers = []
    while len(answers) < 2:
        if isinstance(message := link.receive(), Rested):
            answers.append(message)
    assert answers == [Rested(), Rested()]
    assert core.executor.rested == (2, "wake")
    assert core.look().kept == 0
    link.send(request("after", length=12))
    tokens, _, _ = collect(link, "after")
    assert tokens == {"after": [12, 13, 14, 15]}
    assert core.scheduler.prefix_cache.hits == 0


def test_a_core_says_why_it_cannot_wake(line):
    link, core = line
    core.executor.refusal = ConfigError("no room")
    link.send(Wake())
    while not isinstance(message := link.receive(), Rested):
        pass
    assert str(message.failed.exception()) == "no room"


def test_a_step_under_way_is_taken_in_before_a_core_sleeps():
    core = EngineCore(EngineConfig(), Ahead())
    said: list[FromCore] = []
    turn(core, [request("r", max_tokens=9)], said.append)
    turn(core, [Abort("r"), Sleep(1)], said.append)
    assert [type(message) for message in said] == [Stepped, Stepped, Rested, Stepped]
    assert core.executor.rested == (1,)
    assert not core.has_work
    turn(core, [Wake(), request("next", max_tokens=1)], said.append)
    assert core.executor.rested == (1, "wake")


def test_an_abort_while_idle_reports_an_empty_core(line):
    link, _ = line
    link.send(Abort("never there"))
    message = link.receive()
    assert isinstance(message, Stepped)
    assert message.step.released == ["never there"]
    assert message.step.stats.running == 0
    assert message.step.stats.kv_cache_usage == 0.0


def test_who_looks_sees_the_blocks_between_two_steps():
    core = EngineCore(EngineConfig.of(), Counter())
    said: list[FromCore] = []
    turn(core, [Look()], said.append)
    turn(core, [request("r", length=5, max_tokens=8)], said.append)
    turn(core, [Look()], said.append)
    looks = [message.blocks for message in said if isinstance(message, Seen)]
    assert [(seen.block_size, seen.total, seen.runs) for seen in looks] == [(4, 8, [0, 8]), (4, 8, [2, 2, 0, 6])]


# ---------------------------------------------------------------------- grammars, compiled while steps go on


class Obedient(Counter):
    """Draws the first token that may be drawn."""

    def submit(self, plan: StepPlan) -> Computed:
        drawing = [row for row in plan.rows if row.draws]
        rows = [RowResult(row.sequence_id, [_first(plan.masks.get(row.sequence_id, b"\x02"))]) for row in drawing]
        return Computed(StepResult(plan.step, rows))


def _first(mask: bytes) -> int:
    return next(token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1)


class Gated(Grammars):
    """Compiles when it is told to."""

    def __init__(self) -> None:
        super().__init__(Letters, 100)
        self.gate = threading.Event()

    def compile(self, text):
        assert self.gate.wait(60)
        return super().compile(text)


def follow(name: str, regex: str, **fields) -> Add:
    add = request(name, **fields)
    return Add(structs.replace(add.request, grammar=grammar_text(StructuredOutputs(regex=regex)), eos_token_ids=[0]))


@pytest.fixture
def gated():
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    core = EngineCore(EngineConfig.of(), Obedient(), grammars=Gated())
    inside: FrameSocket[ToCore] = FrameSocket(theirs, ToCore)
    thread = threading.Thread(target=run, args=(core, inside))
    thread.start()
    link: FrameSocket[FromCore] = FrameSocket(ours, FromCore)
    yield link, core.grammars
    core.grammars.gate.set()
    link.close()
    thread.join(10)
    assert not thread.is_alive()
    inside.close()


def test_others_go_on_while_a_grammar_is_compiled(gated):
    link, grammars = gated
    link.send(follow("slow", "BC"))
    link.send(request("quick"))
    tokens, errors, _ = collect(link, "quick")
    assert tokens.keys() == {"quick"}
    grammars.gate.set()
    tokens, errors, _ = collect(link, "slow")
    assert (tokens, errors) == ({"slow": [*b"BC"]}, {})
    link.send(follow("again", "BC"))  # is compiled already
    assert collect(link, "again")[0] == {"again": [*b"BC"]}


def test_who_does_nothing_but_wait_for_a_grammar_says_that_it_is_alive(gated):
    link, grammars = gated
    link.send(follow("slow", "A"))
    for _ in range(4):
        assert link.receive().step.outputs == []
    grammars.gate.set()
    assert collect(link, "slow")[0] == {"slow": [*b"A"]}


def test_a_grammar_that_cannot_be_followed_is_its_callers_fault(gated):
    link, grammars = gated
    grammars.gate.set()
    link.send(follow("bad", "("))
    link.send(follow("good", "A"))
    tokens, errors, _ = collect(link, "bad", "good")
    assert tokens == {"bad": [], "good": [*b"A"]}
    assert (errors["bad"].fault, errors["bad"].param) == ("invalid", "structured_outputs")


def test_who_leaves_while_the_grammar_is_compiled_is_forgotten_and_the_name_is_free(gated):
    link, grammars = gated
    link.send(follow("a", "A"))
    link.send(Abort("a"))
    while "a" not in link.receive().step.released:
        pass
    link.send(follow("a", "BB"))
    grammars.gate.set()
    assert collect(link, "a")[0] == {"a": [*b"BB"]}
