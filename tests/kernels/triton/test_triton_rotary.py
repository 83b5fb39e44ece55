"""Head norm, turn and the write to the cache against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_inputs import DEVICE, DTYPES, close, normal

from octavo.kernels import reference
from octavo.kernels.triton import kernels

BLOCKS, BLOCK_SIZE = 5, 4


def random_slots(tokens: int, seed: int) -> Tensor:
    """Different ones, and some of padding."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(BLOCKS * BLOCK_SIZE, generator=generator)[:tokens]
    return torch.where(torch.rand(tokens, generator=generator) < 0.2, -1, slots).to(DEVICE)


def caches(kv_heads: int, head_size: int, dtype: torch.dtype) -> Tensor:
    """Of keys and of values, with a block before the first, where padding would be written."""
    return torch.full((2, 1 + BLOCKS, kv_heads, BLOCK_SIZE, head_size), 7.0, device=DEVICE).to(dtype)


def table_of(half: int) -> Tensor:
    angles = normal(1, 50, half) * 3
    return torch.cat((angles.cos(), angles.sin()), dim=1)


@settings(max_examples=40)
@given(
    tokens=st.integers(0, 5),
    heads=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    half=st.sampled_from([1, 3, 8, 10, 32, 64]),
    normed=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_rotary_and_write(
    tokens: int, heads: int, kv_heads: int, half: int, normed: bool, dtype: torch.dtype, seed: int
) -> None:
    """q, k and v as views of one row; v is copied to the bit, and nothing but the slots is touched."""
    rows = [normal(seed, tokens, heads + 2 * kv_heads, 2 * half, dtype=dtype) for _ in range(2)]
    held = [caches(kv_heads, 2 * half, dtype) for _ in range(2)]
    positions = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    slots, table = random_slots(tokens, seed), table_of(half)
    weights = (normal(4, 2 * half), normal(5, 2 * half), 1e-6) if normed else ()
    for ops, row, cache in zip((kernels, reference), rows, held, strict=True):
        q, k, v = row.split([heads, kv_heads, kv_heads], dim=1)
        ops.rotary_and_write(q, k, v, positions, table, cache[0, 1:], cache[1, 1:], slots, *weights)
    close(rows[0][:, :heads], rows[1][:, :heads])
    close(held[0][0], held[1][0])
    assert torch.equal(held[0][1], held[1][1])
    assert torch.equal(rows[0][:, heads + kv_heads :], rows[1][:, heads + kv_heads :])
    written = 2 * int((slots >= 0).sum()) * kv_heads * 2 * half
    assert (held[0] != 7).sum() <= written


@settings(max_examples=25)
@given(
    tokens=st.integers(0, 5),
    kv_heads=st.integers(1, 5),
    head_size=st.sampled_from([1, 6, 32, 80, 128]),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_write_kv(tokens: int, kv_heads: int, head_size: int, dtype: torch.dtype, seed: int) -> None:
    row = normal(seed, tokens, 3 * kv_heads, head_size, dtype=dtype)
    _, k, v = row.split([kv_heads] * 3, dim=1)
    got, expected = (caches(kv_heads, head_size, dtype) for _ in range(2))
    slots = random_slots(tokens, seed)
    kernels.write_kv(k, v, got[0, 1:], got[1, 1:], slots)
    reference.write_kv(k, v, expected[0, 1:], expected[1, 1:], slots)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("turned", [True, False])
def test_caches_of_8_bits_hold_scaled_and_saturated_numbers(turned: bool, cache_dtype: torch.dtype) -> None:
    """Of numbers that need no rounding: the interpreter gets that wrong, and NaN of type e4m3."""
    k, v = torch.randint(-8, 9, (2, 4, 2, 16), generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.float16)
    k[0, 0, 0], k[0, 0, 1], v[2, 0, 4] = 60000, -60000, 57344
    if cache_dtype is torch.float8_e5m2:
        v[0, 1, 3] = torch.nan
    table = torch.cat((torch.ones(9, 8), torch.zeros(9, 8)), 1).to(DEVICE)
    slots, positions = torch.tensor([3, -1, 9, 4]).to(DEVICE), torch.arange(4).to(DEVICE)
    held = [caches(2, 16, cache_dtype) for _ in range(2)]
    for ops, cache in zip((kernels, reference), held, strict=True):
        k_cache, v_cache = cache[:, 1:]
        scales = {"k_scale": 0.25, "v_scale": 4.0}
        if turned:
            q = normal(3, 4, 2, 16, dtype=torch.float16)
            ops.rotary_and_write(q, k.clone(), v, positions, table, k_cache, v_cache, slots, **scales)
        else:
            ops.write_kv(k, v, k_cache, v_cache, slots, **scales)
    torch.testing.assert_close(held[0].float(), held[1].float(), rtol=0, atol=0, equal_nan=True)
    largest = torch.finfo(cache_dtype).max
    assert held[0][0, 1, 0, 3, :2].tolist() == [largest, -largest]
