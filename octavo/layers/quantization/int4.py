"""Weights in 4 bits: a scale and a minimum, both float16, for every group of columns.

Each group is spread over its 16 levels from its least weight to its largest, and every weight takes the nearest: what
is known as round to nearest, without a look at any text. T tokens, N and K outer and inner features, G columns of a
group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import ops
from octavo.kernels.packed import Packing
from octavo.layers.quantization.packed import Packed, pack_codes
from octavo.layers.quantization.scheme import PackedSpec

_LEVELS = 15


@dataclass(frozen=True, slots=True)
class Int4:
    group: int  # columns: 32, 64 or 128

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:  # noqa: ARG002
        numbers = PackedSpec(torch.float16, columns=self.group)
        return {"codes": PackedSpec(torch.uint8, columns=2), "scales": numbers, "minimums": numbers}

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        values = weight_NK.float().reshape(len(weight_NK), -1, self.group)
        least, most = values.aminmax(dim=2, keepdim=True)
        least = least.half().float()
        scale = ((most - least) / _LEVELS).half().float()
        codes = torch.where(scale > 0, (values - least) / scale, 0.0).round().clamp(0, _LEVELS).byte()
        low, high = codes.chunk(2, dim=2)
        return {"codes": (low | high << 4).flatten(1), "scales": scale.squeeze(2), "minimums": least.squeeze(2)}

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        codes, scales, minimums = tensors["codes"], tensors["scales"], tensors["minimums"]
        assert codes is not None
        assert scales is not None
        return ops.group_linear(x_TK, codes, scales, minimums, tensors["bias"], full_precision)

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
        raise NotImplementedError("embeddings are kept as they are")

    def packed(self, tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> Packed:
        """The same weights as a CPU multiplies by them."""
        codes, scales, minimums = tensors["codes"], tensors["scales"], tensors["minimums"]
        assert codes is not None
        assert scales is not None
        assert minimums is not None
        halves = codes.view(len(codes), -1, self.group // 2)
        unpacked_NK = torch.cat((halves & 15, halves >> 4), 2).flatten(1)
        return pack_codes(unpacked_NK, scales.float(), minimums.float(), Packing(4, self.group, minimums=True), dtype)
