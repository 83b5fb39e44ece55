"""The two feed-forward parts. T tokens, E width, F inner width."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from octavo.kernels import ops
from octavo.layers.linear import Linear
from octavo.layers.part import Part

#: By the name configs use (`hidden_act`): [gate | up] → activation(gate) · up.
GATED_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": ops.silu_mul,
    "swish": ops.silu_mul,
    "gelu_pytorch_tanh": ops.gelu_tanh_mul,
    "gelu_new": ops.gelu_tanh_mul,
}


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": ops.gelu_tanh,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "gelu": ops.gelu,
    "relu": ops.relu,
}


class GatedMLP(Part):
    """down(activation(gate(x)) · up(x)); gate and up are the parts of one matrix."""

    def __init__(self, gate_up: Linear, down: Linear, activation: str) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.activate = GATED_ACTIVATIONS[activation]

    def forward(self, x_TE: Tensor) -> Tensor:
        y_TE: Tensor = self.down(self.activate(self.gate_up(x_TE)))
        return y_TE


class MLP(Part):
    def __init__(self, up: Linear, down: Linear, activation: str) -> None:
        super().__init__()
        self.up = up
        self.down = down
        self.activate = ACTIVATIONS[activation]

    def forward(self, x_TE: Tensor) -> Tensor:
        y_TE: Tensor = self.down(self.activate(self.up(x_TE)))
        return y_TE
