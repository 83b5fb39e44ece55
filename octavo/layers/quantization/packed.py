"""Weights kept in the few bits they came in, and multiplied as they are.

A matrix is packed as a whole, all parts at once, because each may be stored in another way.
T tokens, K inner features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.kernels import ops
from octavo.kernels.packed import PackedMatrix, Packing, allocate, gguf_packing, packed_bytes
from octavo.layers.quantization.scheme import PackedSpec


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """A matrix of a GGUF file, not yet turned into numbers: `blocks` is the file's memory."""

    kind: str
    blocks: npt.NDArray[np.uint8]
    shape: tuple[int, int]
    order: Tensor | None  # int64: which row of the file comes at each place; None: as they are
    values: Callable[[], Tensor]  # the same as numbers, in the layout of a Hugging Face checkpoint


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed matrix is its own storage: there are no tensors to load part by part."""

    matrix: PackedMatrix
    dtype: torch.dtype  # of activations

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:  # noqa: ARG002
        return {}

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        raise NotImplementedError("it is packed whole")

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        return ops.quantized_linear(x_TK, self.matrix, tensors["bias"], full_precision)

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:  # noqa: ARG002
        return ops.quantized_embedding(ids_T, self.matrix, self.dtype)


def packable(kind: str) -> bool:
    """Whether rows of a GGUF type can be packed."""
    return gguf_packing(kind) is not None


def pack(matrices: Sequence[Sequence[QuantizedRows]], dtypes: Sequence[torch.dtype]) -> list[Packed]:
    """Each matrix from its parts, which have the same number of columns; all in one piece of memory."""
    plans = [_plan(parts) for parts in matrices]
    columns = [parts[0].shape[1] for parts in matrices]
    memory = allocate([packed_bytes(*plan) for plan in zip(columns, plans, strict=True)])
    schemes = []
    for width, plan, place, parts, dtype in zip(columns, plans, memory, matrices, dtypes, strict=True):
        matrix = PackedMatrix(width, plan, place)
        for number, rows in enumerate(parts):
            matrix.pack_gguf(number, rows.kind, rows.blocks, rows.order)
        schemes.append(Packed(matrix, dtype))
    return schemes


def pack_codes(
    codes_NK: Tensor, scales_NG: Tensor, minimums_NG: Tensor | None, packing: Packing, dtype: torch.dtype
) -> Packed:
    """A matrix of one part, from codes of a byte each. dtype: of activations."""
    rows, columns = codes_NK.shape
    plan = [(rows, packing)]
    matrix = PackedMatrix(columns, plan, *allocate([packed_bytes(columns, plan)]))
    matrix.pack_codes(0, codes_NK, scales_NG, minimums_NG)
    return Packed(matrix, dtype)


def bytes_when_packed(parts: Sequence[QuantizedRows]) -> int:
    """Memory that the matrix of these parts takes once it is packed."""
    return packed_bytes(parts[0].shape[1], _plan(parts))


def _plan(parts: Sequence[QuantizedRows]) -> list[tuple[int, Packing]]:
    packings = [gguf_packing(rows.kind) for rows in parts]
    return [(rows.shape[0], each) for rows, each in zip(parts, packings, strict=True) if each is not None]
