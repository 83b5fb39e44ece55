"""The draw on a GPU against the plain one: the same token, or one next to it where rounding decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_inputs import DEVICE, normal

from octavo.kernels import reference
from octavo.kernels.draws import IN_PROMPT, Adjustments, DeviceDraws, Draws, Report
from octavo.kernels.philox import uniform
from octavo.kernels.triton import sampling


def draws(rows: list[tuple[float, float, float, int]], counts: list[int], seed: int = 1) -> Draws:
    """rows: temperature, min-p, top-p, top-k."""
    temperature, min_p, top_p, top_k = zip(*rows, strict=True)
    return Draws(
        np.array(temperature, dtype=np.float32),
        np.array(min_p, dtype=np.float32),
        np.array(top_p, dtype=np.float32),
        np.array(top_k, dtype=np.int64),
        np.arange(len(rows), dtype=np.int64) * 3_000_000_000,
        np.cumsum([0, *counts], dtype=np.int64),
        np.arange(sum(counts), dtype=np.uint64) * np.uint64(2**63 - 25) + np.uint64(seed),
    )


def distance(logits_V: Tensor, wanted: Draws, row: int, draw: int, token: int) -> float:
    """How far, in probability, the drawn number lies outside the token's own share."""
    ids, sums = reference._distribution(logits_V - logits_V.max(), wanted, row)
    if ids is not None and token not in ids.tolist():
        return math.inf
    place = token if ids is None else ids.tolist().index(token)
    sums = sums / sums[-1]
    number = uniform(int(wanted.seeds_D[draw]), int(wanted.positions_R[row]))
    before = float(sums[place - 1]) if place else 0.0
    return max(before - number, number - float(sums[place]), 0.0)


def agree(logits_RV: Tensor, wanted: Draws) -> None:
    tokens, peaks = sampling.sample(logits_RV.clone().to(DEVICE), wanted)
    plain, plain_peaks = reference.sample(logits_RV, wanted)
    assert peaks == plain_peaks
    rows = np.repeat(np.arange(len(peaks)), np.diff(wanted.first_R1))
    for draw, (row, token, other) in enumerate(zip(rows.tolist(), tokens, plain, strict=True)):
        if token != other:
            assert wanted.temperature_R[row] > 0
            assert distance(logits_RV[row], wanted, row, draw, token) < 1e-5


@settings(deadline=None, max_examples=12)
@given(
    vocabulary=st.sampled_from([1, 3, 50, 300]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.02, 0.9]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    top_k=st.sampled_from([0, -1, 1, 7, 200, 50_000]),
    seed=st.integers(0, 99),
)
def test_draws_are_those_of_the_plain_form(
    vocabulary: int, scale: float, temperature: float, min_p: float, top_p: float, top_k: int, seed: int
) -> None:
    logits = normal(seed, 2, vocabulary).cpu() * scale
    logits[1, torch.rand(vocabulary, generator=torch.Generator().manual_seed(seed)) < 0.3] = -math.inf
    logits[1, seed % vocabulary] = 1.5
    agree(logits, draws([(temperature, min_p, top_p, top_k)] * 2, [3, 2], seed))


@pytest.mark.parametrize("top_k", [0, 40, 4500])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_rows_of_several_tiles(scale: float, top_p: float, top_k: int) -> None:
    """At a scale of 0.01 more tokens may be drawn than are gathered."""
    agree(normal(5, 1, 5000).cpu() * scale, draws([(1.0, 0.0, top_p, top_k)], [4], 7))


def test_equal_logits_go_by_their_id() -> None:
    logits = torch.zeros(3, 100)
    logits[0, [20, 70, 71]] = 1.0
    wanted = draws([(0.0, 0.0, 1.0, 0), (1.0, 0.0, 1.0, 5), (1.0, 0.0, 0.045, 0)], [1, 8, 8])
    tokens, _ = sampling.sample(logits.to(DEVICE), wanted)
    assert tokens[0] == 20
    assert {*tokens[1:9]} | {*tokens[9:]} <= {0, 1, 2, 3, 4}
    assert len({*tokens[1:9]}) > 1
    assert len({*tokens[9:]}) > 1


def test_rows_that_are_not_finite_are_told_and_harm_no_other() -> None:
    logits = normal(1, 5, 2500)
    filters = (1.0, 0.0, 0.9, 0)
    alone, _ = sampling.sample(logits[4:], draws([filters], [1]))
    logits[0, 2499], logits[1], logits[2, 5], logits[3, 7] = math.nan, -math.inf, math.inf, math.nan
    wanted = draws([filters] * 5, [1, 1, 1, 1, 1])
    wanted = wanted._replace(positions_R=np.zeros(5, dtype=np.int64), seeds_D=np.ones(5, dtype=np.uint64))
    tokens, peaks = sampling.sample(logits, wanted)
    assert tokens[4:] == alone
    assert tokens[:4] == [0] * 4  # they may become the next step's input before anybody knows
    assert [math.isnan(peak) for peak in peaks] == [True, False, False, True, False]
    assert peaks[1:3] == [-math.inf, math.inf]


def test_rows_may_be_apart_and_in_any_company() -> None:
    wide = normal(2, 4, 700)
    filters = [(0.7, 0.0, 0.8, 0), (0.0, 0.0, 1.0, 0), (1.3, 0.1, 1.0, 0), (1.0, 0.0, 1.0, 30)]
    wanted = draws(filters, [2] * 4)
    tokens, peaks = sampling.sample(wide[:, 100:600], wanted)
    for row in range(4):
        alone = Draws(
            *(each[row : row + 1] for each in wanted[:5]),
            np.array([0, 2], dtype=np.int64),
            wanted.seeds_D[2 * row : 2 * row + 2],
        )
        got = sampling.sample(wide[row : row + 1, 100:600].contiguous(), alone)
        assert got == (tokens[2 * row : 2 * row + 2], peaks[row : row + 1])


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=DEVICE)


def adjustments(vocabulary: int) -> Adjustments:
    """For three rows: none of them, all of them, and a mask alone."""
    generator = torch.Generator().manual_seed(1)
    steering = torch.randn(2, vocabulary, generator=generator)
    steering[:, ::7] = -math.inf
    masks = torch.randint(-(2**31), 2**31, (2, -(-vocabulary // 32)), generator=generator).int()
    said = torch.randint(0, 4, (3, vocabulary), generator=generator).int()
    said[:, 1::3] |= IN_PROMPT
    said[:, ::2] = 0
    return Adjustments(
        ints(-1, 1, -1), ints(-1, 0, 1), ints(-1, 2, -1), floats(1.0, 1.7, 1.0), floats(0.0, 0.5, 0.0),
        floats(0.0, -0.25, 0.0), steering.to(DEVICE), masks.to(DEVICE), said.to(DEVICE),
        torch.full((3,), -5, device=DEVICE),
    )  # fmt: skip


@pytest.mark.parametrize("vocabulary", [50, 2100])
def test_logits_are_steered_masked_and_penalized(vocabulary: int) -> None:
    raw = normal(3, 3, vocabulary)
    changes = adjustments(vocabulary)
    kept, adjusted = raw.clone(), torch.full_like(raw, math.nan)
    tokens = torch.full((3,), -1, device=DEVICE)
    peaks = torch.full((3,), math.nan, device=DEVICE)
    greedy = DeviceDraws(*floats(*[0.0] * 9).view(3, 3), ints(0, 0, 0), tokens.clone(), ints(0, 1, 2, 3), tokens)
    sampling.draw(raw, greedy, tokens, peaks, changes, adjusted, random=False, restricted=False)
    assert torch.equal(raw, kept)
    expected = kept.clone()
    bit = torch.arange(vocabulary, device=DEVICE)
    allowed = (changes.masks_GW[:, bit // 32] >> bit % 32 & 1).bool()
    said, steering = changes.said_MV[2], changes.steering_SV[1]
    row = (expected[1] + steering).masked_fill(~allowed[0], -math.inf)
    row = torch.where(said > 0, torch.where(row > 0, row / 1.7, row * 1.7), row)
    times = said & IN_PROMPT - 1
    expected[1] = torch.where(times > 0, row - (0.5 - 0.25 * times), row)
    expected[2].masked_fill_(~allowed[1], -math.inf)
    torch.testing.assert_close(adjusted, expected)
    assert torch.equal(peaks, adjusted.amax(1))
    assert torch.equal(tokens, adjusted.argmax(1))
    assert changes.last_M.tolist() == [-5, -5, int(tokens[1])]
    sampling.draw(raw, greedy, tokens, peaks, changes, None, random=False, restricted=False)
    assert torch.equal(raw, adjusted)


def test_what_was_said_is_counted_also_what_only_the_device_knows() -> None:
    said, last = torch.zeros(2, 9, dtype=torch.int32, device=DEVICE), torch.tensor([4, 8], device=DEVICE)
    sampling.count_tokens(said, last, ints(0, 1, 1, 1, 0), ints(4, -1, 3, 3, -1), ints(1, 1, 1, IN_PROMPT, 2))
    assert said[0].tolist() == [0, 0, 0, 0, 3, 0, 0, 0, 0]
    assert said[1].tolist() == [0, 0, 0, IN_PROMPT + 1, 0, 0, 0, 0, 1]


def test_log_probabilities_and_ranks() -> None:
    raw = normal(4, 3, 4500) * 3
    raw[2, 100:4000] = -math.inf
    raw[2, [7, 4100]] = raw[2].max() + 1  # equal and best
    tokens = torch.tensor([5, 4200, 9, 4100], device=DEVICE)
    wanted = Report(
        ints(0, 2), ints(3, 25), ints(0, 1, 3), ints(0, 0, 1), floats(*[math.nan] * 3), ints(0, 0, 0),
        torch.full((2, 25), math.nan, device=DEVICE), torch.full((2, 25), -1, dtype=torch.int32, device=DEVICE),
    )  # fmt: skip
    sampling.report_logprobs(raw, tokens, wanted)
    expected = raw.log_softmax(-1)
    for place, (row, count) in enumerate([(0, 3), (2, 25)]):
        values, ids = expected[row].sort(descending=True, stable=True)
        torch.testing.assert_close(wanted.best_QN[place, :count], values[:count])
        assert wanted.best_ids_QN[place, :count].tolist() == ids[:count].tolist()
    rows, own = [0, 0, 2], [5, 4200, 4100]
    torch.testing.assert_close(wanted.own_P, expected[rows, own])
    assert wanted.rank_P.tolist() == [int((raw[r] > raw[r, t]).sum()) + 1 for r, t in zip(rows, own, strict=True)]
