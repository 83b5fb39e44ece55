"""Kernels with one thing wrong each, which the check of machine code must see."""

from __future__ import annotations

import time

import torch
import triton
import triton.language as tl
from compiling import Case, Expect, New

KEYS = 4096


@triton.jit
def best_score(q_ptr, k_ptr, out_ptr, n, stride_k, D: tl.constexpr, BLOCK: tl.constexpr):
    row, col = tl.arange(0, 16), tl.arange(0, D)
    q = tl.load(q_ptr + row[:, None] * D + col[None, :])
    best = tl.full([16], float("-inf"), tl.float32)
    for start in range(0, n, BLOCK):
        key = start + tl.arange(0, BLOCK)
        k = tl.load(k_ptr + key[None, :] * stride_k + col[:, None], mask=(key < n)[None, :], other=0.0)
        best = tl.maximum(best, tl.max(tl.where((key < n)[None, :], tl.dot(q, k), float("-inf")), 1))
    tl.store(out_ptr + row, best)


@triton.jit
def product(a_ptr, b_ptr, out_ptr, n, M: tl.constexpr, K: tl.constexpr):
    row, col, inner = tl.arange(0, M), tl.arange(0, 128), tl.arange(0, K)
    total = tl.zeros([M, 128], tl.float32)
    for start in range(0, n, K):
        a = tl.load(a_ptr + row[:, None] * n + start + inner[None, :])
        b = tl.load(b_ptr + (start + inner[:, None]) * 128 + col[None, :])
        total = tl.dot(a, b, total)
    tl.store(out_ptr + row[:, None] * 128 + col[None, :], total)


def score(new: New, stride: int, head_size: int = 128, stages: int = 3) -> None:
    q, k, out = new(16, head_size), new(KEYS, stride), new(16, dtype=torch.float32)
    best_score[(1,)](q, k, out, KEYS, stride, D=head_size, BLOCK=64, num_warps=4, num_stages=stages)


def multiply(new: New, rows: int, inner: int, stages: int, warps: int = 4) -> None:
    a, b, out = new(rows, 4096), new(4096, 128), new(rows, 128, dtype=torch.float32)
    product[(1,)](a, b, out, 4096, M=rows, K=inner, num_warps=warps, num_stages=stages)


AHEAD = Expect(pipelined=True, products="mma", narrow_loads=0)
CASES = [
    Case("sound", lambda new: score(new, 128), AHEAD, binaries=1),
    Case("sound warp group", lambda new: multiply(new, 64, 64, 3), Expect(pipelined=True, products="wgmma")),
    Case("odd stride", lambda new: score(new, 129), AHEAD),
    Case("spills", lambda new: multiply(new, 256, 64, 2, warps=2)),
    Case("too much shared memory", lambda new: multiply(new, 128, 256, 4, warps=8)),
    Case("no warp group", lambda new: multiply(new, 16, 64, 3), Expect(products="wgmma")),
    Case("too many registers", lambda new: score(new, 128), Expect(registers=24)),
    Case(
        "a kernel a stride", lambda new: [score(new, stride) for stride in (128, 129)], Expect(spills=999), binaries=1
    ),
    Case("nothing launched", lambda new: new(3)),
    Case("another kernel", lambda new: score(new, 128), {"no_such_kernel": Expect()}),
    Case("does not compile", lambda new: score(new, 128, head_size=96)),
    Case("sound after a failure", lambda new: score(new, 128), AHEAD),
    Case("hangs", lambda new: time.sleep(3600)),
]
