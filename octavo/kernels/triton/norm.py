"""RMS and layer norm, each with and without first adding to the residual stream: one read and one write of every row.

T tokens, E width. A program takes a row and keeps all of it in registers; sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load_row(
    x_ptr, residual_ptr, x_stride, residual_stride, ADD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """The row in float32; with ADD its rounded sum with the residual stream, which is put there."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    if ADD:
        place = residual_ptr + row * residual_stride + column
        residual = tl.load(place, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(residual.dtype)
        tl.store(place, x, mask=inside)
    return x.to(tl.float32)


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x = _load_row(x_ptr, residual_ptr, x_stride, residual_stride, ADD, WIDTH, BLOCK)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps) * weight
    row = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + row * WIDTH + column, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x = _load_row(x_ptr, residual_ptr, x_stride, residual_stride, ADD, WIDTH, BLOCK)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
    centered = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    y = centered * tl.rsqrt(tl.sum(centered * centered, 0) / WIDTH + eps) * weight + bias
    row = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + row * WIDTH + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def _tile(width: int) -> tuple[int, int]:
    """Columns of a program's tile, and warps: 16 numbers a thread, more only where a row has more than 8K."""
    assert width <= 32768, "a row must fit the registers of one program"
    block = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 16)


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    return _rms_norm(x_TE, None, weight_E, eps)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    return _rms_norm(x_TE, residual_TE, weight_E, eps)


def _rms_norm(x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float) -> Tensor:
    tokens, width = x_TE.shape
    stream_TE = x_TE if residual_TE is None else residual_TE
    assert x_TE.stride(1) == stream_TE.stride(1) == 1
    assert weight_E.dtype is torch.float32
    out_TE = torch.empty_like(x_TE, memory_format=torch.contiguous_format)
    block, warps = _tile(width)
    _rms_norm_kernel[(tokens,)](
        x_TE,
        stream_TE,
        weight_E,
        out_TE,
        x_TE.stride(0),
        stream_TE.stride(0),
        eps,
        ADD=residual_TE is not None,
        WIDTH=width,
        BLOCK=block,
        num_warps=warps,
    )
    return out_TE


def layer_norm(x_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    return _layer_norm(x_TE, None, weight_E, bias_E, eps)


def add_layer_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    return _layer_norm(x_TE, residual_TE, weight_E, bias_E, eps)


def _layer_norm(x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    tokens, width = x_TE.shape
    stream_TE = x_TE if residual_TE is None else residual_TE
    assert x_TE.stride(1) == stream_TE.stride(1) == 1
    assert weight_E.dtype is bias_E.dtype is torch.float32
    out_TE = torch.empty_like(x_TE, memory_format=torch.contiguous_format)
    block, warps = _tile(width)
    _layer_norm_kernel[(tokens,)](
        x_TE,
        stream_TE,
        weight_E,
        bias_E,
        out_TE,
        x_TE.stride(0),
        stream_TE.stride(0),
        eps,
        ADD=residual_TE is not None,
        WIDTH=width,
        BLOCK=block,
        num_warps=warps,
    )
    return out_TE
