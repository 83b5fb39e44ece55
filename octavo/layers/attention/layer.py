"""The attention part of a layer: project, turn, write keys and values to the cache, attend, project back.

T tokens, E width, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from torch import Tensor

from octavo.kernels import ops
from octavo.layers.attention.backend import AttentionBackend, AttentionSpec, LayerCache
from octavo.layers.linear import Linear
from octavo.layers.part import Part
from octavo.layers.rotary import Rotary


class Attention(Part):
    """`qkv` has parts q, k and v; without `rotary` positions are the embedding's business."""

    def __init__(
        self, qkv: Linear, out: Linear, head_size: int, spec: AttentionSpec, rotary: Rotary | None = None
    ) -> None:
        super().__init__()
        self.qkv = qkv
        self.out = out
        self.rotary = rotary
        self.spec = spec
        self.head_size = head_size
        self.heads = [qkv.parts[part] // head_size for part in ("q", "k", "v")]

    def forward(self, x_TE: Tensor, positions_T: Tensor, backend: AttentionBackend, cache: LayerCache) -> Tensor:
        tokens = x_TE.size(0)
        qkv: Tensor = self.qkv(x_TE)
        q_THD, k_TGD, v_TGD = qkv.view(tokens, -1, self.head_size).split_with_sizes(self.heads, 1)
        slots_T = backend.metadata.slots
        if self.rotary is None:
            ops.write_kv(k_TGD, v_TGD, cache.k, cache.v, slots_T, cache.k_scale, cache.v_scale)
        else:
            self.rotary(q_THD, k_TGD, v_TGD, positions_T, cache, slots_T)
        y_TE: Tensor = self.out(backend.run(q_THD, cache, self.spec).view(tokens, -1))
        return y_TE
