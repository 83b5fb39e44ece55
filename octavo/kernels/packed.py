"""Matrices of 4- to 8-bit weights, in the one layout that the compiled product reads as it is stored.

`csrc/quantized.h` describes the layout; `dequantize` is the same in Python. Packing reads a source's bytes once and
needs the compiled kernels. Knows nothing of files, models or layers.
"""

# N rows (outputs), K columns (inputs), G groups of columns, P panels of 16 rows.

from __future__ import annotations

import itertools
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

with suppress(ImportError):  # cpu.available() tells
    from octavo.kernels import _native

F16, F32, NESTED = range(3)
_PANEL, _BLOCK, _SPAN, _ALIGNMENT = 16, 32, 256, 64
_HEADER, _PART = 32, 32  # bytes

#: The block types of GGUF files that can be packed, by their number there.
GGUF_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


class Packing(NamedTuple):
    """How a part is stored: scale · (code - 2^(bits - 1)), with minimums scale · code + minimum."""

    bits: int  # 4, 5, 6 or 8
    group: int  # columns that share a scale: 16 (without minimums only), 32, 64 or 128
    scales: int = F16  # or F32; NESTED: an int8 factor for each group, an F16 scale for every 256 columns
    minimums: bool = False


def gguf_packing(kind: str) -> Packing | None:
    """How a block type is stored; None if it cannot be."""
    found = _native.gguf_packing(GGUF_TYPES[kind]) if kind in GGUF_TYPES else None
    return None if found is None else Packing(*found)


def packed_bytes(columns: int, parts: Sequence[tuple[int, Packing]]) -> int:
    """Memory of a matrix, given the rows and the packing of its parts."""
    return _native.packed_bytes(columns, parts)


def allocate(sizes: Sequence[int]) -> list[Tensor]:
    """Memory for many matrices in one piece, of huge pages where the system has them: reading it misses fewer pages."""
    places = [0, *itertools.accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
    pages = mmap.mmap(-1, max(places[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the mapping
    return [whole[begin : begin + size] for begin, size in zip(places[:-1], sizes, strict=True)]


class PackedMatrix:
    """[rows, columns] of parts below each other, to be filled one by one. `data` is all of it, as bytes."""

    def __init__(self, columns: int, parts: Sequence[tuple[int, Packing]], memory: Tensor | None = None) -> None:
        for _, packing in parts:
            assert packing.bits in (4, 5, 6, 8)
            assert packing.group in (32, 64, 128) or (packing.group == 16 and not packing.minimums)
        self.columns, self.parts = columns, list(parts)
        self.rows = sum(rows for rows, _ in parts)
        size = packed_bytes(columns, self.parts)
        self.data = torch.empty(size, dtype=torch.uint8) if memory is None else memory
        assert self.data.nbytes == size
        assert self.data.data_ptr() % _ALIGNMENT == 0
        _native.plan_matrix(self.data.data_ptr(), columns, self.parts)

    def pack_gguf(self, part: int, kind: str, blocks: npt.NDArray[np.uint8], order: Tensor | None = None) -> None:
        """A tensor's bytes as they are in the file. `order` (int64) says which of its rows comes at each place."""
        rows, packing = self.parts[part]
        number = GGUF_TYPES[kind]
        assert packing == gguf_packing(kind)
        assert blocks.nbytes == rows * _native.gguf_row_bytes(number, self.columns)
        assert order is None or (order.dtype is torch.int64 and order.shape == (rows,))
        _native.pack_gguf(
            self.data.data_ptr(), part, number, blocks.ctypes.data, 0 if order is None else order.data_ptr()
        )

    def pack_codes(self, part: int, codes_NK: Tensor, scales_NG: Tensor, minimums_NG: Tensor | None = None) -> None:
        """Unsigned codes, one a byte, with float32 scales and minimums (rounded if the part keeps them as float16)."""
        rows, packing = self.parts[part]
        assert packing.scales != NESTED
        assert codes_NK.dtype is torch.uint8
        assert codes_NK.shape == (rows, self.columns)
        assert (minimums_NG is not None) == packing.minimums
        numbers = [scales_NG] if minimums_NG is None else [scales_NG, minimums_NG]
        for each in numbers:
            assert each.dtype is torch.float32
            assert each.shape == (rows, self.columns // packing.group)
        kept = [each.contiguous() for each in (codes_NK, *numbers)]
        addresses = [each.data_ptr() for each in kept] + [0]
        _native.pack_codes(self.data.data_ptr(), part, self.columns, *addresses[:3])


def dequantize(matrix: PackedMatrix) -> Tensor:
    """float32 [rows, columns]: every value as its source defines it, rounded once."""
    parts = matrix.data[_HEADER : _HEADER + _PART * len(matrix.parts)].view(torch.int64).view(-1, 4)
    width = -(-matrix.columns // _BLOCK) * _BLOCK
    values = []
    for (rows, packing), (_, begin, _, _) in zip(matrix.parts, parts.tolist(), strict=True):
        widths = [min(_SPAN, width - first) for first in range(0, width, _SPAN)]
        sizes = [_span_bytes(packing, columns) for columns in widths]
        panels = -(-rows // _PANEL)
        spans = torch.split(matrix.data[begin : begin + panels * sum(sizes)].view(panels, -1), sizes, dim=1)
        pieces = [_span_values(span, packing, columns) for span, columns in zip(spans, widths, strict=True)]
        values.append(torch.cat(pieces, dim=2).flatten(0, 1)[:rows, : matrix.columns])
    return torch.cat(values)


def _span_bytes(packing: Packing, columns: int) -> int:
    return _codes_begin(packing, columns) + columns * _PANEL * packing.bits // 8


def _codes_begin(packing: Packing, columns: int) -> int:
    kinds, groups = 1 + packing.minimums, -(-columns // packing.group)
    size = {F16: 2 * groups, F32: 4 * groups, NESTED: 2 + groups}[packing.scales]
    return -(-kinds * size * _PANEL // _ALIGNMENT) * _ALIGNMENT


def _span_values(span: Tensor, packing: Packing, columns: int) -> Tensor:
    """A span of every panel [P, bytes] as numbers [P, 16, columns]."""
    begin = _codes_begin(packing, columns)
    codes = _codes(span[:, begin:].reshape(-1, columns // _BLOCK, packing.bits, _PANEL, 4), packing.bits)
    scales, minimums = _numbers(span[:, :begin].contiguous(), packing, -(-columns // packing.group))
    scales, minimums = (
        each.transpose(1, 2).repeat_interleave(packing.group, 2)[:, :, :columns] for each in (scales, minimums)
    )
    return codes * scales + minimums if packing.minimums else (codes - 2 ** (packing.bits - 1)) * scales


def _codes(lines: Tensor, bits: int) -> Tensor:
    """Lines of blocks [P, B, bits, 16, 4] as codes [P, 16, columns]."""
    if bits == 8:
        fields = lines
    else:
        fields = torch.stack((lines[:, :, :4] & 15, lines[:, :, :4] >> 4), 3).flatten(2, 3)
        if bits > 4:
            each = bits - 4
            places = torch.arange(0, 8, each, dtype=torch.uint8).view(-1, 1, 1)
            rest = (lines[:, :, 4:, None] >> places) & (2**each - 1)
            fields = fields << each | rest.flatten(2, 3)
    return fields.permute(0, 3, 1, 2, 4).flatten(2).float()


def _numbers(head: Tensor, packing: Packing, groups: int) -> tuple[Tensor, Tensor]:
    """Scales and minimums [P, groups, 16] (zeros without minimums)."""
    kinds = 1 + packing.minimums
    if packing.scales == NESTED:
        halfway = kinds * _PANEL * 2
        units = head[:, :halfway].contiguous().view(torch.float16).view(-1, kinds, 1, _PANEL)
        factors = head[:, halfway : halfway + kinds * groups * _PANEL].contiguous().view(torch.int8)
        numbers = units.float() * factors.view(-1, kinds, groups, _PANEL)
    else:
        dtype = torch.float16 if packing.scales == F16 else torch.float32
        size = kinds * groups * _PANEL * dtype.itemsize
        numbers = head[:, :size].contiguous().view(dtype).float().view(-1, kinds, groups, _PANEL)
    return numbers[:, 0], numbers[:, 1] if packing.minimums else torch.zeros_like(numbers[:, 0])
