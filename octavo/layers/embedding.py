"""Tokens to vectors and vectors to logits. T tokens, R rows, E width, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.layers.linear import Linear
from octavo.layers.part import Part
from octavo.layers.quantization.scheme import Dense


class Embedding(Part):
    """One vector per token id, times `scale` rounded to the model's dtype."""

    def __init__(
        self, count: int, width: int, dtype: torch.dtype, device: torch.device | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.matrix = Linear(width, count, Dense(dtype), device=device)
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def forward(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:  # noqa: ARG002
        x_TE = self.matrix.rows(token_ids_T)
        return x_TE if self.scale == 1.0 else x_TE * self.scale


class PositionedEmbedding(Part):
    """A vector per token plus a learned one per position."""

    def __init__(self, tokens: Embedding, positions: Embedding) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions

    @property
    def matrix(self) -> Linear:
        return self.tokens.matrix

    def forward(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TE: Tensor = self.tokens(token_ids_T, positions_T)
        x_TE += self.positions(positions_T, positions_T)
        return x_TE


class Head(Part):
    """Logits in float32, from a matrix of its own."""

    def __init__(self, matrix: Linear, softcap: float = 0.0) -> None:
        super().__init__()
        self.matrix = matrix
        self.softcap = softcap

    def forward(self, x_RE: Tensor) -> Tensor:
        return _capped(self.matrix(x_RE, True), self.softcap)


class TiedHead(Part):
    """Logits in float32, from the vectors of the embedding."""

    def __init__(self, embedding: Embedding | PositionedEmbedding, softcap: float = 0.0) -> None:
        super().__init__()
        self.matrix = (embedding.matrix,)  # in a tuple: it stays the embedding's alone
        self.softcap = softcap

    def forward(self, x_RE: Tensor) -> Tensor:
        return _capped(self.matrix[0](x_RE, True), self.softcap)


def _capped(logits_RV: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits_RV / softcap) if softcap else logits_RV
