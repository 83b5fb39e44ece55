"""Rotary position embedding: the angle tables of the scalings checkpoints use, and the part that turns q and k.

T tokens, H query heads, G key/value heads, D head size, P positions. (Su et al. 2021; the "llama3" and "yarn" scalings
after the Llama 3.1 release and Peng et al. 2023.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import ops
from octavo.layers.attention.backend import LayerCache
from octavo.layers.linear import weight
from octavo.layers.part import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How fast each pair of a head turns. `type` and the rest are named as in Hugging Face configs."""

    base: float = 10000.0
    type: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # on cosines and sines
    truncate: bool = True

    def frequencies(self, head_size: int) -> Tensor:
        """Radians per position of each pair, float32 [D/2]."""
        exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
        return _SCALINGS[self.type](self, 1.0 / self.base**exponents)

    def table(self, head_size: int, positions: int, device: torch.device | None) -> Tensor:
        """float32 [P, D]: cosines, then sines, of every position from 0 on."""
        if device is not None and device.type == "meta":
            return torch.empty(positions, head_size, device=device)
        angles = torch.outer(torch.arange(positions).float(), self.frequencies(head_size))
        table_PD = torch.empty(positions, head_size)
        torch.cos(angles, out=table_PD[:, : head_size // 2])
        torch.sin(angles, out=table_PD[:, head_size // 2 :])
        return table_PD.mul_(self.attention_factor).to(device)


def _default(_: Rope, frequencies: Tensor) -> Tensor:
    return frequencies


def _linear(rope: Rope, frequencies: Tensor) -> Tensor:
    return frequencies / rope.factor


def _llama3(rope: Rope, frequencies: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones are kept, and those between are blended."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _yarn(rope: Rope, frequencies: Tensor) -> Tensor:
    """A ramp over the pairs, from kept (many turns in the original context) to slowed by `factor` (few)."""
    head_size = 2 * len(frequencies)

    def pair_with(turns: float) -> float:
        return head_size * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = (torch.arange(len(frequencies)).float() - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    return frequencies / rope.factor * slowed + frequencies * (1 - slowed)


_SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
ROPE_TYPES = tuple(_SCALINGS)


class HeadNorm(Part):
    """RMS norm of each query and key head, done together with the turn."""

    def __init__(self, head_size: int, eps: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.q = weight((head_size,), torch.float32, device)
        self.k = weight((head_size,), torch.float32, device)
        self.eps = eps

    def slots(self, part: str | None = None) -> dict[str, Tensor]:
        """Where the weight of part q or k belongs."""
        return {"weight": {"q": self.q, "k": self.k}[part or ""]}


class Rotary(Part):
    """Turns q and k and writes k and v to the cache, in one operation; layers share the table."""

    table: Tensor

    def __init__(self, table_PD: Tensor, norm: HeadNorm | None = None) -> None:
        super().__init__()
        self.register_buffer("table", table_PD, persistent=False)
        self.norm = norm

    def forward(
        self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, positions_T: Tensor, cache: LayerCache, slots_T: Tensor
    ) -> None:
        """q is turned in place; k's memory is free afterwards."""
        norm = self.norm
        ops.rotary_and_write(
            q_THD,
            k_TGD,
            v_TGD,
            positions_T,
            self.table,
            cache.k,
            cache.v,
            slots_T,
            None if norm is None else norm.q,
            None if norm is None else norm.k,
            0.0 if norm is None else norm.eps,
            cache.k_scale,
            cache.v_scale,
        )
