"""The sampler against slow, literal definitions of each parameter; and that rows do not see each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.execution.sampler import HostSampler
from octavo.kernels.philox import uniform
from octavo.plan import Row, SequenceSpec, fork_seed
from octavo.request import SamplingParams

V = 50


def spec(sequence_id=0, tokens=(1, 2, 3), prompt=3, seed=5, ends=(), bad_words=(), candidates=0, **params):
    return SequenceSpec(
        sequence_id, list(tokens), prompt, SamplingParams(**params), seed, list(ends), [list(w) for w in bad_words],
        candidates,
    )  # fmt: skip


def row(sequence_id=0, tokens=(1, 2, 3), draws=1) -> Row:
    return Row(sequence_id, 0, list(tokens), 0, [], draws)


def sample(logits, tokens=(1, 2, 3), draws=1, **fields):
    sampler = HostSampler()
    sampler.add(spec(tokens=tokens, **fields))
    return sampler.sample([row(tokens=tokens, draws=draws)], torch.as_tensor(logits)[None].clone()).results()[0]


def logits_of(seed: int, scale=3.0) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * scale


def literal_draw(logits, number, temperature, top_k, top_p, min_p) -> int:
    """Definition: filter, renormalise, walk the cumulative distribution (best first if anything was sorted)."""
    weights = {token: math.exp((value - max(logits)) / temperature) for token, value in enumerate(logits)}
    weights = {token: weight for token, weight in weights.items() if weight >= min_p}
    order = sorted(weights, key=lambda token: -weights[token])
    if 0 < top_k < V:
        order = order[:top_k]
    if top_p < 1.0:
        total, kept, mass = sum(weights[token] for token in order), [], 0.0
        for token in order:
            if mass >= top_p * total:
                break
            kept.append(token)
            mass += weights[token]
        order = kept
    if not (0 < top_k < V) and top_p == 1.0:
        order = sorted(order)
    target, mass = number * sum(weights[token] for token in order), 0.0
    for token in order:
        mass += weights[token]
        if mass > target:
            return token
    return order[-1]


@given(
    seed=st.integers(0, 500),
    temperature=st.floats(0.05, 3),
    top_k=st.sampled_from([0, -1, 1, 5, V, 200]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
@settings(deadline=None)
def test_draws_follow_the_definition(seed, temperature, top_k, top_p, min_p):
    logits = logits_of(seed)
    result = sample(logits, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = literal_draw(logits.tolist(), uniform(seed, 3), temperature, top_k, top_p, min_p)
    assert result.token_ids == [expected]


def test_a_nucleus_larger_than_the_first_guess_is_still_exact():
    logits = torch.zeros(5000)
    drawn = {sample(logits, seed=seed, top_p=0.9).token_ids[0] for seed in range(300)}
    assert len(drawn) > 250  # 4,500 equal tokens are in the nucleus, not only 1,024 guessed ones


def test_frequencies_match_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    counts = torch.zeros(4)
    for seed in range(2000):
        counts[sample(logits, seed=seed).token_ids[0]] += 1
    assert torch.allclose(counts / 2000, logits.softmax(0), atol=0.03)


def test_greedy_takes_the_best_and_draws_of_one_prompt_differ_by_their_own_seed():
    logits = logits_of(1)
    assert sample(logits, draws=3, temperature=0.0).token_ids == [int(logits.argmax())] * 3
    drawn = sample(logits, draws=3, temperature=2.0, seed=9).token_ids
    alone = [sample(logits, temperature=2.0, seed=fork_seed(9, index)).token_ids[0] for index in range(3)]
    assert drawn == alone


@given(st.lists(st.sampled_from(["greedy", "drawn", "penalized", "filtered"]), min_size=1, max_size=6), st.randoms())
@settings(deadline=None)
def test_a_row_gives_the_same_alone_and_in_any_batch(kinds, random):
    kind_params = {
        "greedy": {"temperature": 0.0, "logprobs": 2},
        "drawn": {"temperature": 1.3},
        "penalized": {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        "filtered": {"top_p": 0.7, "top_k": 10, "logit_bias": {3: 5.0}},
    }
    specs = [spec(number, seed=number, **kind_params[kind]) for number, kind in enumerate(kinds)]
    order = list(range(len(kinds)))
    random.shuffle(order)
    sampler = HostSampler()
    for each in specs:
        sampler.add(each)
    batch = sampler.sample([row(number) for number in order], torch.stack([logits_of(number) for number in order]))
    for number, result in zip(order, batch.results(), strict=True):
        lonely = HostSampler()
        lonely.add(specs[number])
        assert lonely.sample([row(number)], logits_of(number)[None]).results() == [result]


def test_penalties_follow_openai_and_hugging_face():
    logits, tokens = logits_of(2), [4, 5, 6, 6, 7]
    result = sample(
        logits, tokens=tokens, prompt=2, temperature=0.0, logprobs=-1,
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={9: 1.0},
    )  # fmt: skip
    expected = logits.clone()
    expected[9] += 1.0
    for token in {4, 5, 6, 7}:  # prompt and output
        expected[token] = expected[token] / 2 if expected[token] > 0 else expected[token] * 2
    expected[6] -= 0.5 + 2 * 0.25  # output only
    expected[7] -= 0.5 + 0.25
    assert result.token_ids == [int(expected.argmax())]
    raw = torch.tensor(result.logprobs[0].logprobs[1:])
    assert torch.allclose(raw, logits.log_softmax(0).sort(descending=True).values)  # logprobs are the model's own


def test_penalties_remember_what_was_drawn_between_steps():
    sampler = HostSampler()
    sampler.add(spec(tokens=[1], prompt=1, temperature=0.0, presence_penalty=2.0))
    logits = torch.zeros(1, V)
    logits[0, 7], logits[0, 8] = 1.0, 0.5
    assert sampler.sample([row(tokens=[1])], logits.clone()).results()[0].token_ids == [7]
    later = Row(0, 1, [7], 0, [], 1)
    assert sampler.sample([later], logits.clone()).results()[0].token_ids == [8]


def test_only_allowed_tokens_and_bias_within_them():
    logits = logits_of(3)
    best = int(logits.argmax())
    others = [token for token in range(V) if token != best][:3]
    assert sample(logits, temperature=0.0, allowed_token_ids=others).token_ids[0] in others
    assert sample(logits, temperature=0.0, logit_bias={others[1]: 100.0}).token_ids == [others[1]]
    assert sample(logits, temperature=0.0, logit_bias={best: -100.0}).token_ids != [best]


def test_end_tokens_wait_for_min_tokens():
    logits = logits_of(4)
    best = int(logits.argmax())
    for output, forbidden in ((0, True), (1, True), (2, False)):
        tokens = [1, 2, 3] + [9] * output
        drawn = sample(logits, tokens=tokens, ends=[best], temperature=0.0, min_tokens=2).token_ids
        assert (drawn != [best]) == forbidden


@pytest.mark.parametrize(
    ("bad_word", "output", "forbidden"),
    [([8], [], True), ([4, 8], [4], True), ([4, 8], [5], False), ([3, 8], [], False), ([4, 5, 8], [4, 5], True)],
)
def test_bad_words_end_nowhere_in_the_output(bad_word, output, forbidden):
    logits = torch.zeros(V)
    logits[8] = 5.0
    drawn = sample(logits, tokens=[1, 2, 3, *output], bad_words=[bad_word], temperature=0.0).token_ids
    assert (drawn != [8]) == forbidden


def test_logprobs_name_the_drawn_token_its_rank_and_the_best():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    entry = sample(logits, temperature=0.0, logprobs=2, logit_bias={0: 50.0}).logprobs[0]
    expected = logits.log_softmax(0)
    assert entry.token_ids == [0, 1, 2]
    assert entry.ranks == [4, 1, 2]
    assert torch.allclose(torch.tensor(entry.logprobs), expected[[0, 1, 2]])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(poison, temperature):
    sampler = HostSampler()
    for number in range(3):
        sampler.add(spec(number, temperature=temperature))
    logits = torch.stack([logits_of(number) for number in range(3)])
    logits[1, 17] = poison
    good, bad, other = sampler.sample([row(number) for number in range(3)], logits).results()
    assert bad.error
    assert not bad.token_ids
    assert good.token_ids == sample(logits[0], temperature=temperature).token_ids
    assert other.token_ids == sample(logits[2], temperature=temperature).token_ids


def test_nothing_allowed_is_an_error_not_a_token():
    ids = [7]
    result = sample(logits_of(1), allowed_token_ids=ids, bad_words=[ids])
    assert "no token" in result.error


def test_beams_get_their_best_candidates():
    logits = logits_of(6)
    result = sample(logits, candidates=4, temperature=0.0)
    values, ids = logits.log_softmax(0).topk(4)
    assert result.token_ids == ids.tolist()
    assert result.logprobs[0].logprobs == pytest.approx(values.tolist())


@pytest.mark.parametrize(
    "fault",
    [{"bad_words": [[V + 5]]}, {"allowed_token_ids": [2**70]}, {"logit_bias": {2**70: 1.0}}],
    ids=["an id that the logits do not have", "an id too large for a tensor", "the same, biased"],
)
def test_a_fault_in_one_row_ends_that_row_only(fault, monkeypatch):
    monkeypatch.setattr("octavo.request._whole", lambda *_: None)
    sampler = HostSampler()
    for number in range(3):
        sampler.add(spec(number, temperature=0.0, **(fault if number == 1 else {})))
    logits = torch.stack([logits_of(number) for number in range(3)])
    good, bad, other = sampler.sample([row(number) for number in range(3)], logits).results()
    assert bad.error
    assert good.token_ids == [int(logits[0].argmax())]
    assert other.token_ids == [int(logits[2].argmax())]


def test_what_the_request_forbids_is_the_callers_fault():
    assert sample(logits_of(1), allowed_token_ids=[7], bad_words=[[7]]).fault == "invalid"
    assert sample(torch.full((V,), math.nan)).fault == "failed"


def packed(allowed, width=V) -> bytes:
    """Bit i of byte j is token 8j + i."""
    mask = bytearray(-(-width // 8))
    for token in allowed:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def masked(logits, mask, draws=1, **fields):
    sampler = HostSampler()
    sampler.add(spec(**fields))
    [result] = sampler.sample([row(draws=draws)], torch.as_tensor(logits)[None].clone(), {0: mask}).results()
    return result


@given(st.sets(st.integers(0, V - 1), min_size=1), st.integers(0, 99), st.floats(0, 2))
def test_only_what_the_mask_allows_is_drawn_and_as_if_that_was_all_there_is(allowed, seed, temperature):
    ids = sorted(allowed)
    result = masked(logits_of(seed), packed(ids), draws=8, temperature=temperature)
    assert (
        result.token_ids == sample(logits_of(seed), draws=8, temperature=temperature, allowed_token_ids=ids).token_ids
    )


def test_masks_of_any_width_fit():
    wide = packed([3, V + 40], V + 64)
    assert masked(torch.zeros(V), wide, temperature=0.0).token_ids == [3]
    assert masked(torch.zeros(V), packed([3])[:1], temperature=0.0).token_ids == [3]  # missing bytes allow nothing


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": [5]},
        {"bad_words": [[3], [4]]},
        {"ends": (3, 4), "min_tokens": 9, "max_tokens": 10},
        {"logit_bias": {5: 100.0}, "allowed_token_ids": [5]},
    ],
)
def test_a_mask_and_a_request_that_leave_no_token_are_the_callers_fault(fields):
    result = masked(torch.zeros(V), packed([3, 4]), **fields)
    assert (result.token_ids, result.fault) == ([], "invalid")


@pytest.mark.parametrize(
    "fields", [{"logit_bias": {7: 100.0}}, {"repetition_penalty": 0.01}, {"frequency_penalty": -2.0}]
)
def test_nothing_that_raises_a_logit_brings_back_what_the_mask_forbids(fields):
    assert masked(torch.zeros(V), packed([3]), tokens=(7, 7, 7), prompt=0, **fields).token_ids == [3]


def test_logprobs_are_the_models_own_under_a_mask():
    logits = logits_of(1)
    [entry] = masked(logits, packed([2]), logprobs=1).logprobs
    assert entry.token_ids[0] == 2
    assert entry.logprobs[0] == pytest.approx(logits.log_softmax(-1)[2].item())
    assert entry.token_ids[1] == int(logits.argmax())


def test_a_mask_is_its_own_rows_alone():
    sampler = HostSampler()
    for sequence_id in (0, 1):
        sampler.add(spec(sequence_id, temperature=0.0))
    logits = torch.stack([logits_of(1), logits_of(2)])
    best = int(logits[1].argmax())
    results = sampler.sample([row(0), row(1)], logits, {0: packed([9])}).results()
    assert [result.token_ids for result in results] == [[9], [best]]
