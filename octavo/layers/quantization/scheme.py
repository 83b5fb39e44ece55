"""What a storage scheme for matrices is, and the plain one.

A scheme declares the tensors that stand for a logical [out_features, in_features] matrix, says what they hold for given
numbers, and multiplies by them. What each stored element covers is data, so loading one part of a fused matrix is one
generic function for all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import ops


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """A tensor of a scheme: [out_features / rows, in_features / columns] elements of `dtype`."""

    dtype: torch.dtype
    rows: int = 1  # logical rows (outputs) a stored element covers
    columns: int = 1  # logical columns (inputs) it covers

    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        assert out_features % self.rows == 0
        assert in_features % self.columns == 0
        return out_features // self.rows, in_features // self.columns


class Scheme(Protocol):
    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:
        """The stored tensors by the names checkpoints give them, such as `weight`."""

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        """What stands for these rows of numbers, by the same names; its dtypes may still be others."""

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        """x times the matrix, plus `bias` where the tensors have one; float32 with `full_precision`."""

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """The rows with these numbers (int64), in the dtype of the activations: a matrix as an embedding."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Every weight as it is. product: `ops.linear`, or another of its kind."""

    dtype: torch.dtype
    product: Callable[[Tensor, Tensor, Tensor | None, bool], Tensor] = ops.linear

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:  # noqa: ARG002
        return {"weight": PackedSpec(self.dtype)}

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        return {"weight": weight_NK}

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        weight = tensors["weight"]
        assert weight is not None
        return self.product(x_TK, weight, tensors["bias"], full_precision)

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
        weight = tensors["weight"]
        assert weight is not None
        return F.embedding(ids_T, weight)
