"""Activations, alone and gated: computed in float32 from what is loaded once.

T tokens, E width. tanh does not appear: x (1 + tanh u) / 2 is x · sigmoid(2u).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # 8 numbers a thread: 16 bytes of a 16-bit type
_WARPS = 4


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_tanh(x):
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 sqrt(2/π)


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)  # NaN stays


@triton.jit
def _act_kernel(
    x_ptr, out_ptr, x_stride, ACT: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """ACT of a row's WIDTH numbers; with GATED times the WIDTH numbers that follow them."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = x_ptr + token * x_stride + column
    y = ACT(tl.load(place, mask=inside, other=0.0).to(tl.float32))
    if GATED:
        y *= tl.load(place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * WIDTH + column, y.to(out_ptr.dtype.element_ty), mask=inside)


def _act(x_TE: Tensor, act: triton.JITFunction, gated: bool = False) -> Tensor:
    tokens, width = x_TE.shape
    assert x_TE.stride(1) == 1
    width = width // 2 if gated else width
    out_TE = torch.empty((tokens, width), dtype=x_TE.dtype, device=x_TE.device)
    grid = (tokens, triton.cdiv(width, _BLOCK))
    _act_kernel[grid](x_TE, out_TE, x_TE.stride(0), ACT=act, GATED=gated, WIDTH=width, BLOCK=_BLOCK, num_warps=_WARPS)
    return out_TE


def gelu(x_TE: Tensor) -> Tensor:
    return _act(x_TE, _gelu)


def gelu_tanh(x_TE: Tensor) -> Tensor:
    return _act(x_TE, _gelu_tanh)


def relu(x_TE: Tensor) -> Tensor:
    return _act(x_TE, _relu)


def silu_mul(gate_up_TE: Tensor) -> Tensor:
    return _act(gate_up_TE, _silu, gated=True)


def gelu_tanh_mul(gate_up_TE: Tensor) -> Tensor:
    return _act(gate_up_TE, _gelu_tanh, gated=True)
