"""One model, many schedules, the same tokens: results belong to the request, not to the batch.

float32, so that only true ties of the two best logits could tip over with the shape of a matrix product.
"""

from __future__ import annotations

import pytest

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.scheduling.swap import SwapSpace

STORY = "Once upon a time there was a small dragon who was afraid of fire. Every morning it would"
PROMPTS = [
    STORY,
    STORY + " fly to the lake",
    "The capital of France is",
    "List three colours:",
    "Name a prime number above 100:",
    "import os\n\nfor path in os.listdir('.'):\n",
]
TIE = 1e-3
SCHEDULES = {
    "batched": {},
    "chunks of 7 tokens": {"max_num_batched_tokens": 7},
    "preempted": {"num_gpu_blocks_override": 16},
    "swapped": {"num_gpu_blocks_override": 16, "swap_space": 2**28},
    "few at once": {"max_num_seqs": 2},
    "small blocks": {"block_size": 4},
    "no prefix cache": {"enable_prefix_caching": False},
    "worker process": {"distributed_executor_backend": "mp"},
    "one thread": {"num_threads": 1},
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=2)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=42, n=3, max_tokens=24, ignore_eos=True)


def make(path, **arguments) -> LLM:
    return LLM(str(path), dtype="float32", max_model_len=256, **arguments)


def pool_is_empty(llm: LLM) -> bool:
    pool = llm.llm_engine._core.scheduler.pool
    return pool.free == pool.count and not any(pool.references)


@pytest.fixture(scope="module")
def alone(smollm2):
    """Every prompt by itself: greedy outputs, three seeded samples each, and beams."""
    llm = make(smollm2.path)
    greedy = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in PROMPTS]
    seeded = [llm.generate(prompt, SEEDED, use_tqdm=False)[0] for prompt in PROMPTS]
    assert pool_is_empty(llm)
    return greedy, seeded


def assert_same_tokens(mine, reference) -> None:
    """Equal up to the first position where the reference's two best are tied."""
    for token, expected, entry in zip(mine.token_ids, reference.token_ids, reference.logprobs, strict=True):
        best, second, *_ = sorted((each.logprob for each in entry.values()), reverse=True)
        if token != expected and best - second <= TIE:
            return
        assert token == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_the_tokens_of_each_request_alone(schedule, smollm2, alone, monkeypatch):
    fetched = []
    fetch = SwapSpace.fetch
    monkeypatch.setattr(SwapSpace, "fetch", lambda *given: fetched.append(given[2].swapped) or fetch(*given))
    llm = make(smollm2.path, **SCHEDULES[schedule])
    llm.llm_engine._core.scheduler.swap_space.least = 0
    greedy, seeded = alone
    batch = llm.generate(PROMPTS * 2, GREEDY, use_tqdm=False)  # the second half finds cached prefixes
    for output, reference in zip(batch, greedy * 2, strict=True):
        assert_same_tokens(output.outputs[0], reference.outputs[0])
    for output, reference in zip(llm.generate(PROMPTS, SEEDED, use_tqdm=False), seeded, strict=True):
        assert [each.token_ids for each in output.outputs] == [each.token_ids for each in reference.outputs]
    scheduler = llm.llm_engine._core.scheduler
    assert (scheduler.preemptions > 0) == (schedule in ("preempted", "swapped"))
    assert any(fetched) == (schedule == "swapped")
    assert scheduler.swap_space.free == scheduler.swap_space.count
    assert (scheduler.prefix_cache.hits > 0) == (schedule != "no prefix cache")
    assert pool_is_empty(llm)
    llm.close()


def test_three_samples_of_a_seed_differ_and_repeat(smollm2, alone):
    _, seeded = alone
    texts = [each.text for each in seeded[0].outputs]
    assert len(set(texts)) == 3


def test_an_aborted_request_gives_its_blocks_back(smollm2):
    llm = make(smollm2.path)
    engine = llm.llm_engine
    for name in ("keep", "drop"):
        engine.add_request(name, STORY, SamplingParams(n=2, temperature=0.0, max_tokens=20))
    for _ in range(5):
        engine.step()
    engine.abort_request("drop")
    finished = {}
    while engine.has_unfinished_requests():
        finished.update({output.request_id: output for output in engine.step() if output.finished})
    assert set(finished) == {"keep"}
    assert pool_is_empty(llm)


def test_beams_equal_a_search_without_sharing(smollm2):
    """Beam search by brute force: each step asks for the best tokens of every beam as a fresh request."""
    llm = make(smollm2.path)
    width, steps = 3, 6
    found = llm.beam_search(STORY, BeamSearchParams(beam_width=width, max_tokens=steps, ignore_eos=True))[0]
    prompt = llm.get_tokenizer().encode(STORY)
    beams = [([], 0.0)]
    one = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * width)
    for _ in range(steps):
        outputs = llm.generate([[*prompt, *tokens] for tokens, _ in beams], one, use_tqdm=False)
        grown = [
            ([*tokens, token], total + entry.logprob)
            for (tokens, total), output in zip(beams, outputs, strict=True)
            for token, entry in output.outputs[0].logprobs[0].items()
        ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    assert [each.tokens[len(prompt) :] for each in found.sequences] == [tokens for tokens, _ in beams]
    assert [each.cum_logprob for each in found.sequences] == pytest.approx([total for _, total in beams], abs=1e-3)
    assert pool_is_empty(llm)


def test_stop_strings_end_one_of_several_samples(smollm2):
    llm = make(smollm2.path)
    free = llm.generate(STORY, SEEDED, use_tqdm=False)[0].outputs
    word = free[0].text.split()[3]
    params = SamplingParams(
        temperature=0.9, top_p=0.95, seed=42, n=3, max_tokens=24, ignore_eos=True, stop=[word]
    )  # fmt: skip
    for output, reference in zip(llm.generate(STORY, params, use_tqdm=False)[0].outputs, free, strict=True):
        assert output.text == reference.text.split(word)[0]
        assert (output.finish_reason, output.stop_reason) == (
            ("stop", word) if word in reference.text else ("length", None)
        )
    assert pool_is_empty(llm)
