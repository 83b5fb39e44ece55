"""Plain torch that a graph can hold: as `reference`, but nothing waits for a value. Quicker than interpreted kernels.

T tokens, R rows, G key/value heads, D head size, S slots of a table.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from octavo.kernels import reference


def write_kv(
    k_TGD: Tensor, v_TGD: Tensor, k_cache: Tensor, v_cache: Tensor, slots_T: Tensor, *_: float, **__: float
) -> None:
    order_T = (slots_T >= 0).to(torch.int64).argsort(stable=True)  # padding first: it writes back what is overwritten
    slots_T = slots_T[order_T]
    blocks_T, offsets_T = slots_T.clamp(min=0) // k_cache.size(2), slots_T % k_cache.size(2)
    for new_TGD, cache in ((k_TGD, k_cache), (v_TGD, v_cache)):
        kept_TGD = cache[blocks_T, :, offsets_T]
        cache[blocks_T, :, offsets_T] = torch.where((slots_T < 0)[:, None, None], kept_TGD, new_TGD[order_T])


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    *_: Any,
) -> Tensor:
    tokens, heads, size = q_THD.shape
    token = torch.arange(tokens)
    row_T = torch.searchsorted(query_start[1:].long(), token, right=True)
    k_TGSD, v_TGSD = (cache[block_tables.long()].transpose(1, 2).flatten(2, 3)[row_T] for cache in (k_cache, v_cache))
    q_TGMD = q_THD.view(tokens, k_cache.size(1), -1, size)
    scores = q_TGMD @ k_TGSD.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    lengths_T1 = seq_lens_R[row_T].long()[:, None]
    position_T1 = lengths_T1 - (query_start[1:].long()[row_T] - token)[:, None]
    key = torch.arange(scores.size(-1))
    seen_TS = key < lengths_T1
    if causal:
        seen_TS = seen_TS & (key <= position_T1) & (key > position_T1 - (window or 2**40))
    scores = scores.masked_fill(~seen_TS[:, None, None], -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ v_TGSD).reshape(tokens, heads, size)


def rotary_and_write(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, table: Tensor, *rest: Any) -> None:
    k_cache, v_cache, slots, *norm = rest
    reference.rotary(q, k, positions, table, *norm[:3])
    write_kv(k, v, k_cache, v_cache, slots)


quick = SimpleNamespace(
    **{
        **vars(reference),
        "write_kv": write_kv,
        "paged_attention": paged_attention,
        "rotary_and_write": rotary_and_write,
    }
)
