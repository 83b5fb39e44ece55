"""Products by packed weights and invariant ones, as steps of Llama 3.1 8B and Llama 3.2 1B launch them."""

from __future__ import annotations

from functools import partial

import torch
from compiling import Case, Expect, New

from octavo.kernels.triton import kernels

LAYERS = ((4096, 6144), (14336, 4096), (2048, 16384))  # K, N
NARROW_LAYER = (4096, 2048)
FEW, SOME, MANY = (1, 3, 16, 32), (33, 64), (65, 128, 200)


def grouped(rows: tuple[int, ...], minimums: bool, new: New) -> None:
    for inner, outer in (*LAYERS, NARROW_LAYER):
        scales = new(outer, inner // 128, dtype=torch.float16)
        for count in rows:
            codes = new(outer, inner // 2, dtype=torch.uint8)
            kernels.group_linear(new(count, inner), codes, scales, scales if minimums else None)


def grouped_otherwise(new: New) -> None:
    for dtype, group in ((torch.float32, 128), (torch.float16, 128), (torch.bfloat16, 32), (torch.bfloat16, 64)):
        scales = new(640, 512 // group, dtype=torch.float16)
        for count in (1, 20, 100):
            kernels.group_linear(new(count, 512, dtype=dtype), new(640, 256, dtype=torch.uint8), scales, scales)


def scaled(rows: tuple[int, ...], dtype: torch.dtype, new: New) -> None:
    for inner, outer in LAYERS:
        for count in rows:
            kernels.scaled_linear(new(count, inner), new(outer, inner, dtype=dtype), new(outer, dtype=torch.float32))


def invariant(dtype: torch.dtype, new: New) -> None:
    for inner, outer in LAYERS:
        for count in (1, 5, 64, 700, 2048):
            kernels.invariant_linear(new(count, inner, dtype=dtype), new(outer, inner, dtype=dtype))


def expanded(new: New) -> None:
    kernels.group_linear(new(256, 4096), new(6144, 2048, dtype=torch.uint8), new(6144, 32, dtype=torch.float16))


def product(kind: str, products: str) -> dict[str, Expect]:
    expect = Expect(pipelined=True, products=products)  # type: ignore[arg-type]
    return {f"_{kind}_kernel": expect}


NARROW = {"_finish_kernel": Expect()}
ROWS = {"_quantize_kernel": Expect()}
FLOAT8 = ("sm_90", "sm_100")
CASES = [
    Case("4 bits, few rows", partial(grouped, FEW, True), product("grouped", "mma") | NARROW, quick=("sm_90",)),
    Case("4 bits, some rows", partial(grouped, SOME, True), product("grouped", "wgmma") | NARROW),
    Case("4 bits, many rows", partial(grouped, MANY, True), product("grouped", "wgmma") | NARROW, quick=("gfx942",)),
    Case("4 bits, other types and groups", grouped_otherwise, {"_grouped_kernel": Expect()} | NARROW),
    Case("4 bits written out", expanded, Expect()),
    Case("int8, few rows", partial(scaled, FEW, torch.int8), product("scaled", "mma") | NARROW | ROWS),
    Case(
        "int8, many rows",
        partial(scaled, (*MANY, 2048), torch.int8),
        product("scaled", "wgmma") | ROWS | NARROW,
        quick=("sm_80",),
    ),
    Case(
        "float8, few rows",
        partial(scaled, FEW, torch.float8_e4m3fn),
        product("scaled", "mma") | NARROW | ROWS,
        targets=FLOAT8,
    ),
    Case(
        "float8, many rows",
        partial(scaled, MANY, torch.float8_e4m3fn),
        product("scaled", "wgmma") | ROWS | NARROW,
        targets=FLOAT8,
        quick=("sm_90",),
    ),
    Case(
        "float8 of AMD",
        partial(scaled, MANY, torch.float8_e4m3fnuz),
        product("scaled", "mma") | ROWS | NARROW,
        targets=("gfx942",),
    ),
    Case("invariant", partial(invariant, torch.bfloat16), product("invariant", "wgmma") | NARROW, quick=("sm_90",)),
    Case("invariant, float32", partial(invariant, torch.float32), {"_invariant_kernel": Expect()} | NARROW),
]
