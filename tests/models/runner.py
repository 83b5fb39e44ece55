"""A stand-in for the runner: one sequence at a time through a small paged cache whose blocks lie in shuffled order."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.layers.attention.backend import AttentionMetadata, LayerCache
from octavo.layers.attention.paged import PagedAttention
from octavo.models.decoder import Decoder

BLOCK_SIZE = 4


class Sequence:
    def __init__(self, model: Decoder, length: int) -> None:
        self.model = model
        count = -(-length // BLOCK_SIZE)
        dtype = next(model.parameters()).dtype
        self.table = torch.randperm(count + 3, generator=torch.Generator().manual_seed(7))[:count]
        self.caches = [
            LayerCache(
                *torch.full((2, count + 3, spec.num_kv_heads, BLOCK_SIZE, spec.head_size), torch.nan, dtype=dtype)
            )
            for spec in model.cache_specs
        ]
        self.computed = 0
        self.backend = PagedAttention()

    @torch.inference_mode()
    def feed(self, token_ids: list[int]) -> Tensor:
        """Logits after each of the tokens."""
        positions = torch.arange(self.computed, self.computed + len(token_ids))
        self.computed += len(token_ids)
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, len(token_ids)], dtype=torch.int32),
            seq_lens=torch.tensor([self.computed], dtype=torch.int32),
            block_tables=self.table.int().unsqueeze(0),
            slots=self.table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        )
        self.backend.plan(metadata)
        hidden = self.model(torch.tensor(token_ids), positions, self.backend, self.caches)
        return self.model.logits(hidden)


def greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    sequence = Sequence(model, len(prompt) + count)
    tokens = [int(sequence.feed(prompt)[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(sequence.feed(tokens[-1:])[-1].argmax()))
    return tokens
