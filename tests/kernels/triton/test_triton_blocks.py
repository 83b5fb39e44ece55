"""Copies of whole blocks: within a cache, and between it and a tensor laid out otherwise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_inputs import DEVICE

from octavo.kernels import reference
from octavo.kernels.triton import kernels


@settings(max_examples=25)
@given(
    planes=st.integers(1, 3),
    elements=st.sampled_from([1, 24, 4096, 5000]),
    copies=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]),
    seed=st.integers(0, 99),
)
def test_copies_within_a_cache(planes: int, elements: int, copies: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (planes, 9, elements * dtype.itemsize), generator=generator, dtype=torch.uint8)
    order = torch.randperm(9, generator=generator).to(DEVICE)
    got = bits.to(DEVICE)
    expected = got.clone()
    for ops, held in ((kernels, got), (reference, expected)):
        cache = held.view(dtype)
        ops.copy_blocks(cache, cache, order[:copies], order[copies : 2 * copies])
    assert torch.equal(got, expected)
    assert torch.equal(got[:, order[2 * copies :]], bits.to(DEVICE)[:, order[2 * copies :]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_go_to_a_buffer_and_back(dtype: torch.dtype) -> None:
    """As for swapping: the buffer has a block's planes side by side."""
    cache = torch.arange(6 * 8 * 10).view(6, 8, 10).to(DEVICE, dtype)
    buffer = torch.empty(3, 6, 10, dtype=dtype, device=DEVICE)
    ids, places = torch.tensor([7, 0, 4]).to(DEVICE), torch.arange(3).to(DEVICE)
    kernels.copy_blocks(cache, buffer.transpose(0, 1), ids, places)
    assert torch.equal(buffer, cache[:, ids].transpose(0, 1))
    back = torch.zeros_like(cache)
    kernels.copy_blocks(buffer.transpose(0, 1), back, places, ids)
    assert torch.equal(back[:, ids], cache[:, ids])
    assert int(back.count_nonzero()) <= 3 * 6 * 10
