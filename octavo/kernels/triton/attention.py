"""Attention over the paged cache, for steps in which some rows decode and others compute a chunk of their prompt.

A program takes a tile of queries of one row: some tokens times all query heads that share a key/value head, so that a
key is read once for all of them. Rows of one token have small tiles (at least the 16 rows of a matrix instruction), all
others large ones: two launches, each leaving to the other what is the other's. Where tiles are too few to keep a GPU
busy, the context of each is split among several programs, and `_merge` adds up what they found. Grids depend on shapes
alone: lengths are read on the GPU, so a launch in a captured graph is right for any.

With `split_tokens` a query's result has the same bits in every batch and every chunk. All tiles then have one shape,
keys are taken in the same tiles from the beginning of the context, and contexts are split at multiples of
`split_tokens`, by programs where there is one token and in a loop otherwise; both add up in one order, and no product
and sum are fused into one rounding where another kernel might not.

T tokens, R rows, H query heads, G key/value heads, D head size, B block size, S splits; M and N: queries and keys of a
tile. Scores and their sums are float32, scores in units of log 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.gpu import Gpu, gpu

_LOG2_E = tl.constexpr(1.4426950408889634)
_MOST_SPLITS = 32


@triton.jit
def _row_of(place, query_start_ptr, rows, TOKENS: tl.constexpr, TILES: tl.constexpr):
    """The row that a tile or (TILES 0, TOKENS 1) a token belongs to: tiles of row r begin at start[r] // TOKENS + r."""
    low = tl.full([], 0, tl.int32)
    high = low + rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_start_ptr + middle) // TOKENS + middle * TILES <= place:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _add_up(peak, total, acc, peak_2, total_2, acc_2):
    """Both parts' sums relative to the larger peak. A part that saw nothing has peak -inf and changes no bit."""
    highest = tl.maximum(peak, peak_2)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp2(peak - base)
    weight_2 = tl.exp2(peak_2 - base)
    return highest, total * weight + total_2 * weight_2, acc * weight[:, None] + acc_2 * weight_2[:, None]


@triton.jit
def _load_tile(
    cache_ptr, place_N, column_D, inside_N, MASKED: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, DTYPE: tl.constexpr
):
    pointers = cache_ptr + place_N[:, None] + column_D[None, :]
    if MASKED:
        if D == D2:
            tile = tl.load(pointers, mask=inside_N[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=inside_N[:, None] & (column_D < D)[None, :], other=0.0)
    elif D == D2:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(column_D < D)[None, :], other=0.0)
    if cache_ptr.dtype.element_ty.primitive_bitwidth == 8:  # exact, and what GPUs convert 8 bits to
        tile = tile.to(tl.float16)
    return tile.to(DTYPE)


@triton.jit
def _attend_keys(
    peak,
    total,
    acc,
    q,
    position_M,
    begin,
    end,
    length,
    k_ptr,
    v_ptr,
    table_ptr,
    block_stride,
    scale,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    D2: tl.constexpr,
    N: tl.constexpr,
):
    """Takes keys begin … end-1 (begin a multiple of N) into the running softmax. Not MASKED: every query sees them."""
    column_D = tl.arange(0, D2)
    for first in range(begin, end, N):
        key_N = first + tl.arange(0, N)
        inside_N = key_N < length
        if B >= N:
            block = tl.load(table_ptr + first // B).to(tl.int64)
            place_N = block * block_stride + (key_N % B) * D
        elif MASKED:
            place_N = (
                tl.load(table_ptr + key_N // B, mask=inside_N, other=0).to(tl.int64) * block_stride + (key_N % B) * D
            )
        else:
            place_N = tl.load(table_ptr + key_N // B).to(tl.int64) * block_stride + (key_N % B) * D
        k = _load_tile(k_ptr, place_N, column_D, inside_N, MASKED, D, D2, q.dtype)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP > 0:
            score = (SOFTCAP * _LOG2_E) * (1 - 2 / (1 + tl.exp2(score)))
        if MASKED:
            seen = inside_N[None, :]
            if CAUSAL:
                seen = seen & (key_N[None, :] <= position_M[:, None])
            if WINDOW > 0:
                seen = seen & (key_N[None, :] > position_M[:, None] - WINDOW)
            score = tl.where(seen, score, float("-inf"))
        highest = tl.maximum(peak, tl.max(score, 1))
        base = highest
        if MASKED:  # a query may have seen no key yet, and -inf less -inf is no number
            base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = tl.exp2(score - base[:, None])
        decay = tl.exp2(peak - base)
        total = total * decay + tl.sum(weight, 1)
        v = _load_tile(v_ptr, place_N, column_D, inside_N, MASKED, D, D2, q.dtype)
        acc = tl.dot(weight.to(q.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = highest
    return peak, total, acc


@triton.jit
def _queries(query_start_ptr, seq_lens_ptr, rows, ONE_TOKEN: tl.constexpr, TOKENS: tl.constexpr):
    """This program's row, first token, number of tokens (none: another launch's), first position, and row's length."""
    if ONE_TOKEN:
        row = tl.program_id(0)
        tile = row * 0
        start = tl.load(query_start_ptr + row)
        token = start
        new = tl.load(query_start_ptr + row + 1) - start
        tokens = tl.where(new == 1, 1, 0)
    else:
        place = tl.num_programs(0) - 1 - tl.program_id(0)  # late tiles of a text see most keys: first come the longest
        row = _row_of(place, query_start_ptr, rows, TOKENS, 1)
        start = tl.load(query_start_ptr + row)
        tile = place - (start // TOKENS + row)
        token = start + tile * TOKENS
        new = tl.load(query_start_ptr + row + 1) - start
        tokens = tl.where(new == 1, 0, tl.minimum(start + new - token, TOKENS))
    length = tl.load(seq_lens_ptr + row)
    return row, token, tokens, length - new + tile * TOKENS, length


@triton.jit
def _keys(first_position, tokens, length, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, N: tl.constexpr):
    """Some query sees keys from `begin` to `end`, all see those from `all_begin` to `all_end`; in tiles but `end`."""
    end = length
    all_end = length
    if CAUSAL:
        end = first_position + tokens
        all_end = first_position + 1
    begin = length * 0
    all_begin = begin
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // N * N
        all_begin = tl.cdiv(tl.maximum(first_position + tokens - WINDOW, 0), N) * N
    return begin, all_begin, tl.maximum(all_end, 0) // N * N, end


@triton.jit(do_not_specialize=["rows", "table_stride"])  # they change from step to step and widen no load
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    sinks_ptr,
    out_ptr,
    part_ptr,
    part_peak_ptr,
    part_total_ptr,
    query_start_ptr,
    seq_lens_ptr,
    tables_ptr,
    rows,
    q_stride,
    block_stride,
    table_stride,
    scale,
    v_scale,
    ONE_TOKEN: tl.constexpr,
    SPLIT_TOKENS: tl.constexpr,
    PARTIAL: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
    D2: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """ONE_TOKEN: rows of one token, a program each; else all other rows, TOKENS tokens of one to a program.

    PARTIAL: programs write sums and peaks of their part of the context, for `_merge`, instead of the result.
    """
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    row, token, tokens, first_position, length = _queries(
        query_start_ptr, seq_lens_ptr, rows, ONE_TOKEN, 1 if ONE_TOKEN else M // GROUP
    )
    if tokens <= 0:
        return
    query_M = tl.arange(0, M)
    token_M = query_M // GROUP
    head_M = kv_head * GROUP + query_M % GROUP
    valid_M = token_M < tokens
    position_M = first_position + token_M
    column_D = tl.arange(0, D2)
    valid_MD = valid_M[:, None] & (column_D < D)[None, :]
    q = tl.load(
        q_ptr + (token + token_M).to(tl.int64)[:, None] * q_stride + head_M[:, None] * D + column_D[None, :],
        mask=valid_MD,
        other=0.0,
    )

    begin, all_begin, all_end, end = _keys(first_position, tokens, length, CAUSAL, WINDOW, N)
    if PARTIAL:
        size = SPLIT_TOKENS
        origin = 0
        if SPLIT_TOKENS == 0:
            size = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), N), splits) * N
            origin = begin
        begin = tl.maximum(begin, origin + split * size)
        end = tl.minimum(end, origin + (split + 1) * size)

    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D2], tl.float32)
    k_ptr += kv_head * (B * D)
    v_ptr += kv_head * (B * D)
    table_ptr = tables_ptr + row.to(tl.int64) * table_stride
    if SPLIT_TOKENS > 0:
        # One body for all tiles: another would be compiled to other roundings.
        for part in range(begin // SPLIT_TOKENS, tl.cdiv(end, SPLIT_TOKENS)):
            part_begin = tl.maximum(begin, part * SPLIT_TOKENS)
            part_end = tl.minimum(end, (part + 1) * SPLIT_TOKENS)
            part_peak, part_total, part_acc = _attend_keys(
                tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, D2], tl.float32),
                q, position_M, part_begin, part_end, length, k_ptr, v_ptr, table_ptr, block_stride, scale,
                True, CAUSAL, WINDOW, SOFTCAP, B, D, D2, N,
            )  # fmt: skip
            if PARTIAL:
                peak, total, acc = part_peak, part_total, part_acc
            else:
                peak, total, acc = _add_up(peak, total, acc, part_peak, part_total, part_acc)
    elif ONE_TOKEN:
        peak, total, acc = _attend_keys(
            peak, total, acc, q, position_M, begin, end, length, k_ptr, v_ptr, table_ptr, block_stride, scale,
            True, CAUSAL, WINDOW, SOFTCAP, B, D, D2, N,
        )  # fmt: skip
    else:
        all_begin = tl.minimum(tl.maximum(all_begin, begin), end)
        all_end = tl.minimum(tl.maximum(all_end, all_begin), end)
        if WINDOW > 0:
            peak, total, acc = _attend_keys(
                peak, total, acc, q, position_M, begin, all_begin, length, k_ptr, v_ptr, table_ptr, block_stride, scale,
                True, CAUSAL, WINDOW, SOFTCAP, B, D, D2, N,
            )  # fmt: skip
        peak, total, acc = _attend_keys(
            peak, total, acc, q, position_M, all_begin, all_end, length, k_ptr, v_ptr, table_ptr, block_stride, scale,
            False, CAUSAL, WINDOW, SOFTCAP, B, D, D2, N,
        )  # fmt: skip
        peak, total, acc = _attend_keys(
            peak, total, acc, q, position_M, all_end, end, length, k_ptr, v_ptr, table_ptr, block_stride, scale,
            True, CAUSAL, WINDOW, SOFTCAP, B, D, D2, N,
        )  # fmt: skip

    place_M = (token + token_M).to(tl.int64) * (G * GROUP) + head_M
    if PARTIAL:
        part_M = place_M * splits + split
        tl.store(part_peak_ptr + part_M, peak, mask=valid_M)
        tl.store(part_total_ptr + part_M, total, mask=valid_M)
        if end > begin:
            tl.store(part_ptr + part_M[:, None] * D2 + column_D[None, :], acc, mask=valid_M[:, None])
    else:
        out = _finish(peak, total, acc, sinks_ptr, head_M, valid_M, v_scale)
        tl.store(out_ptr + place_M[:, None] * D + column_D[None, :], out.to(out_ptr.dtype.element_ty), mask=valid_MD)


@triton.jit
def _finish(peak, total, acc, sinks_ptr, head_M, valid_M, v_scale):
    """What the queries get; zeros where one saw no key. A sink is one more score, of a key without a value."""
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head_M, mask=valid_M, other=0.0).to(tl.float32) * _LOG2_E
        peak, total, acc = _add_up(peak, total, acc, sink, tl.zeros_like(total) + 1.0, tl.zeros_like(acc))
    return acc * (v_scale / tl.where(total == 0, 1.0, total))[:, None]


@triton.jit(do_not_specialize=["rows", "splits"])
def _merge(
    out_ptr,
    sinks_ptr,
    part_ptr,
    part_peak_ptr,
    part_total_ptr,
    query_start_ptr,
    rows,
    splits,
    v_scale,
    ONE_TOKEN: tl.constexpr,
    IN_ORDER: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    D2: tl.constexpr,
    S2: tl.constexpr,
):
    """Adds up the parts of one query; of parts that saw no key nothing but the peak and the total was written."""
    head = tl.program_id(1)
    if ONE_TOKEN:
        row = tl.program_id(0)
        token = tl.load(query_start_ptr + row)
    else:
        token = tl.program_id(0)
        row = _row_of(token, query_start_ptr, rows, 1, 0)
    one = tl.load(query_start_ptr + row + 1) - tl.load(query_start_ptr + row) == 1
    if one != ONE_TOKEN:
        return
    place = token.to(tl.int64) * H + head
    column_D = tl.arange(0, D2)
    only = tl.arange(0, 1)
    if IN_ORDER:
        peak = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        acc = tl.zeros([1, D2], tl.float32)
        for split in tl.static_range(S2):  # unrolled, so that loads need not wait for sums
            part = place * splits + split + only
            exists = only + split < splits
            part_peak = tl.load(part_peak_ptr + part, mask=exists, other=float("-inf"))
            part_total = tl.load(part_total_ptr + part, mask=exists, other=0.0)
            seen = part_total != 0
            part_acc = tl.load(part_ptr + part[:, None] * D2 + column_D[None, :], mask=seen[:, None], other=0.0)
            peak, total, acc = _add_up(peak, total, acc, part_peak, part_total, part_acc)
    else:
        split_S = tl.arange(0, S2)
        part_S = place * splits + split_S
        peak_S = tl.load(part_peak_ptr + part_S, mask=split_S < splits, other=float("-inf"))
        total_S = tl.load(part_total_ptr + part_S, mask=split_S < splits, other=0.0)
        part = tl.load(part_ptr + part_S[:, None] * D2 + column_D[None, :], mask=(total_S != 0)[:, None], other=0.0)
        highest = tl.max(peak_S, 0)
        weight_S = tl.exp2(peak_S - tl.where(highest == float("-inf"), 0.0, highest))
        peak = highest + tl.zeros([1], tl.float32)
        total = tl.sum(total_S * weight_S, 0) + tl.zeros([1], tl.float32)
        acc = tl.sum(part * weight_S[:, None], 0)[None, :]
    out = _finish(peak, total, acc, sinks_ptr, head + only, only == 0, v_scale)
    tl.store(
        out_ptr + place * D + only[:, None] + column_D[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=(column_D < D)[None, :],
    )


class Tile(NamedTuple):
    """Queries and keys of a program's tile, and how it is run."""

    queries: int
    keys: int
    warps: int
    stages: int


class Shape(NamedTuple):
    """What a tile depends on."""

    group: int  # query heads of a key/value head
    head_size: int
    itemsize: int  # bytes of a query's number
    gpu: Gpu

    @property
    def width(self) -> int:
        """Bytes of a head, as tiles hold it."""
        return int(triton.next_power_of_2(self.head_size)) * self.itemsize

    @property
    def amd(self) -> bool:
        return self.gpu.arch.startswith("gfx")


def _float32_tile(shape: Shape) -> Tile:
    """For all rows: without matrix instructions, products of larger tiles take more registers than there are."""
    return Tile(max(16, triton.next_power_of_2(shape.group)), 32 if shape.width <= 512 else 16, 8, 2)


def small_tile(shape: Shape) -> Tile:
    """For rows of one token: what counts is how many bytes of keys and values are on their way."""
    if shape.itemsize == 4:
        return _float32_tile(shape)
    queries = max(16, triton.next_power_of_2(shape.group))
    keys = min(max(16384 // shape.width, 16), 64)
    return Tile(queries, keys, 4, 2 if shape.amd else 5 if shape.width <= 512 else 3)


def large_tile(shape: Shape) -> Tile:
    """For rows of several tokens: what counts is that matrix instructions find their operands."""
    if shape.itemsize == 4:
        return _float32_tile(shape)
    wide = shape.width > 256
    queries = max(64 if wide else 128, triton.next_power_of_2(shape.group))
    if shape.amd:
        return Tile(queries, 32 if wide else 64, 4, 2)
    return Tile(queries, 32 if wide else 64, 8, 2 if shape.gpu.sums_share_registers or wide else 3)


def invariant_tile(shape: Shape) -> Tile:
    """For rows of any number of tokens, since other shapes add in other orders."""
    if shape.itemsize == 4:
        return _float32_tile(shape)
    queries = max(64, triton.next_power_of_2(shape.group))
    return Tile(queries, 32 if shape.width > 128 else 64, 4 if shape.amd else 8, 2)


def splits(programs: int, slots: int) -> int:
    """Into how many parts to split each of so many programs' work, with room for `slots` programs at a time.

    The fewest with which the last wave is nearly as full as with any.
    """
    if programs >= 2 * slots:
        return 1
    use = {parts: programs * parts / (-(-programs * parts // slots) * slots) for parts in range(1, _MOST_SPLITS + 1)}
    return min(parts for parts, share in use.items() if share >= 0.85 * max(use.values()))


class _Inputs(NamedTuple):
    """The arguments of `paged_attention`, as both launches take them."""

    q_THD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    query_start: Tensor
    seq_lens_R: Tensor
    block_tables: Tensor
    scale: float
    window: int
    softcap: float
    causal: bool
    sinks_H: Tensor | None
    v_scale: float
    split_tokens: int


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    split_tokens: int = 0,
) -> Tensor:
    tokens, heads, head_size = q_THD.shape
    rows, kv_heads = seq_lens_R.size(0), k_cache.size(1)
    assert q_THD.stride()[1:] == (head_size, 1)
    assert k_cache.stride() == v_cache.stride()
    assert k_cache[0].is_contiguous()
    assert block_tables.stride(1) == 1
    scale = scale * k_scale * _LOG2_E.value * (2 / softcap if softcap else 1)
    inputs = _Inputs(
        q_THD, k_cache, v_cache, query_start, seq_lens_R, block_tables, scale, window if causal else 0, softcap,
        causal, sinks_H, v_scale, split_tokens,
    )  # fmt: skip
    out_THD = torch.empty((tokens, heads, head_size), dtype=q_THD.dtype, device=q_THD.device)
    shape = Shape(heads // kv_heads, head_size, q_THD.element_size(), gpu(q_THD.device))
    invariant = invariant_tile(shape) if split_tokens else None
    if tokens == rows or rows > 1:
        _launch(inputs, out_THD, invariant or small_tile(shape), one_token=True)
    if tokens != rows:
        _launch(inputs, out_THD, invariant or large_tile(shape), one_token=False)
    return out_THD


def _launch(inputs: _Inputs, out_THD: Tensor, tile: Tile, one_token: bool) -> None:
    tokens, heads, head_size = out_THD.shape
    _, kv_heads, block_size, _ = inputs.k_cache.shape
    rows, device = inputs.seq_lens_R.size(0), out_THD.device
    group, padded = heads // kv_heads, max(16, triton.next_power_of_2(head_size))
    tiles = rows if one_token else tokens // (tile.queries // group) + rows
    if not inputs.split_tokens:
        parts = splits(tiles * kv_heads, 2 * gpu(device).multiprocessors)
    elif one_token:
        parts = max(1, -(-inputs.block_tables.size(1) * block_size // inputs.split_tokens))
    else:
        parts = 1
    split = parts > 1
    part = torch.empty((tokens, heads, parts, padded) if split else (1,), dtype=torch.float32, device=device)
    peaks, totals = torch.empty((2, tokens, heads, parts) if split else (2, 1), dtype=torch.float32, device=device)
    _attend[(tiles, kv_heads, parts)](
        inputs.q_THD,
        inputs.k_cache,
        inputs.v_cache,
        inputs.sinks_H,
        out_THD,
        part,
        peaks,
        totals,
        inputs.query_start,
        inputs.seq_lens_R,
        inputs.block_tables,
        rows,
        inputs.q_THD.stride(0),
        inputs.k_cache.stride(0),
        inputs.block_tables.stride(0),
        inputs.scale,
        inputs.v_scale,
        ONE_TOKEN=one_token,
        SPLIT_TOKENS=inputs.split_tokens,
        PARTIAL=split,
        CAUSAL=inputs.causal,
        WINDOW=inputs.window,
        SOFTCAP=inputs.softcap,
        G=kv_heads,
        GROUP=group,
        B=block_size,
        D=head_size,
        D2=padded,
        M=tile.queries,
        N=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=not inputs.split_tokens,
    )
    if not split:
        return
    _merge[(rows if one_token else tokens, heads)](
        out_THD,
        inputs.sinks_H,
        part,
        peaks,
        totals,
        inputs.query_start,
        rows,
        parts,
        inputs.v_scale,
        ONE_TOKEN=one_token,
        IN_ORDER=inputs.split_tokens > 0,
        H=heads,
        D=head_size,
        D2=padded,
        S2=triton.next_power_of_2(parts),
        num_warps=4,
        enable_fp_fusion=not inputs.split_tokens,
    )
