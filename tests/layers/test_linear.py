"""Fused matrices load part by part, whatever a stored element covers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.layers.linear import Linear
from octavo.layers.quantization.scheme import Dense, PackedSpec


class Halves:
    """A made-up format: bytes that hold two columns, a scale for each 4 columns, a zero for each 2 rows."""

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:
        return {
            "packed": PackedSpec(torch.uint8, columns=2),
            "scales": PackedSpec(torch.float16, columns=4),
            "zeros": PackedSpec(torch.int8, rows=2, columns=4),
        }

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        raise NotImplementedError


def test_the_product_of_all_parts_is_that_of_each() -> None:
    linear = Linear(6, {"q": 4, "k": 2, "v": 2}, Dense(torch.float32), bias=torch.float32)
    matrices = {part: torch.randn(size, 6) for part, size in linear.parts.items()}
    for part, matrix in matrices.items():
        linear.slots(part)["weight"].copy_(matrix)
        linear.slots(part)["bias"].copy_(matrix[:, 0])
    x = torch.randn(3, 6)
    expected = torch.cat([x @ matrix.t() + matrix[:, 0] for matrix in matrices.values()], dim=1)
    torch.testing.assert_close(linear(x), expected)
    assert linear.slots()["weight"].shape == (8, 6)


def test_packed_tensors_are_cut_by_what_they_cover() -> None:
    linear = Linear(8, {"gate": 6, "up": 4}, Halves())
    assert {name: tuple(view.shape) for name, view in linear.slots("up").items()} == {
        "packed": (4, 4),
        "scales": (4, 2),
        "zeros": (2, 2),
    }
    assert linear.slots("up")["zeros"].data_ptr() == linear.zeros[3:].data_ptr()
