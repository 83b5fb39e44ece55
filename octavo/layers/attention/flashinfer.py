"""Attention by FlashInfer: a wrapper of its for each kind of layer, planned once a step, run in every layer.

Its wrappers for decoding keep their arguments at one place, so that a captured graph of so many rows is right after
`plan` has been called with another step of as many; a step in which some row has several tokens has other wrappers.
A wrapper sends its plan from pinned memory of its own, which the next plan may not write to before that has gone.
Pages are the cache's blocks, in the layout [blocks, G, B, D], which FlashInfer calls HND.

R rows, P pages of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo.layers.attention.backend import AttentionMetadata, AttentionSpec, Event, LayerCache

_WORKSPACE = 128 * 2**20  # bytes, as its documents advise
_TENSOR_CORES_FROM = 4  # query heads of a key/value head; with fewer its other kernel is the quicker


class _Kind(NamedTuple):
    """What FlashInfer plans for: layers that have this in common share a plan."""

    heads: int
    kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    cache_dtype: torch.dtype
    scale: float
    window: int
    softcap: float
    causal: bool


class _Pages(NamedTuple):
    """A step's contexts as FlashInfer takes them; what the host knows lies on the host."""

    start_R1: Tensor
    ids_P: Tensor
    last_length_R: Tensor


class FlashInfer:
    """graph_sizes: numbers of rows whose decoding steps may be captured. sent: a new event."""

    metadata: AttentionMetadata

    def __init__(self, module: Any, device: torch.device, graph_sizes: Sequence[int], sent: Event) -> None:
        self._module = module
        self._sent = sent  # plans, the last of them
        self._workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)
        self._graph_sizes = frozenset(graph_sizes)
        self._captured: dict[tuple[int, _Kind], Any] = {}  # wrappers by rows
        self._others: dict[tuple[bool, _Kind], Any] = {}  # wrappers by whether every row has one token
        self._planned: set[tuple[bool, _Kind]] = set()
        self._pages: _Pages | None = None

    def plan(self, metadata: AttentionMetadata) -> None:
        self._sent.synchronize()
        self.metadata = metadata
        self._planned.clear()
        self._pages = None
        if metadata.longest_query == 1:
            for (rows, kind), wrapper in self._captured.items():
                if rows == metadata.seq_lens.size(0):
                    self._plan(wrapper, kind, decoding=True)

    def run(self, q_THD: Tensor, cache: LayerCache, spec: AttentionSpec) -> Tensor:
        _, kv_heads, block_size, head_size = cache.k.shape
        window = spec.window if spec.causal else 0
        kind = _Kind(
            q_THD.size(1), kv_heads, head_size, block_size, q_THD.dtype, cache.k.dtype, spec.scale, window,
            spec.softcap, spec.causal,
        )  # fmt: skip
        out_THD: Tensor = self._wrapper(kind).run(
            q_THD, (cache.k, cache.v), k_scale=cache.k_scale, v_scale=cache.v_scale
        )
        return out_THD

    def _wrapper(self, kind: _Kind) -> Any:
        """One that is planned for this step."""
        rows, decoding = self.metadata.seq_lens.size(0), self.metadata.longest_query == 1
        if decoding and rows in self._graph_sizes:
            if (rows, kind) not in self._captured:
                wrapper = self._captured[rows, kind] = self._for_graphs(rows, kind)
                self._plan(wrapper, kind, decoding)
            return self._captured[rows, kind]
        if (decoding, kind) not in self._others:
            self._others[decoding, kind] = self._for_others(kind, decoding)
        if (decoding, kind) not in self._planned:
            self._plan(self._others[decoding, kind], kind, decoding)
            self._planned.add((decoding, kind))
        return self._others[decoding, kind]

    def _for_graphs(self, rows: int, kind: _Kind) -> Any:
        def integers(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self._workspace.device)

        return self._module.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            kv_layout="HND",
            use_cuda_graph=True,
            use_tensor_cores=kind.heads >= _TENSOR_CORES_FROM * kind.kv_heads,
            paged_kv_indptr_buffer=integers(rows + 1),
            paged_kv_indices_buffer=integers(self.metadata.block_tables.numel()),
            paged_kv_last_page_len_buffer=integers(rows),
        )

    def _for_others(self, kind: _Kind, decoding: bool) -> Any:
        if not decoding:
            return self._module.BatchPrefillWithPagedKVCacheWrapper(self._workspace, kv_layout="HND")
        return self._module.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, kv_layout="HND", use_tensor_cores=kind.heads >= _TENSOR_CORES_FROM * kind.kv_heads
        )

    def _plan(self, wrapper: Any, kind: _Kind, decoding: bool) -> None:
        if self._pages is None:
            self._pages = _pages(self.metadata, kind.block_size)
        places = (self._pages.start_R1, self._pages.ids_P, self._pages.last_length_R)
        sizes = (kind.heads, kind.kv_heads, kind.head_size, kind.block_size)
        options: dict[str, Any] = {
            "sm_scale": kind.scale,
            "window_left": kind.window - 1,
            "logits_soft_cap": kind.softcap,
            "q_data_type": kind.dtype,
            "kv_data_type": kind.cache_dtype,
        }
        if decoding:
            wrapper.plan(*places, *sizes, **options)
        else:
            wrapper.plan(self.metadata.query_start_host, *places, *sizes, causal=kind.causal, **options)
        self._sent.record()


def _pages(step: AttentionMetadata, block_size: int) -> _Pages:
    """Waits for nothing: how many pages there are is known on the host, which they are on the device alone.

    A row that pads the step has a page like others: FlashInfer knows no rows without keys.
    """
    assert step.seq_lens_host is not None
    lengths_R = step.seq_lens_host.clamp(min=1)
    start_R1 = torch.zeros(len(lengths_R) + 1, dtype=torch.int32)
    torch.cumsum((lengths_R + block_size - 1) // block_size, 0, dtype=torch.int32, out=start_R1[1:])
    count = int(start_R1[-1])
    counts_R = (step.seq_lens.clamp(min=1) + block_size - 1) // block_size
    row_P = torch.repeat_interleave(counts_R, output_size=count)
    first_R = counts_R.cumsum(0) - counts_R
    column_P = torch.arange(count, device=row_P.device) - first_R[row_P]
    return _Pages(start_R1, step.block_tables[row_P, column_P], (lengths_R - 1) % block_size + 1)
