"""How early its steps were planned changes nothing of what a request says: a real model, one and two steps late."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.engine import llm_engine
from octavo.execution.executor import make_executor
from octavo.request import StructuredOutputs

sys.path.append(str(Path(__file__).parent.parent))

from late_executor import LateExecutor

STORY = "Once upon a time there was a small dragon who was afraid of fire. Every morning it would"
FREE = {"temperature": 0.9, "top_p": 0.95, "seed": 42, "max_tokens": 10}
ASKED = [
    (STORY, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=2)),
    (STORY + " fly to the lake", SamplingParams(**FREE, n=3)),
    ("The capital of France is", SamplingParams(**{**FREE, "seed": 1}, stop=[" the", ","])),
    ("List three colours:", SamplingParams(**FREE, repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=6)),
    ("Name a prime number above 100:", SamplingParams(**FREE, logit_bias={28: 3.0}, bad_words=["the", " of the"])),
    (STORY, SamplingParams(**FREE, prompt_logprobs=0, logprobs=0)),
    ("Say yes or no:", SamplingParams(**FREE, structured_outputs=StructuredOutputs(choice=["yes", "no"]), n=2)),
    ("One", SamplingParams(temperature=0.0, max_tokens=1)),
    ("Two", SamplingParams(**{**FREE, "max_tokens": 24}, stop_token_ids=[216, 30, 253], ignore_eos=True)),
]
BEAMS = BeamSearchParams(beam_width=3, max_tokens=3)
BATCHED = {}
PREEMPTED = {"num_gpu_blocks_override": 20, "block_size": 4, "max_model_len": 80, "max_num_batched_tokens": 16}


def make(path, **arguments) -> LLM:
    return LLM(str(path), **{"dtype": "float32", "max_model_len": 256, **arguments})


def say(llm: LLM):
    """All at once, then without the guided one, for which the loop has to know what was drawn."""
    prompts, params = [prompt for prompt, _ in ASKED], [params for _, params in ASKED]
    free = [place for place, each in enumerate(params) if each.structured_outputs is None]
    rounds = [
        llm.generate(prompts, params, use_tqdm=False),
        llm.generate([prompts[place] for place in free], [params[place] for place in free], use_tqdm=False),
    ]
    beams = llm.beam_search([STORY, "The capital of France is"], BEAMS)
    parts = [part for outputs in rounds for output in outputs for part in output.outputs]
    return [(part.token_ids, part.text, part.finish_reason, part.stop_reason) for part in parts] + [
        sequence.tokens for each in beams for sequence in each.sequences
    ]


@pytest.fixture(scope="module")
def in_step(smollm2):
    llm = make(smollm2.path)
    said = say(llm)
    llm.close()
    return said


@pytest.mark.parametrize(("schedule", "steps_ahead"), [(BATCHED, 1), (PREEMPTED, 1), (PREEMPTED, 2)])
def test_the_same_bytes_however_early_a_step_is_planned(schedule, steps_ahead, smollm2, in_step, monkeypatch):
    made = []

    def make_late(config, checkpoint):
        made.append(LateExecutor(make_executor(config, checkpoint), steps_ahead))
        return made[0]

    monkeypatch.setattr(llm_engine, "make_executor", make_late)
    llm = make(smollm2.path, **schedule)
    assert say(llm) == in_step
    core = llm.llm_engine._core
    assert made[0].ahead > 20
    assert (core.scheduler.preemptions > 0) == (schedule is PREEMPTED)
    while core.has_work:
        core.step()
    assert core.scheduler.pool.free == core.scheduler.pool.count
    assert not core.scheduler.under_way
    llm.close()
