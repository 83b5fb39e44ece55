"""The compiled draw against the plain one: the same token, or one next to it where rounding decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.kernels import cpu, reference
from octavo.kernels.draws import Draws
from octavo.kernels.philox import uniform

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
FIXTURES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draws(rows: list[tuple[float, float, float, int]], counts: list[int], seed: int = 1) -> Draws:
    temperature, min_p, top_p, top_k = zip(*rows, strict=True)
    return Draws(
        np.array(temperature, dtype=np.float32),
        np.array(min_p, dtype=np.float32),
        np.array(top_p, dtype=np.float32),
        np.array(top_k, dtype=np.int64),
        np.arange(len(rows), dtype=np.int64) * 1000,
        np.cumsum([0, *counts], dtype=np.int64),
        np.arange(sum(counts), dtype=np.uint64) * np.uint64(2**63 - 25) + np.uint64(seed),
    )


def distance(logits: torch.Tensor, given: Draws, row: int, draw: int, token: int) -> float:
    """How far, in probability, the drawn number lies outside the token's own share."""
    ids, sums = reference._distribution(logits - logits.max(), given, row)
    place = token if ids is None else ids.tolist().index(token)
    sums = sums / sums[-1]
    number = uniform(int(given.seeds_D[draw]), int(given.positions_R[row]))
    before = float(sums[place - 1]) if place else 0.0
    return max(before - number, number - float(sums[place]), 0.0)


@FIXTURES
@given(
    vocabulary=st.sampled_from([1, 3, 16, 50, 1023, 1024, 5000, 40_001]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.02, 0.9]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    top_k=st.sampled_from([0, -1, 1, 7, 200, 50_000]),
    seed=st.integers(0, 99),
)
def test_draws_are_those_of_the_plain_form(
    isa: str, vocabulary: int, scale: float, temperature: float, min_p: float, top_p: float, top_k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, vocabulary, generator=generator) * scale
    logits[1, torch.rand(vocabulary, generator=generator) < 0.3] = -math.inf
    logits[1, seed % vocabulary] = 1.5
    wanted = draws([(temperature, min_p, top_p, top_k)] * 2, [3, 2], seed)
    got, peaks = cpu.compiled.sample(logits, wanted)
    plain, plain_peaks = reference.sample(logits, wanted)
    assert peaks == plain_peaks
    for draw, (token, other) in enumerate(zip(got, plain, strict=True)):
        if token != other:
            assert temperature > 0
            assert distance(logits[draw // 3], wanted, draw // 3, draw, token) < 1e-5


def test_equal_logits_go_by_their_id(isa: str) -> None:
    logits = torch.zeros(3, 100)
    logits[0, [20, 70, 71]] = 1.0
    wanted = draws([(0.0, 0.0, 1.0, 0), (1.0, 0.0, 1.0, 5), (1.0, 0.0, 0.045, 0)], [1, 40, 40])
    tokens, _ = cpu.compiled.sample(logits, wanted)
    assert tokens[0] == 20
    assert set(tokens[1:41]) == {0, 1, 2, 3, 4}
    assert set(tokens[41:]) == {0, 1, 2, 3, 4}


def test_a_nucleus_holds_one_token_at_least(isa: str) -> None:
    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(3))
    tokens, _ = cpu.compiled.sample(logits, draws([(1.0, 0.0, 0.0, 0), (1.0, 0.0, 0.0, 9)], [2, 2]))
    assert tokens == logits.argmax(-1).repeat_interleave(2).tolist()


def test_rows_that_are_not_finite_are_told_and_harm_no_other(isa: str) -> None:
    logits = torch.randn(5, 2000, generator=torch.Generator().manual_seed(1))
    alone, _ = cpu.compiled.sample(logits[4:], draws([(1.0, 0.0, 0.9, 0)], [1]))
    logits[0, 1999], logits[1], logits[2, 5], logits[3, 7] = math.nan, -math.inf, math.inf, math.nan
    wanted = draws([(1.0, 0.0, 0.9, 0)] * 5, [0, 0, 0, 0, 1])
    wanted = wanted._replace(positions_R=np.zeros(5, dtype=np.int64))
    tokens, peaks = cpu.compiled.sample(logits, wanted)
    assert tokens == alone
    assert [math.isnan(peak) for peak in peaks] == [True, False, False, True, False]
    assert peaks[1:3] == [-math.inf, math.inf]


def test_rows_may_be_apart(isa: str) -> None:
    wide = torch.randn(4, 700, generator=torch.Generator().manual_seed(2))
    wanted = draws([(0.7, 0.0, 0.8, 0)] * 4, [2] * 4)
    assert cpu.compiled.sample(wide[:, 100:600], wanted) == cpu.compiled.sample(wide[:, 100:600].contiguous(), wanted)
