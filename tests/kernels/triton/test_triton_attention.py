"""Paged attention against plain torch, and the promise of fixed splits: a token's bits depend on its row alone.

Everything that is not to be read is NaN or out of bounds: other blocks, slots past a row's length, tables past its end.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_inputs import DEVICE, DTYPES, close, normal

from octavo.kernels import reference
from octavo.kernels.triton import attention, kernels

sys.path.insert(0, str(Path(__file__).parents[1]))
from paged import Context, paged

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def inputs(rows: list[tuple[Context, int, int]], block_size: int = 16) -> list[Tensor]:
    return [each.to(DEVICE) for each in paged(rows, block_size)]


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a while for each program."""
    monkeypatch.setattr(attention, "splits", lambda programs, slots: 1 + programs % 3)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from([1, 1, 2, 19, 40]), st.integers(0, 150)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 4, 7]),
    head_size=st.sampled_from([64, 80, 96, 112, 128]),
    block_size=st.sampled_from([4, 16, 32, 128]),
    window=st.sampled_from([0, 1, 17, 64, 100, None]),
    softcap=st.sampled_from([0.0, 1.5]),
    sinks=st.booleans(),
    split_tokens=st.sampled_from([0, 0, 64]),
    dtype=DTYPES,
)
def test_agrees_with_plain_torch(
    rows: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_size: int,
    block_size: int,
    window: int | None,
    softcap: float,
    sinks: bool,
    split_tokens: int,
    dtype: torch.dtype,
) -> None:
    """Rows of (new tokens, tokens before them); window None: every query sees the whole row."""
    heads = kv_heads * group
    contexts = [
        (Context.random(seed, new + past, heads, kv_heads, head_size, dtype), past, new + past)
        for seed, (new, past) in enumerate(rows)
    ]
    tensors = inputs(contexts, block_size)
    seen = (head_size**-0.5, window or 0, softcap, window is not None, normal(9, heads) if sinks else None)
    close(
        kernels.paged_attention(*tensors, *seen, split_tokens=split_tokens),
        reference.paged_attention(*tensors, *seen),
        2,
    )


def test_large_heads() -> None:
    """Gemma's 256, of one token and of several, with the window and cap of Gemma 2."""
    contexts = [(Context.random(1, 70, 4, 2, 256, torch.float16), past, 70) for past in (69, 40)]
    tensors = inputs(contexts)
    close(kernels.paged_attention(*tensors, 0.0625, 40, 50.0), reference.paged_attention(*tensors, 0.0625, 40, 50.0), 2)


def test_many_heads_of_one_key() -> None:
    contexts = [(Context.random(1, 50, 71, 1, 64, torch.float16), past, 50) for past in (49, 47)]
    tensors = inputs(contexts)
    for split_tokens in (0, 64):
        close(
            kernels.paged_attention(*tensors, 0.125, split_tokens=split_tokens),
            reference.paged_attention(*tensors, 0.125),
            2,
        )


def quantized(cache: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """NaN of unused slots is the type's own NaN."""
    return (cache.float() / scale).to(dtype)


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("split_tokens", [0, 64])
def test_caches_of_8_bit_floats(kind: torch.dtype, split_tokens: int) -> None:
    rows = [(90, 91), (20, 60), (0, 1)]
    contexts = [(Context.random(7, end, 4, 2, 64, torch.float16), begin, end) for begin, end in rows]
    q, k, v, *rest = inputs(contexts)
    tensors = [q, quantized(k, 0.5, kind), quantized(v, 0.25, kind), *rest]
    scales = {"k_scale": 0.5, "v_scale": 0.25}
    got = kernels.paged_attention(*tensors, 0.125, **scales, split_tokens=split_tokens)
    close(got, reference.paged_attention(*tensors, 0.125, **scales), 2)


@pytest.mark.parametrize("split_tokens", [0, 64])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_pad_a_graph_get_zeros(split_tokens: int, sinks: bool) -> None:
    """Of length 0, with a table of another time."""
    contexts = [(Context.random(seed, 40, 2, 1, 64, torch.float32), 39, 40) for seed in range(3)]
    tensors = inputs(contexts)
    tensors[4][1:] = 0
    tensors[5][1:] = 2**30
    out = kernels.paged_attention(*tensors, 0.125, sinks_H=normal(3, 2) if sinks else None, split_tokens=split_tokens)
    assert not out[1:].any()
    assert out[0].all()


def test_queries_may_be_a_view_of_a_wider_row() -> None:
    contexts = [(Context.random(3, 40, 6, 2, 16, torch.float32), begin, 40) for begin in (30, 39)]
    q, *rest = inputs(contexts)
    wide = torch.full((11, 11, 16), torch.nan, device=DEVICE)
    wide[:, 2:8] = q
    assert torch.equal(kernels.paged_attention(wide[:, 2:8], *rest, 0.25), kernels.paged_attention(q, *rest, 0.25))


def test_caches_may_be_views_of_one_tensor() -> None:
    """As where equal layers share one: blocks lie further apart than their size."""
    contexts = [(Context.random(3, 40, 4, 2, 16, torch.float32), begin, 40) for begin in (30, 39)]
    q, k, v, *rest = inputs(contexts)
    apart_k, apart_v = torch.full((2, len(k), 3, *k.shape[1:]), torch.nan, device=DEVICE).unbind()
    apart_k[:, 1], apart_v[:, 1] = k, v
    got = kernels.paged_attention(q, apart_k[:, 1], apart_v[:, 1], *rest, 0.25)
    assert torch.equal(got, kernels.paged_attention(q, k, v, *rest, 0.25))


@pytest.mark.parametrize("split_tokens", [0, 64])
def test_nan_in_one_row_stays_there(split_tokens: int) -> None:
    sound, broken = (Context.random(seed, 130, 2, 1, 16, torch.float32) for seed in (4, 5))
    broken.k_SGD[100] = torch.nan
    tensors = inputs([(sound, 129, 130), (broken, 129, 130), (sound, 120, 130), (broken, 128, 130)])
    out = kernels.paged_attention(*tensors, 0.25, split_tokens=split_tokens)
    assert out[1].isnan().all()
    assert out[12:].isnan().all()
    assert out[[0, *range(2, 12)]].isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "window", "heads", "kv_heads", "head_size"),
    [
        (torch.float16, 0, 4, 2, 64),
        (torch.float16, 70, 4, 2, 64),
        (torch.float16, 70, 3, 1, 80),
        (torch.float32, 0, 3, 1, 80),
        (torch.float32, 70, 3, 1, 80),
    ],
)
def test_bits_do_not_depend_on_chunks_batch_or_blocks(
    dtype: torch.dtype, window: int, heads: int, kv_heads: int, head_size: int
) -> None:
    """140 tokens in parts of 64, decoded, in chunks that begin anywhere, and beside others."""
    length = 140
    context = Context.random(1, length, heads, kv_heads, head_size, dtype)
    other = Context.random(2, 90, heads, kv_heads, head_size, dtype)
    sinks = normal(3, heads)

    def attend(*rows: tuple[Context, int, int], block_size: int = 16) -> Tensor:
        return kernels.paged_attention(*inputs(list(rows), block_size), 0.11, window, sinks_H=sinks, split_tokens=64)

    whole = attend((context, 0, length))
    for begin, end in itertools.pairwise([0, 1, 64, 65, 127, 128, 139, length]):
        assert torch.equal(attend((context, begin, end)), whole[begin:end]), (begin, end)
    batched = attend((other, 0, 50), (context, 90, length), (other, 89, 90), (context, 70, 71), block_size=4)
    assert torch.equal(batched[50:100], whole[90:])
    assert torch.equal(batched[101], whole[70])


SPLITS = attention.splits


def test_splits_fill_the_last_wave() -> None:
    assert SPLITS(8, 264) in range(26, 33)
    assert SPLITS(264, 264) == 1
    assert SPLITS(270, 264) > 1
    assert SPLITS(100_000, 264) == 1
    for programs in range(1, 600):
        parts = SPLITS(programs, 264)
        waves = -(-programs * parts // 264)
        assert programs * parts / (264 * waves) > 0.5 or parts == 32 or programs < 9


def test_empty_splits_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three keys among 32 programs."""
    monkeypatch.setattr(attention, "splits", lambda programs, slots: 32)
    tensors = inputs([(Context.random(1, 3, 2, 1, 64, torch.float32), begin, 3) for begin in (2, 0)])
    close(kernels.paged_attention(*tensors, 0.125), reference.paged_attention(*tensors, 0.125))
