"""Row-wise kernels and `linear` against plain torch, for shapes that do and do not fill a vector."""

from __future__ import annotations

import logging
import math
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo import env
from octavo.kernels import cpu, ops, reference

# One unit in the last place of a result of size 1 to 4, for each dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = st.sampled_from(list(TOLERANCE))
FIXTURES = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@FIXTURES
@given(tokens=st.integers(1, 70), width=st.integers(1, 700), dtype=DTYPES, seed=st.integers(0, 99))
def test_norms(isa: str, tokens: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, residual, weight = (
        normal(seed, tokens, width).to(dtype),
        normal(seed + 1, tokens, width).to(dtype),
        normal(2, width),
    )
    close(cpu.compiled.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    twin = residual.clone()
    close(cpu.compiled.add_rms_norm(x, residual, weight, 1e-5), reference.add_rms_norm(x, twin, weight, 1e-5))
    assert torch.equal(residual, twin)  # the stream itself is a single rounded sum


@FIXTURES
@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 700),
    dtype=DTYPES,
    seed=st.integers(0, 99),
    shift=st.sampled_from([0.0, 30.0]),
)
def test_layer_norms(isa: str, tokens: int, width: int, dtype: torch.dtype, seed: int, shift: float) -> None:
    """Values far from zero too: the variance is that around the mean."""
    x, residual = ((normal(seed + number, tokens, width) + shift).to(dtype) for number in range(2))
    weight, bias = normal(2, width), normal(3, width)
    tolerance = TOLERANCE[dtype] * (1 + shift * width**0.5)

    def near(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=TOLERANCE[dtype])

    near(cpu.compiled.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x, weight, bias, 1e-5))
    twin = residual.clone()
    got = cpu.compiled.add_layer_norm(x, residual, weight, bias, 1e-5)
    near(got, reference.add_layer_norm(x, twin, weight, bias, 1e-5))
    assert torch.equal(residual, twin)


@FIXTURES
@given(tokens=st.integers(1, 40), width=st.integers(1, 500), dtype=DTYPES, scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_activations(isa: str, tokens: int, width: int, dtype: torch.dtype, scale: float) -> None:
    x = (normal(width, tokens, width) * scale).clamp(-200, 200).to(dtype)
    x[0, 0] = math.nan
    for name in ("gelu", "gelu_tanh", "relu"):
        got, expected = getattr(cpu.compiled, name)(x), getattr(reference, name)(x)
        torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)


@FIXTURES
@given(tokens=st.integers(1, 40), width=st.integers(1, 500), dtype=DTYPES, scale=st.sampled_from([0.1, 3.0, 40.0]))
def test_gated_activations(isa: str, tokens: int, width: int, dtype: torch.dtype, scale: float) -> None:
    gate_up = (normal(width, tokens, 2 * width) * scale).clamp(-200, 200).to(dtype)
    for name in ("silu_mul", "gelu_tanh_mul"):
        got, expected = getattr(cpu.compiled, name)(gate_up), getattr(reference, name)(gate_up)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(got, expected, atol=tolerance * scale, rtol=tolerance)


@FIXTURES
@given(
    tokens=st.integers(1, 60),
    heads=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    half=st.sampled_from([1, 3, 8, 10, 32, 64]),
    normed=st.booleans(),
    dtype=DTYPES,
)
def test_rotary(isa: str, tokens: int, heads: int, kv_heads: int, half: int, normed: bool, dtype: torch.dtype) -> None:
    rows = [normal(9, tokens, heads + 2 * kv_heads, 2 * half).to(dtype) for _ in range(2)]
    angles = normal(1, 50, half) * 3
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(3))
    weights = (normal(4, 2 * half), normal(5, 2 * half), 1e-6) if normed else ()
    for kernels, row in zip((cpu.compiled, reference), rows, strict=True):
        q, k, _ = row.split([heads, kv_heads, kv_heads], dim=1)
        kernels.rotary(q, k, positions, table, *weights)
    close(*rows)


@FIXTURES
@given(
    share=st.floats(0.01, 1.0),
    inner=st.integers(1, 200),
    outer=st.integers(1, 150),
    biased=st.booleans(),
    dtype=DTYPES,
)
def test_linear(isa: str, share: float, inner: int, outer: int, biased: bool, dtype: torch.dtype) -> None:
    rows = math.ceil(share * min(cpu.most_rows(dtype), 40))
    x, weight = normal(1, rows, inner).to(dtype), (normal(2, outer, inner) / inner**0.5).to(dtype)
    bias = normal(3, outer).to(dtype) if biased else None
    exact = reference.linear(x.double(), weight.double(), None if bias is None else bias.double())
    close(cpu.compiled.linear(x, weight, bias), exact.to(dtype))
    torch.testing.assert_close(cpu.compiled.linear(x, weight, bias, True), exact.float(), atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_linear_gives_a_row_the_same_bits_in_any_batch(isa: str, dtype: torch.dtype) -> None:
    most = min(cpu.most_rows(dtype), 70)
    x, weight = normal(1, most, 310).to(dtype), normal(2, 77, 310).to(dtype)
    whole = cpu.compiled.linear(x, weight)
    wide = torch.cat((x, x), dim=1)[:, :310]  # rows further apart than they are long
    for begin, end in ((0, 1), (3, 5), (2, 8), (most - 1, most)):
        assert torch.equal(cpu.compiled.linear(x[begin:end], weight), whole[begin:end])
        assert torch.equal(cpu.compiled.linear(wide[begin:end], weight), whole[begin:end])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_survives_widening(isa: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    least = 2.0**-126 if dtype is torch.bfloat16 else 0.0  # subnormal bfloat16 may become zero
    finite = every[every.isfinite() & ((every == 0) | (every.abs() >= least))].view(
        1, -1, 2
    )  # a token, many heads of 2
    turned = finite.clone()
    cpu.compiled.rotary(turned, turned[:, :0], torch.zeros(1, dtype=torch.int64), torch.tensor([[1.0, 0.0]]))
    assert torch.equal(turned, finite)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even(isa: str, dtype: torch.dtype) -> None:
    numbers = torch.randint(-(2**15), 2**15, (2, 1, 40000), generator=torch.Generator().manual_seed(8))
    x, residual = numbers.to(torch.int16).view(dtype)
    expected = residual + x  # infinities and NaN as well
    cpu.compiled.add_rms_norm(x.contiguous(), residual, torch.ones(40000), 1e-5)
    if dtype is torch.bfloat16:  # whose subnormal numbers may become zero
        expected, residual = (each.where(each.abs() >= 2.0**-126, each * 0) for each in (expected, residual))
    assert torch.equal(residual.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(residual.isnan(), expected.isnan())


def test_the_switch_turns_compiled_kernels_off(uncached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "NO_NATIVE", True)
    assert ops.kernels_for(torch.ones(1)) is reference
    assert ops.linear(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [[2.0, 2.0, 2.0]]


def test_missing_kernels_are_reported_once(
    uncached: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(env, "NO_NATIVE", False)
    monkeypatch.setattr(cpu, "_missing", "no module named _native")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert ops.kernels_for(torch.ones(1)) is reference
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "octavo again" in caplog.text


def test_tensors_on_no_device_use_plain_torch() -> None:
    assert ops.kernels_for(torch.empty(1, device="meta")) is reference


def test_gpus_get_plain_torch_where_there_is_no_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in [name for name in sys.modules if name.startswith("octavo.kernels.triton")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    ops.gpu_kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert ops.gpu_kernels() is ops.gpu_kernels() is reference
    finally:
        ops.gpu_kernels.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no triton" in caplog.text


def test_gpus_get_tritons_kernels() -> None:
    pytest.importorskip("triton.language")
    assert ops.gpu_kernels().rms_norm.__module__ == "octavo.kernels.triton.norm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_precision_is_never_rounded_and_never_sees_the_batch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(70, 48).to(dtype), torch.randn(33, 48).to(dtype)
    exact = (x.double() @ weight.double().T).float()
    for kernels in (cpu.compiled, reference):
        whole = kernels.linear(x, weight, None, True)
        assert whole.dtype is torch.float32
        torch.testing.assert_close(whole, exact, atol=1e-4, rtol=1e-5)
    assert torch.equal(cpu.compiled.linear(x, weight, None, True)[:5], cpu.compiled.linear(x[:5], weight, None, True))
