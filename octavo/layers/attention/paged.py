"""Attention over the paged cache with octavo's own kernels; any device."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels import ops
from octavo.layers.attention.backend import AttentionMetadata, AttentionSpec, LayerCache


class PagedAttention:
    def __init__(self) -> None:
        self.metadata: AttentionMetadata | None = None

    def plan(self, metadata: AttentionMetadata) -> None:
        self.metadata = metadata

    def run(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cache: LayerCache, spec: AttentionSpec) -> Tensor:
        step = self.metadata
        assert step is not None, "plan() comes first"
        ops.write_kv(k_TGD, v_TGD, cache.k, cache.v, step.slots)
        return ops.paged_attention(
            q_THD,
            cache.k,
            cache.v,
            step.query_start,
            step.seq_lens,
            step.block_tables,
            spec.scale,
            spec.window,
            spec.softcap,
            spec.causal,
        )
