"""Whole models on Triton's kernels: a prompt in two pieces, the second beside another sequence's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_inputs import DEVICE

from octavo.execution.kv_cache import KVCache
from octavo.kernels import ops, reference
from octavo.kernels.triton import kernels
from octavo.layers.attention.backend import AttentionMetadata
from octavo.layers.attention.paged import PagedAttention
from octavo.models.registry import build
from octavo.models.weights.loader import dummy_weights

BLOCK = 16
TABLES = [[3, 1], [0, 2]]
#: A step: for each row, which sequence it is of and which of its tokens are new.
STEPS = [[(0, 0, 15)], [(1, 0, 3), (0, 15, 17)]]
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 100, "n_positions": 64}


def inputs(step: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, AttentionMetadata]:
    positions = [position for _, begin, end in step for position in range(begin, end)]
    tokens = [(31 * row + 7 * position) % 100 for row, begin, end in step for position in range(begin, end)]
    slots = [
        TABLES[row][position // BLOCK] * BLOCK + position % BLOCK
        for row, begin, end in step
        for position in range(begin, end)
    ]
    starts = torch.tensor([0, *(end - begin for _, begin, end in step)]).cumsum(0)
    metadata = AttentionMetadata(
        query_start=starts.int().to(DEVICE),
        seq_lens=torch.tensor([end for *_, end in step], dtype=torch.int32, device=DEVICE),
        block_tables=torch.tensor([TABLES[row] for row, *_ in step], dtype=torch.int32, device=DEVICE),
        slots=torch.tensor(slots, device=DEVICE),
    )
    return torch.tensor(tokens, device=DEVICE), torch.tensor(positions, device=DEVICE), metadata


@pytest.mark.parametrize("config", [QWEN3, GPT2], ids=["qwen3", "gpt2"])
@torch.inference_mode()
def test_a_model_computes_what_it_computes_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    model = build(config, torch.float16, DEVICE)
    dummy_weights(model, 3)
    attention = PagedAttention()
    caches = {tool: KVCache(model.cache_specs, 4, BLOCK, torch.float16, DEVICE).caches for tool in (kernels, reference)}
    for step in STEPS:
        tokens, positions, metadata = inputs(step)
        hidden = {}
        for tool in (kernels, reference):
            monkeypatch.setattr(ops, "kernels_for", lambda x, tool=tool: tool)
            attention.plan(metadata)
            hidden[tool] = model(tokens, positions, attention, caches[tool]).float()
        torch.testing.assert_close(hidden[kernels], hidden[reference], atol=1e-2, rtol=1e-2)
