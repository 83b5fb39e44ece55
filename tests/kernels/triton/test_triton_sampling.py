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
from octavo.kernels.draws import Draws
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


@settings(deadline=None, max_examples=25)
@given(
    vocabulary=st.sampled_from([1, 3, 16, 50, 300]),
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
