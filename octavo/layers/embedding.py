"""Tokens to vectors and vectors to logits. T tokens, R rows, E width, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.layers.part import Part
from octavo.layers.quantization.scheme import Dense


class Embedding(Part):
    """One vector per token id, times `scale` rounded to the model's dtype."""

    def __init__(
        self, count: int, width: int, scheme: Dense, device: torch.device | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.matrix = Linear(width, count, scheme, device=device)
        self.scale = torch.tensor(scale, dtype=scheme.dtype).item()

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


class SegmentedEmbedding(Part):
    """A vector per token, one per position and one per segment of the text, normed.

    A token id counts from the vocabulary's end on again in the second segment: V + id. The first position has the
    number `first_position`.
    """

    def __init__(
        self, tokens: Embedding, positions: Embedding, segments: Embedding, norm: LayerNorm, first_position: int = 0
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.segments = segments
        self.norm = norm
        self.first_position = first_position

    @property
    def matrix(self) -> Linear:
        return self.tokens.matrix

    def forward(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        vocabulary = self.tokens.matrix.out_features
        places_T = positions_T + self.first_position
        segments_T = (token_ids_T // vocabulary).clamp(max=self.segments.matrix.out_features - 1)
        x_TE: Tensor = self.tokens(token_ids_T % vocabulary, positions_T)
        x_TE += self.segments(segments_T, positions_T)
        return self.norm.add(self.positions(places_T, places_T), x_TE)


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
