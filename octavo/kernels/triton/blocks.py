"""Whole cache blocks copied in all layers by one launch.

P planes (keys and values of every layer of a kind), N copies, X numbers of a block in a plane.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 4
_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bytes: what is copied is bits, NaN or not


@triton.jit
def _copy_blocks_kernel(
    from_ptr,
    to_ptr,
    sources_ptr,
    destinations_ptr,
    from_plane,
    from_block,
    to_plane,
    to_block,
    X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    copy, plane = tl.program_id(0), tl.program_id(1).to(tl.int64)
    element = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = element < X
    source, destination = tl.load(sources_ptr + copy), tl.load(destinations_ptr + copy)
    bits = tl.load(from_ptr + plane * from_plane + source * from_block + element, mask=inside)
    tl.store(to_ptr + plane * to_plane + destination * to_block + element, bits, mask=inside)


def copy_blocks(from_PBX: Tensor, to_PBX: Tensor, sources_N: Tensor, destinations_N: Tensor) -> None:
    planes, _, elements = from_PBX.shape
    assert from_PBX.dtype is to_PBX.dtype
    assert sources_N.dtype is destinations_N.dtype is torch.int64
    assert from_PBX.stride(2) == to_PBX.stride(2) == 1
    integers = _AS_INTEGERS[from_PBX.dtype.itemsize]
    _copy_blocks_kernel[(len(sources_N), planes, triton.cdiv(elements, _BLOCK))](
        from_PBX.view(integers),
        to_PBX.view(integers),
        sources_N,
        destinations_N,
        from_PBX.stride(0),
        from_PBX.stride(1),
        to_PBX.stride(0),
        to_PBX.stride(1),
        X=elements,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
