"""Activations against plain torch: odd widths, rows with strangers between them, NaN and numbers far from zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_inputs import DTYPES, TOLERANCE, normal, rows_apart

from octavo.kernels import reference
from octavo.kernels.triton import kernels

WIDTHS = st.one_of(st.integers(2, 300), st.sampled_from([1024, 1030]))


def same(name: str, x: torch.Tensor, apart: bool, scale: float) -> None:
    expected = getattr(reference, name)(x)
    got = getattr(kernels, name)(rows_apart(x) if apart else x)
    tolerance = 2 * TOLERANCE[x.dtype]
    torch.testing.assert_close(got, expected, atol=tolerance * scale, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu"])
@settings(max_examples=20)
@given(
    tokens=st.integers(0, 4), width=WIDTHS, dtype=DTYPES, apart=st.booleans(), scale=st.sampled_from([0.1, 3.0, 40.0])
)
def test_activations(name: str, tokens: int, width: int, dtype: torch.dtype, apart: bool, scale: float) -> None:
    x = normal(width, tokens, width).mul(scale).to(dtype)
    x[:1, :1] = math.nan
    x[1:2, :1] = -math.inf if name == "relu" else -60000.0
    same(name, x, apart, scale)


@pytest.mark.parametrize("name", ["silu_mul", "gelu_tanh_mul"])
@settings(max_examples=20)
@given(
    tokens=st.integers(0, 4), width=WIDTHS, dtype=DTYPES, apart=st.booleans(), scale=st.sampled_from([0.1, 3.0, 40.0])
)
def test_gated_activations(name: str, tokens: int, width: int, dtype: torch.dtype, apart: bool, scale: float) -> None:
    gate_up = normal(width, tokens, 2 * width).mul(scale).to(dtype)
    gate_up[:1, :1] = math.nan
    gate_up[1:2, :1] = -60000.0
    same(name, gate_up, apart, scale)
