"""What attention needs from whoever runs a step, and the seam between layers and the ways to compute attention.

T tokens of the step, R rows (sequences), H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class LayerCache(NamedTuple):
    """Keys and values of one layer: each [num_blocks, num_kv_heads, block_size, head_size].

    Where the caches are 8-bit floats, a number is what lies there times its scale.
    """

    k: Tensor
    v: Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a layer's cache must hold for one token."""

    num_kv_heads: int
    head_size: int


@dataclass(slots=True)
class AttentionMetadata:
    """A step as attention sees it. On a CPU all of it lies on the CPU."""

    query_start: Tensor  # int32 [R+1]: where each row's tokens begin; the last entry is T
    seq_lens: Tensor  # int32 [R]: tokens in the cache after this step
    block_tables: Tensor  # int32 [R, max_blocks]: physical block of each logical block
    slots: Tensor  # int64 [T]: where each token's k and v go: block * block_size + offset; -1: nowhere
    # What the host knows without asking the device. On a CPU the tensors are those above.
    longest_query: int = 0  # most new tokens of a row
    longest_context: int = 0  # most tokens of a row, these included
    query_start_host: Tensor | None = None
    seq_lens_host: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """How a layer attends: scores are multiplied by `scale`, `window` keys are seen (0: all), `softcap` 0 is none.

    `sinks` (float32, one number per query head) are scores of keys without values, which take weight from all others.
    Without `causal` every token sees its whole text, so a text must be computed in one step.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    causal: bool = True
    sinks: Tensor | None = None


class Event(Protocol):
    """A place in what a device was ordered to do. A new one lies before everything."""

    def record(self) -> None:
        """Move it to after what has been enqueued so far."""

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


class AttentionBackend(Protocol):
    metadata: AttentionMetadata
    """The step that was planned last."""

    def plan(self, metadata: AttentionMetadata) -> None:
        """Called once per step, before the layers run. The metadata must stay as it is until the step ends."""

    def run(self, q_THD: Tensor, cache: LayerCache, spec: AttentionSpec) -> Tensor:
        """Once per layer, when the step's keys and values are in the cache. Returns [T, H, D]."""
