"""Weights and activations in 8 bits: whole numbers (int8) or floats (fp8), with a scale for every row of each.

Weights take the nearest code as they are loaded, activations before each product. T tokens, N and K outer and inner
features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import ops
from octavo.kernels.packed import F32, Packing
from octavo.kernels.reference import quantize_rows
from octavo.layers.quantization.packed import Packed, pack_codes
from octavo.layers.quantization.scheme import PackedSpec


@dataclass(frozen=True, slots=True)
class EightBits:
    codes: torch.dtype  # int8, or the 8-bit float that the machine multiplies

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:  # noqa: ARG002
        return {"codes": PackedSpec(self.codes), "scales": PackedSpec(torch.float32, columns=in_features)}

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        codes, scales = quantize_rows(weight_NK, self.codes)
        return {"codes": codes, "scales": scales.unsqueeze(1)}

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        codes, scales = tensors["codes"], tensors["scales"]
        assert codes is not None
        assert scales is not None
        return ops.scaled_linear(x_TK, codes, scales.squeeze(1), tensors["bias"], full_precision)

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
        raise NotImplementedError("embeddings are kept as they are")

    def packed(self, tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> Packed:
        """The same weights as a CPU multiplies by them; activations have a scale for every 32 columns there."""
        codes, scales = tensors["codes"], tensors["scales"]
        assert codes is not None
        assert scales is not None
        group = next(size for size in (128, 64, 32) if codes.size(1) % size == 0)
        unsigned_NK = (codes.short() + 128).byte()
        spread_NG = scales.expand(-1, codes.size(1) // group)
        return pack_codes(unsigned_NK, spread_NG, None, Packing(8, group, F32), dtype)
