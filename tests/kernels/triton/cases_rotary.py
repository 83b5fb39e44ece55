"""Turn and write as models launch them: query heads, key/value heads and head size of each."""

from __future__ import annotations

from functools import partial

import torch
from compiling import Case, Expect, New

from octavo.kernels.triton import kernels

TOKENS = (1, 2, 7, 16, 256, 2048)  # of steps: they cost no kernel each
SHAPES = {
    "Llama 8B": (32, 8, 128),
    "Llama 1B": (32, 8, 64),
    "Qwen3 0.6B": (16, 8, 128),
    "Gemma 270M": (4, 1, 256),
    "head of 80": (32, 32, 80),
}


def launches(shape: tuple[int, int, int], normed: bool, cache_dtype: torch.dtype, new: New) -> None:
    heads, kv_heads, head_size = shape
    cache = new(1000, kv_heads, 16, head_size, dtype=cache_dtype)
    weight = new(head_size, dtype=torch.float32)
    for tokens in TOKENS:
        row = new(tokens, heads + 2 * kv_heads, head_size)
        q, k, v = row.split([heads, kv_heads, kv_heads], 1)
        positions, slots = (new(tokens, dtype=torch.int64) for _ in range(2))
        table = new(4096, head_size, dtype=torch.float32)
        weights = (weight, weight, 1e-6) if normed else ()
        kernels.rotary_and_write(q, k, v, positions, table, cache, cache, slots, *weights)


def writes(shape: tuple[int, int, int], cache_dtype: torch.dtype, new: New) -> None:
    heads, kv_heads, head_size = shape
    cache = new(1000, kv_heads, 16, head_size, dtype=cache_dtype)
    for tokens in TOKENS:
        row = new(tokens, heads + 2 * kv_heads, head_size)
        _, k, v = row.split([heads, kv_heads, kv_heads], 1)
        kernels.write_kv(k, v, cache, cache, new(tokens, dtype=torch.int64))


SLIM = Expect(registers=96, narrow_loads=0)
HAVE_FP8 = {
    torch.float8_e4m3fn: ("sm_90", "sm_100"),
    torch.float8_e4m3fnuz: ("gfx942",),
    torch.float8_e5m2: ("sm_80", "sm_90", "sm_100"),
}
CASES = [
    *(
        Case(f"turn{' of normed' * normed}, {name}", partial(launches, shape, normed, torch.bfloat16), SLIM, binaries=1)
        for name, shape in SHAPES.items()
        for normed in (False, True)
    ),
    *(
        Case(
            f"turn, {str(dtype).removeprefix('torch.')}",
            partial(launches, SHAPES["Llama 8B"], False, dtype),
            SLIM,
            binaries=1,
            targets=targets,
            quick=targets[:1] if dtype is torch.float8_e4m3fn else (),
        )
        for dtype, targets in HAVE_FP8.items()
    ),
    Case("write, GPT-2", partial(writes, (12, 12, 64), torch.bfloat16), SLIM, binaries=1),
    Case("write, float8", partial(writes, (12, 12, 64), torch.float8_e4m3fn), SLIM, 1, HAVE_FP8[torch.float8_e4m3fn]),
]
