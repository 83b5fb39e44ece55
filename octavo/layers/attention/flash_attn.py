"""Attention by FlashAttention 2 or 3, over octavo's cache as it lies: [blocks, G, B, D], seen with B before G.

Several packages offer it, with their own names for the same arguments; `CALLS` knows them by module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.layers.attention.backend import AttentionMetadata, AttentionSpec, LayerCache


class Call(Protocol):
    def __call__(
        self, q_THD: Tensor, k_cache: Tensor, v_cache: Tensor, step: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        """Attention of a step over caches [blocks, B, G, D]."""
        ...


class FlashAttention:
    metadata: AttentionMetadata

    def __init__(self, call: Call) -> None:
        self._call = call

    def plan(self, metadata: AttentionMetadata) -> None:
        self.metadata = metadata

    def run(self, q_THD: Tensor, cache: LayerCache, spec: AttentionSpec) -> Tensor:
        return self._call(q_THD, cache.k.transpose(1, 2), cache.v.transpose(1, 2), self.metadata, spec)


def _window(spec: AttentionSpec) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own that it sees; -1: all."""
    return (spec.window - 1, 0) if spec.causal and spec.window else (-1, -1)


def _vllms(module: Any) -> Call:
    """FlashAttention 3 as vLLM builds it, the one with sinks."""

    def call(q_THD: Tensor, k_cache: Tensor, v_cache: Tensor, step: AttentionMetadata, spec: AttentionSpec) -> Tensor:
        sinks = {} if spec.sinks is None else {"s_aux": spec.sinks.to(q_THD.dtype)}
        out_THD: Tensor = module.flash_attn_varlen_func(
            q_THD,
            k_cache,
            v_cache,
            max_seqlen_q=step.longest_query,
            cu_seqlens_q=step.query_start,
            max_seqlen_k=step.longest_context,
            seqused_k=step.seq_lens,
            softmax_scale=spec.scale,
            causal=spec.causal,
            window_size=list(_window(spec)),
            softcap=spec.softcap,
            block_table=step.block_tables,
            fa_version=3,
            **sinks,
        )
        return out_THD

    return call


def _third(module: Any) -> Call:
    """FlashAttention 3 as its authors build it."""

    def call(q_THD: Tensor, k_cache: Tensor, v_cache: Tensor, step: AttentionMetadata, spec: AttentionSpec) -> Tensor:
        out_THD: Tensor = module.flash_attn_with_kvcache(
            q_THD,
            k_cache,
            v_cache,
            cache_seqlens=step.seq_lens,
            page_table=step.block_tables,
            cu_seqlens_q=step.query_start,
            max_seqlen_q=step.longest_query,
            softmax_scale=spec.scale,
            causal=spec.causal,
            window_size=_window(spec),
            softcap=spec.softcap,
        )
        return out_THD

    return call


def _second(module: Any) -> Call:
    """FlashAttention 2, which wants to know where each row's keys would begin if they lay side by side."""

    def call(q_THD: Tensor, k_cache: Tensor, v_cache: Tensor, step: AttentionMetadata, spec: AttentionSpec) -> Tensor:
        key_start = torch.zeros_like(step.query_start)
        torch.cumsum(step.seq_lens, 0, dtype=torch.int32, out=key_start[1:])
        out_THD: Tensor = module.flash_attn_varlen_func(
            q_THD,
            k_cache,
            v_cache,
            cu_seqlens_q=step.query_start,
            cu_seqlens_k=key_start,
            max_seqlen_q=step.longest_query,
            max_seqlen_k=step.longest_context,
            softmax_scale=spec.scale,
            causal=spec.causal,
            window_size=_window(spec),
            softcap=spec.softcap,
            block_table=step.block_tables,
        )
        return out_THD

    return call


CALLS: Mapping[str, Callable[[Any], Call]] = {
    "vllm.vllm_flash_attn": _vllms,
    "vllm_flash_attn": _vllms,
    "flash_attn_interface": _third,
    "flash_attn": _second,
}
