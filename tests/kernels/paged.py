"""Attention inputs: contexts in contiguous form, and the same contexts scattered over a paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Context:
    """Keys, values and queries of one sequence at every position."""

    q_SHD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor

    @classmethod
    def random(cls, seed: int, length: int, heads: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> Context:
        generator = torch.Generator().manual_seed(seed)

        def normal(count: int) -> Tensor:
            return torch.randn(length, count, head_size, generator=generator).to(dtype)

        return cls(normal(heads), normal(kv_heads), normal(kv_heads))


def paged(rows: list[tuple[Context, int, int]], block_size: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of `paged_attention` for tokens begin … end-1 of each context; everything unused is NaN or -1."""
    counts = [-(-end // block_size) for _, _, end in rows]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed))
    _, kv_heads, head_size = rows[0][0].k_SGD.shape
    k, v = torch.full((2, len(order), kv_heads, block_size, head_size), torch.nan, dtype=rows[0][0].k_SGD.dtype)
    tables = torch.full((len(rows), max(counts) + 1), -1, dtype=torch.int32)
    queries, taken = [], 0
    for row, (context, begin, end) in enumerate(rows):
        blocks = order[taken : taken + counts[row]]
        taken += counts[row]
        tables[row, : counts[row]] = blocks.int()
        position = torch.arange(end)
        k[blocks[position // block_size], :, position % block_size] = context.k_SGD[:end]
        v[blocks[position // block_size], :, position % block_size] = context.v_SGD[:end]
        queries.append(context.q_SHD[begin:end])
    starts = torch.tensor([0, *(len(query) for query in queries)]).cumsum(0).int()
    lengths = torch.tensor([end for _, _, end in rows], dtype=torch.int32)
    return torch.cat(queries), k, v, starts, lengths, tables
