"""Grammars in the core, with a vocabulary of single characters: what is drawn follows them, whatever happens."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
from letters import Letters
from msgspec import structs

from octavo.config import EngineConfig
from octavo.engine import guidance
from octavo.engine.core import EngineCore
from octavo.engine.grammar import grammar_text
from octavo.engine.guidance import Grammars
from octavo.errors import InvalidRequest
from octavo.plan import Capacity, Computed, RowResult, StepPlan, StepResult
from octavo.request import Continuation, Request, SamplingParams, StructuredOutputs

WIDTH = 128
CAPACITY = Capacity(num_blocks=64, block_size=4, max_model_len=128, vocab_size=WIDTH)


def allowed(mask: bytes) -> list[int]:
    return [token for token in range(WIDTH) if mask[token // 8] >> token % 8 & 1]


class Drawer:
    """Draws any token that is allowed; its choice depends on the sequence's seed and position only."""

    def __init__(self, steps_ahead=0) -> None:
        self.capacity = structs.replace(CAPACITY, steps_ahead=steps_ahead)
        self.specs = {}
        self.masks = []

    def submit(self, plan: StepPlan) -> Computed:
        self.specs |= {spec.sequence_id: spec for spec in plan.added}
        self.masks.append(dict(plan.masks))
        rows = [self._draw(row, plan.masks.get(row.sequence_id)) for row in plan.rows if row.draws]
        return Computed(StepResult(plan.step, rows))

    def _draw(self, row, mask) -> RowResult:
        spec, position = self.specs[row.sequence_id], row.start + len(row.token_ids)
        choices = list(range(1, WIDTH)) if mask is None else allowed(mask)
        if not choices:
            return RowResult(row.sequence_id, [], error="no token", fault="invalid")
        tokens = [Random(f"{spec.seed} {place} {position}").choice(choices) for place in range(row.draws)]
        return RowResult(row.sequence_id, tokens)

    def close(self) -> None: ...


def core(grammars: Grammars | None = None, steps_ahead=0, **config) -> EngineCore:
    config = EngineConfig.of(**{"max_num_seqs": 8, "enable_prefix_caching": False, **config})
    return EngineCore(config, Drawer(steps_ahead), grammars=grammars or Grammars(Letters, WIDTH))


def request(name="a", resumes=None, max_tokens=40, seed=1, **fields) -> Request:
    wishes = {name: fields.pop(name) for name in StructuredOutputs.__struct_fields__ if name in fields}
    grammar = grammar_text(StructuredOutputs(**wishes)) if wishes else None
    params = SamplingParams(max_tokens=max_tokens, **fields)
    return Request(
        request_id=name, prompt_token_ids=[1, 2, 3], params=params, max_tokens=max_tokens, seed=seed,
        eos_token_ids=[0], grammar=grammar, resumes=resumes,
    )  # fmt: skip


def finish(engine: EngineCore, texts=None):
    """(text, reason) by request and sequence, an error's output by request."""
    texts, ends = texts or {}, {}
    while engine.has_work:
        for output in engine.step().outputs:
            who = (output.request_id, output.index)
            shown = output.token_ids[:-1] if output.stop_token_id is not None else output.token_ids
            texts[who] = texts.get(who, "") + "".join(map(chr, shown))
            if output.error is not None:
                ends[output.request_id] = output
            elif output.finish_reason is not None:
                ends[who] = (texts[who], output.finish_reason)
    assert engine._guides._guided == {}
    return ends


def run(*requests: Request, engine: EngineCore | None = None):
    engine = engine or core()
    for each in requests:
        engine.add(each)
    return finish(engine)


def test_the_output_is_a_text_of_the_grammar_and_ends_with_it():
    ends = run(*(request(str(seed), seed=seed, regex="[ab]{2}(cd|xy)") for seed in range(8)))
    assert {len(text) for text, _ in ends.values()} == {4}
    assert {text[2:] for text, _ in ends.values()} == {"cd", "xy"}
    assert {reason for _, reason in ends.values()} == {"stop"}


def test_a_grammar_that_is_complete_ends_the_output_even_without_end_tokens():
    assert run(request(choice=["yes"], ignore_eos=True, min_tokens=9)) == {("a", 0): ("yes", "stop")}


def test_an_end_token_that_only_the_grammar_heeds_is_no_text():
    ends = run(*(request(str(seed), seed=seed, regex="b+", ignore_eos=True) for seed in range(8)))
    assert all(set(text) == {"b"} for text, reason in ends.values() if reason == "stop")
    assert "stop" in {reason for _, reason in ends.values()}


def test_an_output_may_be_cut_off_by_its_length():
    assert run(request(choice=["yesyesyes"], max_tokens=4)) == {("a", 0): ("yesy", "length")}


def test_the_callers_end_tokens_come_where_the_grammar_may_end():
    stop = ord("!")
    ends = run(*(request(str(seed), seed=seed, regex="[a!]{4}b*", stop_token_ids=[stop]) for seed in range(20)))
    for text, reason in ends.values():
        assert text.startswith("aaaa")  # "!" in the middle would have ended it
        assert reason in ("stop", "length")


def test_samples_of_one_prompt_follow_the_grammar_apart():
    engine = core()
    ends = run(request(n=5, regex="(x[0-9]{3}|y[a-z]{6})z"), engine=engine)
    assert len(ends) == 5
    assert len({text for text, _ in ends.values()}) > 1
    for text, reason in ends.values():
        assert reason == "stop"
        assert len(text) == (5 if text[0] == "x" else 8)


def test_a_sample_that_is_aborted_leaves_the_others_alone():
    alone = run(request(n=3, regex="[a-z]{9}"))
    engine = core()
    engine.add(request(n=3, regex="[a-z]{9}"))
    engine.step()
    engine.abort("a", 1)
    rest = finish(engine, {("a", index): alone["a", index][0][:1] for index in (0, 2)})
    assert rest == {who: end for who, end in alone.items() if who != ("a", 1)}


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
@pytest.mark.parametrize("config", [{"max_num_seqs": 1}, {"max_num_batched_tokens": 2}, {"num": 4}, {"num": 9}])
def test_every_schedule_gives_the_same(config, steps_ahead):
    wishes = [{"regex": "[a-z]{4,20}"}, {"json_object": True}, {}, {"choice": ["aaa", "abc", "zzz"], "n": 3}]
    requests = [request(str(place), seed=place, **wish) for place, wish in enumerate(wishes * 2)]
    alone = {}
    for each in requests:
        alone |= run(each)
    engine = core(**{name: value for name, value in config.items() if name != "num"}, steps_ahead=steps_ahead)
    if "num" in config:  # of steps, each of which preempts everybody
        schedule = engine.scheduler.schedule

        def preempt_and_schedule():
            if engine.scheduler._steps % config["num"] == 3:
                for sequence in list(engine.scheduler.running):
                    engine.scheduler._preempt(sequence)
            return schedule()

        engine.scheduler.schedule = preempt_and_schedule
    assert run(*requests, engine=engine) == alone


def test_steps_are_taken_ahead_again_when_nobody_follows_a_grammar():
    engine = core(steps_ahead=1)
    engine.add(request("free", max_tokens=30))
    engine.step()
    assert len(engine.scheduler.under_way) == 1
    engine.add(request("guided", regex="[a-z]{5}", max_tokens=5))
    under_way = []
    while engine.scheduler.has_work:
        engine.step()
        under_way.append(len(engine.scheduler.under_way))
    assert under_way[:6] == [0] * 6  # what is under way, then five draws
    assert 1 in under_way[6:]


def test_a_grammar_never_hears_of_a_token_of_another_request_of_its_name():
    engine = core(steps_ahead=1)
    engine.add(request("a"))
    engine.step()
    engine.abort("a")
    engine.add(request("a", regex="(zz|yy)", max_tokens=9))
    ((text, reason),) = finish(engine).values()
    assert text in ("zz", "yy")
    assert reason == "stop"


def test_what_another_core_began_goes_on_as_it_would_have_there():
    wishes = {"n": 3, "regex": "(a[0-9]{8}|b[a-z]{9}|c[xy]*)"}
    alone = run(request(**wishes))
    for cut in (1, 4):
        said = [
            Continuation(index, [*map(ord, text[:cut])]) for (_, index), (text, _) in alone.items() if len(text) > cut
        ]
        texts = {("a", each.index): "".join(map(chr, each.token_ids)) for each in said}
        engine = core()
        engine.add(request(resumes=said, **wishes))
        assert finish(engine, texts) == {("a", each.index): alone["a", each.index] for each in said}


def test_what_cannot_have_been_said_under_the_grammar_is_refused_and_leaves_nothing():
    engine = core()
    with pytest.raises(InvalidRequest):
        engine.add(request(regex="b+", resumes=[Continuation(0, [ord("a")])]))
    assert not engine.has_work


@pytest.mark.parametrize(
    "wishes",
    [
        {"regex": "("},
        {"regex": "(?=a)b"},
        {"json": {"type": "string", "format": "nonsense"}},
        {"json": {"oneOf": [{"type": "string"}, {"minLength": 3}]}},
        {"json": {"type": "integer", "minimum": 3, "maximum": 2}},
        {"grammar": "start: <|nobody|>"},
        {"grammar": "root ::= root"},
    ],
)
def test_grammars_that_cannot_be_followed_are_refused_in_words(wishes):
    engine = core()
    with pytest.raises(InvalidRequest, match="the grammar cannot be followed") as caught:
        engine.add(request(**wishes))
    assert caught.value.param == "structured_outputs"
    assert len(caught.value.message) < 500
    assert not engine.has_work


def test_a_grammar_that_fails_on_its_way_ends_its_own_request(monkeypatch):
    monkeypatch.setattr(guidance, "_MOST_ITEMS_IN_ROW", 40)  # from the second token on there are more
    engine = core()
    words = " | ".join(f'"{letter}{number:03}"' for letter in "ab" for number in range(100))
    ends = run(request("bad", grammar=f"start: {words}"), request("good", regex="[ab]{20}"), engine=engine)
    assert ends["bad"].fault == "invalid"
    assert ends["bad"].param == "structured_outputs"
    assert ends["good", 0][1] == "stop"
    assert len(engine.grammars._compiled) == 1


def test_compiled_grammars_are_kept_and_forgotten_by_their_size(monkeypatch):
    grammars = Grammars(Letters, WIDTH)
    texts = [grammar_text(StructuredOutputs(regex=f"a{{{number}}}")) for number in range(1, 9)]
    kept = [grammars.compile(text) for text in texts]
    assert [grammars.compile(text) for text in texts] == kept
    monkeypatch.setattr(guidance, "_KEPT_BYTES", sum(each.size for each in kept[:3]))
    grammars.find(texts[0])
    grammars.compile(grammar_text(StructuredOutputs(regex="b")))
    assert [grammars.find(text) is not None for text in texts] == [True, *[False] * 6, True]


def test_a_compiled_grammar_is_not_used_for_ever(monkeypatch):
    monkeypatch.setattr(guidance, "_LONGEST_USE", 5)
    engine = core()
    first = run(request(regex="[a-z]{9}"), engine=engine)
    assert engine.grammars.find(request(regex="[a-z]{9}").grammar) is None
    assert run(request(regex="[a-z]{9}"), engine=engine) == first


def test_a_grammar_is_compiled_only_after_it_was_tried():
    tried = []

    def check(text):
        tried.append(text)
        if "bad" in text:
            raise InvalidRequest("no")

    grammars = Grammars(Letters, WIDTH, check)
    good, bad = (grammar_text(StructuredOutputs(regex=word)) for word in ("good", "bad"))
    for _ in range(2):
        assert grammars.compile(good)
        with pytest.raises(InvalidRequest):
            grammars.compile(bad)
    assert tried == [good, bad, bad]


def test_special_tokens_are_no_text_of_any_grammar():
    engine = core()
    engine.add(request(regex=r"[\x00-\x7f]{5}"))
    drawer = engine.executor
    finish(engine)
    assert 0 not in {token for masks in drawer.masks[:5] for mask in masks.values() for token in allowed(mask)}


def test_nothing_is_loaded_before_the_first_grammar():
    script = (
        "import sys, octavo, octavo.cli.main, octavo.engine.async_engine, octavo.engine.core_process, octavo.api.app\n"
        "sys.exit('llguidance' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
