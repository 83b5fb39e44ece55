"""Copies of blocks within a cache of 32 layers, and to a buffer."""

from __future__ import annotations

import torch
from compiling import Case, Expect, New

from octavo.kernels.triton import kernels


def copies(new: New) -> None:
    elements = 8 * 16 * 128
    cache = new(64, 2000, elements)
    for count in (1, 2, 5, 16):
        ids = new(count, dtype=torch.int64)
        kernels.copy_blocks(cache, cache, ids, ids)
        kernels.copy_blocks(cache, new(count, 64, elements).transpose(0, 1), ids, ids)


# AMD addresses tensors of less than 2 GiB another way: the cache and the buffer differ in that.
CASES = [Case("block copies", copies, Expect(registers=64, narrow_loads=0), binaries=2)]
