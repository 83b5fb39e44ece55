"""Matrix products that torch does not have: by 4-bit weights, by 8-bit codes on both sides, and with the same bits
for a row in any batch.

M rows (tokens), K inner and N outer features, S slices of K, G columns that share a scale. Where a step has few rows a
product of a whole tile would leave most of a GPU idle: then K is cut into slices, each with its own programs, and a
second kernel adds up their float32 sums in order. No atomics: a product says the same bits each time. Tiles are plain
functions of shapes; N and K are constants of a kernel, as a model has few of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.triton.gpu import KiB, gpu

_DEQUANTIZED_ROWS = 256  # from so many rows on a dense product is worth writing the weights out
_CHUNK = 1024  # columns that an invariant product adds up at a time


class Tile(NamedTuple):
    rows: int
    columns: int
    slices: int
    warps: int
    stages: int


@triton.jit(do_not_specialize=["rows"])
def _finish_kernel(
    sums_ptr,
    row_scale_ptr,
    column_scale_ptr,
    bias_ptr,
    out_ptr,
    rows,
    SCALES: tl.constexpr,
    BIAS: tl.constexpr,
    N: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[m, n] = (Σ of the slices in order) · scales + bias."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    total = tl.load(sums_ptr + row * N + column, mask=inside)
    for number in tl.static_range(1, SLICES):  # unrolled, so that loads need not wait for sums
        total += tl.load(sums_ptr + (number * rows.to(tl.int64) + row) * N + column, mask=inside)
    y = total.to(tl.float32)
    if SCALES:
        y = y * tl.load(row_scale_ptr + row) * tl.load(column_scale_ptr + column, mask=inside)
    if BIAS:
        y += tl.load(bias_ptr + column, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * N + column, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _unpacked(packed, x, MINIMUMS: tl.constexpr, PTX: tl.constexpr):
    """Low and high codes of bytes as numbers of the type of x; without minimums less 8."""
    if PTX != "":
        left, right = tl.inline_asm_elementwise(
            PTX, "=r,=r,=r,=r,r", [packed], dtype=(x.dtype, x.dtype), is_pure=True, pack=4
        )
    else:
        left, right = (packed & 15).to(tl.int8), (packed >> 4).to(tl.int8)
        if not MINIMUMS:
            left -= 8
            right -= 8
        left, right = left.to(x.dtype), right.to(x.dtype)
    return left, right


@triton.jit(do_not_specialize=["rows"])
def _grouped_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    minimums_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    rows,
    MINIMUMS: tl.constexpr,
    BIAS: tl.constexpr,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SLICES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PTX: tl.constexpr,
):
    """A tile of W x^T, so that the unpacked weights are the operand that may stay in registers.

    Scales meet the sums of a group, not its weights: codes are exact in 16 bits.
    """
    HALF: tl.constexpr = GROUP // 2
    GROUPS: tl.constexpr = K // GROUP
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    slice_number = tl.program_id(2)
    n_inside, m_inside = n < N, m < rows
    each: tl.constexpr = (GROUPS + SLICES - 1) // SLICES
    first = slice_number * each
    last = tl.minimum(first + each, GROUPS)
    half = tl.arange(0, HALF)
    n_long = n.to(tl.int64)
    codes_place = codes_ptr + n_long[:, None] * (K // 2) + half[None, :]
    x_place = x_ptr + m.to(tl.int64)[None, :] * x_stride + half[:, None]
    total = tl.zeros([BN, BM], tl.float32)
    for group in range(first, last):
        packed = tl.load(codes_place + group * HALF, mask=n_inside[:, None], other=0)
        low = tl.load(x_place + group * GROUP, mask=m_inside[None, :], other=0.0)
        high = tl.load(x_place + (group * GROUP + HALF), mask=m_inside[None, :], other=0.0)
        scale = tl.load(scales_ptr + n_long * GROUPS + group, mask=n_inside, other=0.0).to(tl.float32)
        left, right = _unpacked(packed, low, MINIMUMS, PTX)
        part = tl.dot(left, low, input_precision="ieee")
        part = tl.dot(right, high, acc=part, input_precision="ieee")
        total += part * scale[:, None]
        if MINIMUMS:
            minimum = tl.load(minimums_ptr + n_long * GROUPS + group, mask=n_inside, other=0.0).to(tl.float32)
            if BM <= 32 and low.dtype != tl.float32:  # where matrix instructions wait for weights, so can a sum by them
                ones = tl.full([BN, HALF], 1.0, low.dtype)
                sums = tl.dot(ones, low)
                sums = tl.dot(ones, high, acc=sums)
            else:
                sums = (tl.sum(low.to(tl.float32), 0) + tl.sum(high.to(tl.float32), 0))[None, :]
            total += minimum[:, None] * sums
    inside = n_inside[:, None] & m_inside[None, :]
    place = out_ptr + (slice_number * rows.to(tl.int64) + m[None, :]) * N + n[:, None]
    if SLICES == 1 and BIAS:
        total += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _expand_kernel(
    codes_ptr,
    scales_ptr,
    minimums_ptr,
    out_ptr,
    MINIMUMS: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One row's groups, GROUPS of them at a time, as numbers."""
    row = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = GROUP // 2
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None]
    half = tl.arange(0, HALF)[None, :]
    inside = group < K // GROUP
    packed = tl.load(codes_ptr + row * (K // 2) + group * HALF + half, mask=inside, other=0)
    scale = tl.load(scales_ptr + row * (K // GROUP) + group, mask=inside, other=0.0).to(tl.float32)
    low, high = (packed & 15).to(tl.float32), (packed >> 4).to(tl.float32)
    if MINIMUMS:
        minimum = tl.load(minimums_ptr + row * (K // GROUP) + group, mask=inside, other=0.0).to(tl.float32)
        low, high = low * scale + minimum, high * scale + minimum
    else:
        low, high = (low - 8.0) * scale, (high - 8.0) * scale
    place = out_ptr + row * K + group * GROUP + half
    tl.store(place, low.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(place + HALF, high.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quantize_kernel(
    x_ptr, codes_ptr, scale_ptr, x_stride, MOST: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < K
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    scaled = x * tl.div_rn(tl.full([], MOST, tl.float32), tl.where(largest > 0, largest, 1.0))
    if WHOLE:  # to the nearest whole number, halves to the even one, as adding and taking away this one rounds
        scaled = (scaled + 12582912.0) - 12582912.0
    tl.store(codes_ptr + row * K + column, scaled.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, largest / MOST)


@triton.jit(do_not_specialize=["rows"])
def _scaled_kernel(
    x_ptr,
    weight_ptr,
    row_scale_ptr,
    column_scale_ptr,
    bias_ptr,
    out_ptr,
    rows,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SLICES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    slice_number = tl.program_id(2)
    m_inside, n_inside = m < rows, n < N
    steps: tl.constexpr = (K + BK - 1) // BK
    each: tl.constexpr = (steps + SLICES - 1) // SLICES
    first = slice_number * each
    last = tl.minimum(first + each, steps)
    k = tl.arange(0, BK)
    x_place = x_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    weight_place = weight_ptr + n.to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros([BM, BN], tl.int32 if WHOLE else tl.float32)
    for step in range(first, last):
        if K % BK == 0:
            x = tl.load(x_place + step * BK, mask=m_inside[:, None], other=0.0)
            weight = tl.load(weight_place + step * BK, mask=n_inside[None, :], other=0.0)
        else:
            there = k + step * BK < K
            x = tl.load(x_place + step * BK, mask=m_inside[:, None] & there[None, :], other=0.0)
            weight = tl.load(weight_place + step * BK, mask=there[:, None] & n_inside[None, :], other=0.0)
        if WHOLE:
            total = tl.dot(x, weight, acc=total, out_dtype=tl.int32)
        else:
            total = tl.dot(x, weight, acc=total, max_num_imprecise_acc=BK)
    inside = m_inside[:, None] & n_inside[None, :]
    place = out_ptr + (slice_number * rows.to(tl.int64) + m[:, None]) * N + n[None, :]
    if SLICES > 1:
        tl.store(place, total, mask=inside)
    else:
        y = total.to(tl.float32) * tl.load(row_scale_ptr + m, mask=m_inside, other=0.0)[:, None]
        y *= tl.load(column_scale_ptr + n, mask=n_inside, other=0.0)[None, :]
        if BIAS:
            y += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[None, :]
        tl.store(place, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _invariant_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    rows,
    BIAS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SLICES: tl.constexpr,
    CHUNK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Sums of CHUNK columns each, added in order: here, or by the finishing kernel if each has a program of its own."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    slice_number = tl.program_id(2)
    m_inside, n_inside = m < rows, n < N
    chunks: tl.constexpr = (K + CHUNK - 1) // CHUNK
    each: tl.constexpr = chunks if SLICES == 1 else 1
    k = tl.arange(0, BK)
    x_place = x_ptr + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_place = weight_ptr + n.to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros([BM, BN], tl.float32)
    for number in range(each):
        begin = (slice_number * each + number) * CHUNK
        part = tl.zeros([BM, BN], tl.float32)
        for column in range(begin, tl.minimum(begin + CHUNK, K), BK):
            if K % BK == 0:
                x = tl.load(x_place + column, mask=m_inside[:, None], other=0.0)
                weight = tl.load(weight_place + column, mask=n_inside[None, :], other=0.0)
            else:
                there = k + column < K
                x = tl.load(x_place + column, mask=m_inside[:, None] & there[None, :], other=0.0)
                weight = tl.load(weight_place + column, mask=there[:, None] & n_inside[None, :], other=0.0)
            part = tl.dot(x, weight, acc=part, input_precision="ieee")
        total += part
    inside = m_inside[:, None] & n_inside[None, :]
    if SLICES == 1 and BIAS:
        total += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + (slice_number * rows.to(tl.int64) + m[:, None]) * N + n[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside)


def _slices(tiles: int, most: int, device: torch.device, programs: int = 2) -> int:
    """So many that about every multiprocessor has its programs, a power of two for few different kernels."""
    wanted = max(programs * gpu(device).multiprocessors // tiles, 1)
    return min(1 << (wanted.bit_length() - 1), most, 16)


def grouped_tile(rows: int, outer: int, groups: int, device: torch.device, single: bool = False) -> Tile:
    """Unpacked weights take registers: a tile is smaller where sums lie there, too."""
    if single:
        return Tile(16, 64, 1, 4, 2)  # without matrix instructions larger tiles find no room
    if rows > 64:
        columns, warps = (64, 4) if gpu(device).sums_share_registers else (128, 8)
        tiles = 2 * triton.cdiv(outer, columns)  # whatever the rows: each number of slices is a kernel of its own
        return Tile(64, columns, _slices(tiles, max(groups // 8, 1), device), warps, 3)
    if rows > 32:
        return Tile(64, 64, _slices(triton.cdiv(outer, 64), max(groups // 4, 1), device), 8, 3)
    # Two warps have instructions that wait for weights in registers; those of warp groups want them in memory again.
    slices = _slices(triton.cdiv(outer, 64), max(groups // 4, 1), device, 8 if rows <= 8 else 4)
    return Tile(_rows(rows), 64, slices, 4 if gpu(device).warp_size == 64 else 2, 4)


def scaled_tile(rows: int, outer: int, inner: int, device: torch.device) -> Tile:
    if rows > 64:
        tiles = triton.cdiv(outer, 128) * triton.cdiv(rows, 128)
        slices = _slices(tiles, max(inner // 1024, 1), device, 1) if rows <= 256 else 1  # few tiles leave a GPU idle
        return Tile(128, 128, slices, 8, _stages(device))
    slices = _slices(triton.cdiv(outer, 64), max(inner // 512, 1), device)
    return Tile(_rows(rows), 64, slices, 4, 4 if rows <= 32 else 3)


def _rows(rows: int) -> int:
    return 16 if rows <= 16 else 32 if rows <= 32 else 64


def _stages(device: torch.device) -> int:
    return 3 if gpu(device).shared_memory > 96 * KiB else 2


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False) -> Tensor:
    """torch's own product; in full precision with no float32 copy of the weights, which torch knows for NVIDIA only."""
    if not full_precision or x_MK.dtype is torch.float32 or not x_MK.is_cuda:
        return reference.linear(x_MK, weight_NK, bias_N, full_precision)
    if torch.version.hip is not None:
        return invariant_linear(x_MK, weight_NK, bias_N, full_precision)
    y_MN = torch.mm(x_MK, weight_NK.t(), out_dtype=torch.float32)
    return y_MN if bias_N is None else y_MN + bias_N


def group_linear(
    x_MK: Tensor,
    codes: Tensor,
    scales: Tensor,
    minimums: Tensor | None = None,
    bias_N: Tensor | None = None,
    full_precision: bool = False,
) -> Tensor:
    (rows, inner), outer = x_MK.shape, codes.size(0)
    assert x_MK.stride(1) == 1
    assert codes.is_contiguous()
    assert scales.is_contiguous()
    if rows >= _DEQUANTIZED_ROWS:
        return linear(x_MK, _expanded(codes, scales, minimums, x_MK.dtype), bias_N, full_precision)
    groups = scales.size(1)
    tile = grouped_tile(rows, outer, groups, x_MK.device, x_MK.dtype is torch.float32)
    out_MN, sums = _room(x_MK, outer, tile.slices, torch.float32, full_precision)
    _grouped_kernel[(triton.cdiv(outer, tile.columns), triton.cdiv(rows, tile.rows), tile.slices)](
        x_MK,
        codes,
        scales,
        scales if minimums is None else minimums,
        scales if bias_N is None else bias_N,
        sums,
        x_MK.stride(0),
        rows,
        MINIMUMS=minimums is not None,
        BIAS=bias_N is not None,
        GROUP=inner // groups,
        N=outer,
        K=inner,
        SLICES=tile.slices,
        BM=tile.rows,
        BN=tile.columns,
        PTX=_unpacking(x_MK, minimums is not None),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if tile.slices > 1:
        _finish(sums, None, None, bias_N, out_MN, tile.slices)
    return out_MN


def _unpacking(x_MK: Tensor, minimums: bool) -> str:
    """NVIDIA's instructions from four bytes to twice four 16-bit numbers, two at a time; "": Triton's own.

    A code put below the right exponent is 128 (bfloat16) or 1024 (float16) more than itself.
    """
    if x_MK.dtype is torch.float32 or x_MK.device.type == "cpu" or not gpu(x_MK.device).arch.startswith("sm_"):
        return ""
    kind, high_byte, one, less = (
        ("f16x2", 0x64, 0x3C00, 0xE400) if x_MK.dtype is torch.float16 else ("bf16x2", 0x43, 0x3F80, 0xC300)
    )
    less += 0 if minimums else 8
    lines = [
        ".reg .b32 low, high, one, less;",
        f"mov.b32 one, {0x00010001 * one:#010x};",
        f"mov.b32 less, {0x00010001 * less:#010x};",
        "and.b32 low, $4, 0x0f0f0f0f;",
        "shr.b32 high, $4, 4;",
        "and.b32 high, high, 0x0f0f0f0f;",
    ]
    for number in range(4):
        source, selector = ("low", "high")[number // 2], ("0x4140", "0x4342")[number % 2]
        lines += [
            f"prmt.b32 ${number}, {source}, {0x01010101 * high_byte:#010x}, {selector};",
            f"fma.rn.{kind} ${number}, ${number}, one, less;",
        ]
    return "{ " + " ".join(lines) + " }"


def _expanded(codes: Tensor, scales: Tensor, minimums: Tensor | None, dtype: torch.dtype) -> Tensor:
    outer, inner, groups = codes.size(0), 2 * codes.size(1), scales.size(1)
    out = torch.empty((outer, inner), dtype=dtype, device=codes.device)
    at_once = 2048 * groups // inner
    _expand_kernel[(outer, triton.cdiv(groups, at_once))](
        codes,
        scales,
        scales if minimums is None else minimums,
        out,
        MINIMUMS=minimums is not None,
        GROUP=inner // groups,
        K=inner,
        GROUPS=at_once,
    )
    return out


def scaled_linear(
    x_MK: Tensor, codes_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    (rows, inner), outer = x_MK.shape, codes_NK.size(0)
    assert codes_NK.is_contiguous()
    x_codes, x_scale = quantize_rows(x_MK, codes_NK.dtype)
    if _cublas_takes(codes_NK, rows) and not full_precision:
        return torch._scaled_mm(
            x_codes,
            codes_NK.t(),
            scale_a=x_scale[:, None],
            scale_b=scales_N[None, :],
            bias=None if bias_N is None else bias_N.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
        ).to(x_MK.dtype)
    whole = codes_NK.dtype is torch.int8
    tile = scaled_tile(rows, outer, inner, x_MK.device)
    out_MN, sums = _room(x_MK, outer, tile.slices, torch.int32 if whole else torch.float32, full_precision)
    _scaled_kernel[(triton.cdiv(outer, tile.columns), triton.cdiv(rows, tile.rows), tile.slices)](
        x_codes,
        codes_NK,
        x_scale,
        scales_N,
        scales_N if bias_N is None else bias_N,
        sums,
        rows,
        WHOLE=whole,
        BIAS=bias_N is not None,
        N=outer,
        K=inner,
        SLICES=tile.slices,
        BM=tile.rows,
        BN=tile.columns,
        BK=128,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=False,  # or scales and bias might round here otherwise than where slices are added up
    )
    if tile.slices > 1:
        _finish(sums, x_scale, scales_N, bias_N, out_MN, tile.slices)
    return out_MN


def _cublas_takes(codes_NK: Tensor, rows: int) -> bool:
    """Whether torch's product by 8-bit floats, with a scale for each row and column, exists here and is worth it."""
    if codes_NK.dtype is torch.int8 or not codes_NK.is_cuda or rows <= 32:
        return False
    sizes_fit = all(size % 16 == 0 for size in codes_NK.shape)
    return sizes_fit and gpu(codes_NK.device).arch in ("sm_90", "sm_100", "gfx942", "gfx950")


def quantize_rows(x_MK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [M, K] and float32 scales [M]: x = scale · code, the largest of a row at the end of the codes' range."""
    rows, inner = x_MK.shape
    assert x_MK.stride(1) == 1
    codes = torch.empty((rows, inner), dtype=dtype, device=x_MK.device)
    scale = torch.empty((rows,), dtype=torch.float32, device=x_MK.device)
    block = triton.next_power_of_2(inner)
    _quantize_kernel[(rows,)](
        x_MK,
        codes,
        scale,
        x_MK.stride(0),
        MOST=reference.LEVELS[dtype],
        K=inner,
        BLOCK=block,
        WHOLE=dtype is torch.int8,
        num_warps=min(max(block // 1024, 1), 16),
    )
    return codes, scale


def invariant_linear(
    x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    (rows, inner), outer = x_MK.shape, weight_NK.size(0)
    assert x_MK.stride(1) == 1
    assert weight_NK.is_contiguous()
    tile = (
        Tile(64, 64, 1, 8, 3)
        if x_MK.dtype is torch.float32
        else Tile(64, 128, 1, 8 if gpu(x_MK.device).sums_share_registers else 4, 3)
    )
    grid = triton.cdiv(outer, tile.columns), triton.cdiv(rows, tile.rows)
    slices = triton.cdiv(inner, _CHUNK) if grid[0] * grid[1] < 2 * gpu(x_MK.device).multiprocessors else 1
    out_MN, sums = _room(x_MK, outer, slices, torch.float32, full_precision)
    _invariant_kernel[(*grid, slices)](
        x_MK,
        weight_NK,
        weight_NK if bias_N is None else bias_N,
        sums,
        x_MK.stride(0),
        rows,
        BIAS=bias_N is not None,
        N=outer,
        K=inner,
        SLICES=slices,
        CHUNK=_CHUNK,
        BM=tile.rows,
        BN=tile.columns,
        BK=32 if x_MK.dtype is torch.float32 else 64,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if slices > 1:
        _finish(sums, None, None, bias_N, out_MN, slices)
    return out_MN


def _room(x_MK: Tensor, outer: int, slices: int, sums: torch.dtype, full_precision: bool) -> tuple[Tensor, Tensor]:
    """The product, and where the first kernel writes: there, or the sums of slices."""
    rows = x_MK.size(0)
    out_MN = torch.empty((rows, outer), dtype=torch.float32 if full_precision else x_MK.dtype, device=x_MK.device)
    if slices == 1:
        return out_MN, out_MN
    return out_MN, torch.empty((slices, rows, outer), dtype=sums, device=x_MK.device)


def _finish(
    sums: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    bias_N: Tensor | None,
    out_MN: Tensor,
    slices: int,
) -> None:
    rows, outer = out_MN.shape
    _finish_kernel[(triton.cdiv(outer, 512), rows)](
        sums,
        sums if row_scale is None else row_scale,
        sums if column_scale is None else column_scale,
        sums if bias_N is None else bias_N,
        out_MN,
        rows,
        SCALES=row_scale is not None,
        BIAS=bias_N is not None,
        N=outer,
        SLICES=slices,
        BLOCK=512,
        enable_fp_fusion=False,
    )
