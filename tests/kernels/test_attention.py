"""Compiled attention against plain torch, and its promise: a row's bits depend on the row alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged import Context, paged

from octavo.kernels import cpu, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
FIXTURES = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    cpu.use_threads(count)


@FIXTURES
@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 150)), min_size=1, max_size=4),
    group=st.sampled_from([1, 2, 3, 8, 31]),
    kv_heads=st.integers(1, 3),
    head_size=st.sampled_from([2, 8, 16, 20, 64, 80, 128]),
    block_size=st.sampled_from([1, 4, 16, 128]),
    window=st.sampled_from([0, 1, 17, 64, 100, None]),
    softcap=st.sampled_from([0.0, 1.5]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_agrees_with_plain_torch(
    isa: str,
    rows: list[tuple[int, int]],
    group: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    window: int | None,
    softcap: float,
    dtype: torch.dtype,
) -> None:
    """Window None: every query sees the whole row."""
    contexts = [
        (Context.random(seed, new + past, group * kv_heads, kv_heads, head_size, dtype), past, new + past)
        for seed, (new, past) in enumerate(rows)
    ]
    inputs = paged(contexts, block_size)
    scale = head_size**-0.5
    seen = (window or 0, softcap, window is not None)
    got = cpu.compiled.paged_attention(*inputs, scale, *seen)
    expected = reference.paged_attention(*inputs, scale, *seen)
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("window", [0, 70, 600])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size"), [(9, 3, 64), (4, 1, 20)])
def test_bits_do_not_depend_on_chunks_batch_blocks_or_threads(
    isa: str, threads: None, dtype: torch.dtype, window: int, heads: int, kv_heads: int, head_size: int
) -> None:
    """1,300 tokens: three splits, many tiles and chunks."""
    length = 1300
    context = Context.random(1, length, heads, kv_heads, head_size, dtype)
    other = Context.random(2, 90, heads, kv_heads, head_size, dtype)

    def attend(*rows: tuple[Context, int, int], block_size: int = 16) -> torch.Tensor:
        return cpu.compiled.paged_attention(*paged(list(rows), block_size, seed=len(rows)), 0.11, window, 0.0)

    whole = attend((context, 0, length))
    cuts = [0, 1, 8, 333, 334, 1290, 1299, length]
    for begin, end in itertools.pairwise(cuts):
        assert torch.equal(attend((context, begin, end)), whole[begin:end])
    batched = attend((other, 0, 50), (context, 1200, length), (other, 89, 90), block_size=4)
    assert torch.equal(batched[50:150], whole[1200:])
    cpu.use_threads(1)
    assert torch.equal(attend((context, 0, length)), whole)
    assert torch.equal(attend((context, 1299, length)), whole[1299:])


def test_bits_of_a_whole_text_do_not_depend_on_batch_blocks_or_threads(isa: str, threads: None) -> None:
    context = Context.random(8, 600, 4, 4, 32, torch.bfloat16)
    other = Context.random(9, 90, 4, 4, 32, torch.bfloat16)

    def attend(*contexts: Context, block_size: int = 16) -> torch.Tensor:
        rows = [(each, 0, len(each.q_SHD)) for each in contexts]
        return cpu.compiled.paged_attention(*paged(rows, block_size, seed=len(rows)), 0.11, causal=False)

    whole = attend(context)
    assert torch.equal(attend(other, context, other, block_size=4)[90:690], whole)
    cpu.use_threads(1)
    assert torch.equal(attend(context), whole)


def test_queries_may_be_a_view_of_a_wider_row(isa: str) -> None:
    context = Context.random(3, 40, 6, 2, 16, torch.float32)
    q, *rest = paged([(context, 30, 40)], 8)
    wide = torch.full((10, 11, 16), torch.nan)
    wide[:, 2:8] = q
    assert torch.equal(
        cpu.compiled.paged_attention(wide[:, 2:8], *rest, 0.25), cpu.compiled.paged_attention(q, *rest, 0.25)
    )


def test_nan_in_one_row_stays_there(isa: str) -> None:
    sound, broken = (Context.random(seed, 70, 2, 1, 16, torch.float32) for seed in (4, 5))
    broken.k_SGD[3] = torch.nan
    out = cpu.compiled.paged_attention(*paged([(sound, 69, 70), (broken, 69, 70), (sound, 68, 69)], 16), 0.25)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_write_kv_touches_its_slots_only(isa: str) -> None:
    generator = torch.Generator().manual_seed(6)
    for dtype in TOLERANCE:
        qkv = torch.randn(9, 10, 12, generator=generator).to(dtype)
        k, v = qkv[:, 4:7], qkv[:, 7:10]
        slots = torch.randperm(40, generator=generator)[:9]
        got, expected = torch.zeros(2, 2, 10, 3, 4, 12, dtype=dtype)
        cpu.compiled.write_kv(k, v, got[0], got[1], slots)
        reference.write_kv(k, v, expected[0], expected[1], slots)
        assert torch.equal(got, expected)
        assert got.count_nonzero() == 2 * 9 * 3 * 12


def test_nan_in_a_late_key_is_not_forgotten_between_splits(isa: str) -> None:
    for length, bad in ((576, 575), (1088, 1087), (1088, 1030)):
        context = Context.random(7, length, 1, 1, 64, torch.float32)
        context.k_SGD[bad] = torch.nan
        assert cpu.compiled.paged_attention(*paged([(context, length - 1, length)], 16), 0.125).isnan().all()
