"""What happens to q, k and v between projection and attention, in one kernel: head norm, turn, the write to the cache.

T tokens, H query heads, G key/value heads, D head size, B block size. A program takes some heads of a token, as two
tiles with the halves that turn together. How heads are cut into programs depends on the model alone, so that a token's
bits never depend on its neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 1024  # of a program: 16 bytes a thread and load of a 16-bit type, with a warp for every 512


@triton.jit
def _as_cached(x, inverse_scale, LIMIT: tl.constexpr):
    """x as an 8-bit cache keeps it, before it is rounded: scaled and saturated; NaN stays. LIMIT 0: as it is."""
    if LIMIT > 0:
        x = x.to(tl.float32) * inverse_scale
        x = tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))
    return x


@triton.jit
def _load_halves(place, inside, HALF: tl.constexpr):
    return tl.load(place, mask=inside, other=0.0), tl.load(place + HALF, mask=inside, other=0.0)


@triton.jit
def _store_halves(place, x, y, inside, HALF: tl.constexpr):
    tl.store(place, x.to(place.dtype.element_ty), mask=inside)
    tl.store(place + HALF, y.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _turned(place, inside, cos, sin, weight_ptr, column, eps, NORM: tl.constexpr, HALF: tl.constexpr):
    """The halves of some heads, turned, in their own dtype; with NORM each head is normed first."""
    x, y = _load_halves(place, inside, HALF)
    x, y = x.to(tl.float32), y.to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * HALF) + eps)[:, None]
        x_weight, y_weight = _load_halves(weight_ptr + column, column < HALF, HALF)
        x, y = x * scale * x_weight[None, :], y * scale * y_weight[None, :]
    x, y = x * cos - y * sin, y * cos + x * sin
    return x.to(place.dtype.element_ty), y.to(place.dtype.element_ty)


@triton.jit
def _rotary_and_write_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    table_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_stride,
    k_stride,
    v_stride,
    eps,
    k_inverse_scale,
    v_inverse_scale,
    NORM: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    HALF: tl.constexpr,
    B: tl.constexpr,
    LIMIT: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """HEADS heads of a token: of q, turned in place, or of k and v, written to the cache."""
    Q_TILES: tl.constexpr = (H + HEADS - 1) // HEADS
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    angles = table_ptr + tl.load(positions_ptr + token) * (2 * HALF) + column
    cos, sin = _load_halves(angles, column < HALF, HALF)
    cos, sin = cos[None, :], sin[None, :]
    if tile < Q_TILES:
        head = tile * HEADS + tl.arange(0, HEADS)
        inside = (head < H)[:, None] & (column < HALF)[None, :]
        q_place = q_ptr + token * q_stride + head[:, None] * (2 * HALF) + column[None, :]
        q_x, q_y = _turned(q_place, inside, cos, sin, q_weight_ptr, column, eps, NORM, HALF)
        _store_halves(q_place, q_x, q_y, inside, HALF)
    else:
        head = (tile - Q_TILES) * HEADS + tl.arange(0, HEADS)
        slot = tl.load(slots_ptr + token)
        inside = (head < tl.where(slot < 0, 0, G))[:, None] & (column < HALF)[None, :]
        within = head[:, None] * (2 * HALF) + column[None, :]
        kept = ((slot // B * G + head) * B + slot % B)[:, None] * (2 * HALF) + column[None, :]
        k_place = k_ptr + token * k_stride + within
        k_x, k_y = _turned(k_place, inside, cos, sin, k_weight_ptr, column, eps, NORM, HALF)
        k_x, k_y = _as_cached(k_x, k_inverse_scale, LIMIT), _as_cached(k_y, k_inverse_scale, LIMIT)
        _store_halves(k_cache_ptr + kept, k_x, k_y, inside, HALF)
        v_x, v_y = _load_halves(v_ptr + token * v_stride + within, inside, HALF)
        v_x, v_y = _as_cached(v_x, v_inverse_scale, LIMIT), _as_cached(v_y, v_inverse_scale, LIMIT)
        _store_halves(v_cache_ptr + kept, v_x, v_y, inside, HALF)


@triton.jit
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    k_stride,
    v_stride,
    k_inverse_scale,
    v_inverse_scale,
    G: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    LIMIT: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """HEADS heads of a token's k and v, written to the cache."""
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + token)
    inside = (head < tl.where(slot < 0, 0, G))[:, None] & (column < D)[None, :]
    place = head[:, None] * D + column[None, :]
    kept = ((slot // B * G + head) * B + slot % B)[:, None] * D + column[None, :]
    k = _as_cached(tl.load(k_ptr + token * k_stride + place, mask=inside), k_inverse_scale, LIMIT)
    v = _as_cached(tl.load(v_ptr + token * v_stride + place, mask=inside), v_inverse_scale, LIMIT)
    tl.store(k_cache_ptr + kept, k.to(k_cache_ptr.dtype.element_ty), mask=inside)
    tl.store(v_cache_ptr + kept, v.to(v_cache_ptr.dtype.element_ty), mask=inside)


def rotary_and_write(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    positions_T: Tensor,
    table_PD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    q_weight_D: Tensor | None = None,
    k_weight_D: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    tokens, heads, head_size = q_THD.shape
    kv_heads, half = k_TGD.size(1), head_size // 2
    assert table_PD.size(1) == head_size == 2 * half
    assert table_PD.is_contiguous()
    assert positions_T.dtype is slots_T.dtype is torch.int64
    normed = q_weight_D is not None
    assert normed == (k_weight_D is not None)
    block = triton.next_power_of_2(half)
    tile = _heads_of_a_program(max(heads, kv_heads), 2 * block)
    _rotary_and_write_kernel[(tokens, triton.cdiv(heads, tile) + triton.cdiv(kv_heads, tile))](
        q_THD,
        k_TGD,
        v_TGD,
        positions_T,
        table_PD,
        k_cache,
        v_cache,
        slots_T,
        q_weight_D if normed else table_PD,
        k_weight_D if normed else table_PD,
        _token_stride(q_THD),
        _token_stride(k_TGD),
        _token_stride(v_TGD),
        eps,
        1 / k_scale,
        1 / v_scale,
        NORM=normed,
        H=heads,
        G=kv_heads,
        HALF=half,
        B=_block_size(k_cache, v_cache),
        LIMIT=_limit(k_cache),
        HEADS=tile,
        BLOCK=block,
        num_warps=max(tile * 2 * block // 512, 1),
    )


def write_kv(
    k_TGD: Tensor,
    v_TGD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    tokens, kv_heads, head_size = k_TGD.shape
    assert slots_T.dtype is torch.int64
    block = triton.next_power_of_2(head_size)
    tile = _heads_of_a_program(kv_heads, block)
    _write_kv_kernel[(tokens, triton.cdiv(kv_heads, tile))](
        k_TGD,
        v_TGD,
        k_cache,
        v_cache,
        slots_T,
        _token_stride(k_TGD),
        _token_stride(v_TGD),
        1 / k_scale,
        1 / v_scale,
        G=kv_heads,
        D=head_size,
        B=_block_size(k_cache, v_cache),
        LIMIT=_limit(k_cache),
        HEADS=tile,
        BLOCK=block,
        num_warps=max(tile * block // 512, 1),
    )


def _heads_of_a_program(heads: int, columns: int) -> int:
    return min(max(_NUMBERS // columns, 1), int(triton.next_power_of_2(heads)))


def _limit(cache: Tensor) -> float:
    """The largest number an 8-bit cache can hold; 0: a cache of a wider type."""
    return float(torch.finfo(cache.dtype).max) if cache.dtype.itemsize == 1 else 0.0


def _token_stride(x_THD: Tensor) -> int:
    """Distance between tokens; heads must be contiguous."""
    token, head, element = x_THD.stride()
    assert head == x_THD.size(2)
    assert element == 1
    return int(token)


def _block_size(k_cache: Tensor, v_cache: Tensor) -> int:
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    assert k_cache.dtype is v_cache.dtype
    return k_cache.size(2)
