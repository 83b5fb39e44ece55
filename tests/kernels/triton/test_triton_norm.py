"""Norms against plain torch: widths that do and do not fill a tile, rows with strangers between them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_inputs import DTYPES, close, normal, rows_apart

from octavo.kernels import reference
from octavo.kernels.triton import kernels

SHAPES = given(
    tokens=st.integers(0, 5),
    width=st.one_of(st.integers(2, 300), st.sampled_from([1024, 4096, 8200])),
    dtype=DTYPES,
    apart=st.booleans(),
    seed=st.integers(0, 99),
)


@settings(max_examples=30)
@SHAPES
def test_rms_norms(tokens: int, width: int, dtype: torch.dtype, apart: bool, seed: int) -> None:
    x, residual = (normal(seed + number, tokens, width, dtype=dtype) for number in range(2))
    weight, twin = normal(2, width), residual.clone()
    if apart:
        x, residual = rows_apart(x), rows_apart(residual)
    close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    close(kernels.add_rms_norm(x, residual, weight, 1e-5), reference.add_rms_norm(x, twin, weight, 1e-5))
    assert torch.equal(residual, twin)  # the stream itself is a single rounded sum


@settings(max_examples=30)
@SHAPES
def test_layer_norms(tokens: int, width: int, dtype: torch.dtype, apart: bool, seed: int) -> None:
    """Of values far from zero: the variance is that around the mean."""
    x, residual = (normal(seed + number, tokens, width, dtype=dtype) + 10 for number in range(2))
    weight, bias, twin = normal(2, width), normal(3, width), residual.clone()
    if apart:
        x, residual = rows_apart(x), rows_apart(residual)
    times = 1 + 10 * width**0.5 if dtype is torch.float32 else 4  # float32 carries the mean's own rounding
    close(kernels.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x, weight, bias, 1e-5), times)
    got = kernels.add_layer_norm(x, residual, weight, bias, 1e-5)
    close(got, reference.add_layer_norm(x, twin, weight, bias, 1e-5), times)
    assert torch.equal(residual, twin)


def test_eps_counts_where_a_row_is_nearly_zero() -> None:
    x, weight = normal(1, 1, 6) * 1e-3, normal(2, 6)
    close(kernels.rms_norm(x, weight, 1e-2), reference.rms_norm(x, weight, 1e-2))
