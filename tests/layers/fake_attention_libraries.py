"""Stand-ins for FlashAttention and FlashInfer, in plain torch: their call signatures, and that arguments fit together.

Unknown arguments are errors, as they are there. Contexts are gathered from the pages that the caller names, so a wrong
page, length or window is a wrong result.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from octavo.kernels import reference


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, starts: Tensor, lengths: Tensor, tables: Tensor, scale: float,
    left: int, softcap: float, causal: bool, sinks: Tensor | None = None, k_scale: float = 1.0, v_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Caches [blocks, G, B, D]."""
    assert starts.dtype is lengths.dtype is tables.dtype is torch.int32
    assert int(starts[-1]) == len(q)
    assert len(starts) - 1 == len(lengths) == len(tables)
    return reference.paged_attention(
        q, k_cache, v_cache, starts, lengths, tables, scale, left + 1, softcap, causal, sinks, k_scale, v_scale
    )


def _longest(cu_seqlens_q: Tensor) -> int:
    return int(cu_seqlens_q.diff().max())


def _as_pages(k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    assert k.dtype is v.dtype is q.dtype
    assert k.stride(-1) == v.stride(-1) == q.stride(-1) == 1
    return k.transpose(1, 2), v.transpose(1, 2)


def _checked_window(window_size: Any, causal: bool) -> int:
    left, right = window_size
    assert right == (-1 if left == -1 else 0)
    assert causal or left == -1
    return int(left)


def vllm_varlen(
    q: Tensor, k: Tensor, v: Tensor, max_seqlen_q: int, cu_seqlens_q: Tensor, max_seqlen_k: int,
    cu_seqlens_k: Tensor | None = None, seqused_k: Tensor | None = None, q_v: Tensor | None = None,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: list[int] | None = None, softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Tensor | None = None,
    return_softmax_lse: bool = False, out: Tensor | None = None, scheduler_metadata: Tensor | None = None,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    num_splits: int = 0, fa_version: int = 2, s_aux: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert cu_seqlens_k is None
    assert seqused_k is not None
    assert block_table is not None
    assert fa_version == 3 or s_aux is None
    assert s_aux is None or s_aux.dtype is q.dtype
    assert max_seqlen_q >= _longest(cu_seqlens_q)
    assert max_seqlen_k >= int(seqused_k.max())
    assert softmax_scale is not None
    left = _checked_window(window_size, causal)
    sinks = None if s_aux is None else s_aux.float()
    return attend(
        q, *_as_pages(k, v, q), cu_seqlens_q, seqused_k, block_table, softmax_scale, left, softcap, causal, sinks
    )


def third_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None,
    qv: Tensor | None = None, rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None, cache_batch_idx: Tensor | None = None, cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None, rotary_seqlens: Tensor | None = None, q_descale: Tensor | None = None,
    k_descale: Tensor | None = None, v_descale: Tensor | None = None, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    rotary_interleaved: bool = True, scheduler_metadata: Tensor | None = None, num_splits: int = 0,
    pack_gqa: bool | None = None, sm_margin: int = 0, return_softmax_lse: bool = False,
) -> Tensor:  # fmt: skip
    assert cache_seqlens is not None
    assert page_table is not None
    assert cu_seqlens_q is not None
    assert softmax_scale is not None
    assert max_seqlen_q == _longest(cu_seqlens_q)
    left = _checked_window(window_size, causal)
    pages = _as_pages(k_cache, v_cache, q)
    return attend(q, *pages, cu_seqlens_q, cache_seqlens, page_table, softmax_scale, left, softcap, causal)


def second_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Tensor | None = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert block_table is not None
    assert k.size(1) % 256 == 0
    assert cu_seqlens_k.dtype is torch.int32
    assert max_seqlen_q == _longest(cu_seqlens_q)
    assert max_seqlen_k >= _longest(cu_seqlens_k)
    assert softmax_scale is not None
    left = _checked_window(window_size, causal)
    lengths = cu_seqlens_k.diff()
    pages = _as_pages(k, v, q)
    return attend(q, *pages, cu_seqlens_q, lengths, block_table, softmax_scale, left, softcap, causal)


FLASH_ATTENTION = {
    "vllm.vllm_flash_attn": SimpleNamespace(flash_attn_varlen_func=vllm_varlen),
    "flash_attn_interface": SimpleNamespace(flash_attn_with_kvcache=third_with_kvcache),
    "flash_attn": SimpleNamespace(flash_attn_varlen_func=second_varlen),
}


class _Wrapper:
    """What decoding and prompts have in common: a plan, and contexts as lists of pages."""

    def __init__(self) -> None:
        self.plans = 0
        self.planned: dict[str, Any] | None = None

    def _keep(
        self, qo_indptr: Tensor, indptr: Tensor, indices: Tensor, last_page_len: Tensor, heads: int, kv_heads: int,
        head_dim: int, page_size: int, options: dict[str, Any],
    ) -> None:  # fmt: skip
        assert indptr.is_cpu
        assert last_page_len.is_cpu
        assert indptr.dtype is indices.dtype is last_page_len.dtype is torch.int32
        assert len(indices) == int(indptr[-1])
        assert len(last_page_len) == len(indptr) - 1 == len(qo_indptr) - 1
        assert bool((indptr.diff() > 0).all())
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        self.plans += 1
        self.planned = {
            "qo_indptr": qo_indptr.clone(), "indptr": indptr.clone(), "indices": indices.clone(),
            "last": last_page_len.clone(), "sizes": (heads, kv_heads, head_dim, page_size), **options,
        }  # fmt: skip

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *args: Any, q_scale: float | None = None,
        k_scale: float | None = None, v_scale: float | None = None, out: Tensor | None = None,
        lse: Tensor | None = None, return_lse: bool = False, enable_pdl: bool | None = None,
    ) -> Tensor:  # fmt: skip
        plan = self.planned
        assert plan is not None
        k_cache, v_cache = paged_kv_cache
        heads, kv_heads, head_dim, page_size = plan["sizes"]
        assert q.shape[1:] == (heads, head_dim)
        assert k_cache.shape[1:] == v_cache.shape[1:] == (kv_heads, page_size, head_dim)
        assert (q.dtype, k_cache.dtype) == (plan["q_data_type"], plan["kv_data_type"])
        counts = plan["indptr"].diff()
        tables = torch.full((len(counts), int(counts.max())), -1, dtype=torch.int32)
        for row, count in enumerate(counts.tolist()):
            tables[row, :count] = plan["indices"][plan["indptr"][row] :][:count]
        lengths = ((counts - 1) * page_size + plan["last"]).int()
        return attend(
            q, k_cache, v_cache, plan["qo_indptr"], lengths, tables, plan["sm_scale"], plan["window_left"],
            plan["logits_soft_cap"] or 0.0, plan["causal"], None, k_scale or 1.0, v_scale or 1.0,
        )  # fmt: skip


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_cuda_graph: bool = False,
        use_tensor_cores: bool = False, paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None, paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto", jit_args: list[Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert kv_layout == "HND"
        assert float_workspace_buffer.dtype is torch.uint8
        self.fixed = None
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            self.fixed = len(paged_kv_last_page_len_buffer)
            self.room = len(paged_kv_indices_buffer)
            assert len(paged_kv_indptr_buffer) == self.fixed + 1

    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, pos_encoding_mode: str = "NONE", window_left: int = -1,
        logits_soft_cap: float | None = None, q_data_type: Any = "float16", kv_data_type: Any = None,
        data_type: Any = None, sm_scale: float | None = None, rope_scale: float | None = None,
        rope_theta: float | None = None, non_blocking: bool = True,
    ) -> None:  # fmt: skip
        if self.fixed is not None:
            assert len(last_page_len) == self.fixed
            assert len(indices) <= self.room
        rows = torch.arange(len(indptr), dtype=torch.int32)
        options = {
            "window_left": window_left, "logits_soft_cap": logits_soft_cap, "sm_scale": sm_scale, "causal": True,
            "q_data_type": q_data_type, "kv_data_type": kv_data_type,
        }  # fmt: skip
        self._keep(rows, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, options)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None, paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None, paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None, mask_indptr_buf: Tensor | None = None, backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        assert kv_layout == "HND"

    def plan(
        self, qo_indptr: Tensor, paged_kv_indptr: Tensor, paged_kv_indices: Tensor, paged_kv_last_page_len: Tensor,
        num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, head_dim_vo: int | None = None,
        custom_mask: Tensor | None = None, packed_custom_mask: Tensor | None = None, causal: bool = False,
        pos_encoding_mode: str = "NONE", use_fp16_qk_reduction: bool = False, sm_scale: float | None = None,
        window_left: int = -1, logits_soft_cap: float | None = None, rope_scale: float | None = None,
        rope_theta: float | None = None, q_data_type: Any = "float16", kv_data_type: Any = None,
        non_blocking: bool = True,
    ) -> None:  # fmt: skip
        assert qo_indptr.is_cpu
        options = {
            "window_left": window_left, "logits_soft_cap": logits_soft_cap, "sm_scale": sm_scale, "causal": causal,
            "q_data_type": q_data_type, "kv_data_type": kv_data_type,
        }  # fmt: skip
        self._keep(
            qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
            head_dim_qk, page_size, options,
        )  # fmt: skip


FLASHINFER = SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper,
)
