"""Attention over the paged cache with octavo's own kernels; any device."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels import ops
from octavo.layers.attention.backend import AttentionMetadata, AttentionSpec, LayerCache


class PagedAttention:
    """`split_tokens`: 0, or a power of two for which a GPU too gives a token the same bits in every batch and chunk."""

    metadata: AttentionMetadata

    def __init__(self, split_tokens: int = 0) -> None:
        self._split_tokens = split_tokens

    def plan(self, metadata: AttentionMetadata) -> None:
        self.metadata = metadata

    def run(self, q_THD: Tensor, cache: LayerCache, spec: AttentionSpec) -> Tensor:
        step = self.metadata
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
            spec.sinks,
            cache.k_scale,
            cache.v_scale,
            self._split_tokens,
        )


def fixed_splits(context: int) -> int:
    """`split_tokens` for texts of up to so many tokens: short enough for several parts, long enough for at most 16."""
    return max(512, (1 << (context - 1).bit_length()) // 16)
