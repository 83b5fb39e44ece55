"""A matrix made of named parts, stored by a scheme.

Fusing q, k and v or gate and up is a matter of declaring parts: each loads on its own, the product is one.
T tokens, K inner features, N outer features (all parts together).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from octavo.layers.part import Part
from octavo.layers.quantization.scheme import Scheme


class Linear(Part):
    """x W^T + b. Its parameters are the scheme's tensors and, with `bias`, `bias` in the given dtype."""

    def __init__(
        self,
        in_features: int,
        parts: int | Mapping[str, int],
        scheme: Scheme,
        *,
        bias: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.parts = {"": parts} if isinstance(parts, int) else dict(parts)
        self.in_features, self.out_features = in_features, sum(self.parts.values())
        self.scheme = scheme
        self.specs = scheme.tensors(in_features, self.out_features)
        for name, spec in self.specs.items():
            shape = spec.shape(self.out_features, in_features)
            self.register_parameter(name, weight(shape, spec.dtype, device))
        self.register_parameter("bias", None if bias is None else weight((self.out_features,), bias, device))

    def forward(self, x_TK: Tensor, full_precision: bool = False) -> Tensor:
        return self.scheme.apply(x_TK, self._parameters, full_precision)

    def rows(self, ids_T: Tensor) -> Tensor:
        """The rows of W with these numbers (int64): an embedding."""
        return self.scheme.rows(ids_T, self._parameters)

    def adopt(self, scheme: Scheme) -> None:
        """Instead of the declared tensors, those that a scheme brings."""
        for name in self.specs:
            delattr(self, name)
        self.scheme, self.specs = scheme, {}

    @property
    def tensors(self) -> Mapping[str, Tensor | None]:
        """The scheme's tensors and `bias`."""
        return self._parameters

    def fill(self, part: str | None, weight_NK: Tensor) -> None:
        """A part's numbers (all parts' at once without a name) in the scheme's way, wherever they lie."""
        slots = self.slots(part)
        for name, tensor in self.scheme.store(weight_NK.to(next(iter(slots.values())).device)).items():
            slots[name].copy_(tensor)

    def rows_of(self, part: str | None) -> int:
        return self.out_features if part is None else self.parts[part]

    def slots(self, part: str | None = None) -> dict[str, Tensor]:
        """Where a part's tensors belong (all parts at once without a name): views to copy into."""
        begin, end = 0, self.out_features
        if part is not None:
            names = list(self.parts)
            begin = sum(self.parts[name] for name in names[: names.index(part)])
            end = begin + self.parts[part]
        rows = {name: spec.rows for name, spec in self.specs.items()} | {"bias": 1}
        return {
            name: tensor[begin // rows[name] : end // rows[name]]
            for name, tensor in self._parameters.items()
            if tensor is not None
        }


def weight(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> nn.Parameter:
    """Room for a weight; nothing is written to it before loading."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
