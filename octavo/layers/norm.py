"""Normalization of the residual stream. T tokens, E width.

Every norm has two forms: `forward(x)`, and `add(x, residual)` which first adds x to the residual stream in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octavo.kernels import ops
from octavo.layers.linear import weight
from octavo.layers.part import Part


class RMSNorm(Part):
    """The weight is float32 whatever the model's dtype: families that multiply by 1 + w load it without loss."""

    def __init__(self, width: int, eps: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = weight((width,), torch.float32, device)
        self.eps = eps

    def forward(self, x_TE: Tensor) -> Tensor:
        return ops.rms_norm(x_TE, self.weight, self.eps)

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> Tensor:
        return ops.add_rms_norm(x_TE, residual_TE, self.weight, self.eps)


class LayerNorm(Part):
    """Weight and bias are float32, as above."""

    def __init__(self, width: int, eps: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = weight((width,), torch.float32, device)
        self.bias = weight((width,), torch.float32, device)
        self.eps = eps

    def forward(self, x_TE: Tensor) -> Tensor:
        return ops.layer_norm(x_TE, self.weight, self.bias, self.eps)

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> Tensor:
        return ops.add_layer_norm(x_TE, residual_TE, self.weight, self.bias, self.eps)


class PostNorm(Part):
    """A part whose output is normed before it joins the residual stream."""

    def __init__(self, inner: nn.Module, norm: RMSNorm) -> None:
        super().__init__()
        self.inner = inner
        self.norm = norm

    def forward(self, *args: object) -> Tensor:
        y_TE: Tensor = self.norm(self.inner(*args))
        return y_TE
