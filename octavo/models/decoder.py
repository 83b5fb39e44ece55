"""The one skeleton of a decoder-only language model, built from parts.

A family is a function from a config to a `Decoder`; what distinguishes families is which parts it picks. Weights are
unfilled until `models.weights.loader` fills them. Inference only: callers run under `torch.inference_mode`.
T tokens, R rows, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.layers.attention.backend import AttentionBackend, CacheSpec, LayerCache
from octavo.layers.embedding import Embedding, Head, PositionedEmbedding, TiedHead
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm, RMSNorm
from octavo.layers.part import Part
from octavo.layers.quantization.choice import Storage
from octavo.models.weights.slots import Names
from octavo.plan import Ability
from octavo.request import Task

Norm = RMSNorm | LayerNorm


@dataclass(frozen=True, slots=True)
class Materials:
    """What every part of a model is made of."""

    storage: Storage
    device: torch.device

    def linear(self, in_features: int, parts: int | Mapping[str, int], bias: bool = False) -> Linear:
        dtype = self.storage.dense.dtype if bias else None
        return Linear(in_features, parts, self.storage.matrix(in_features), bias=dtype, device=self.device)

    def embedding(self, count: int, width: int, scale: float = 1.0) -> Embedding:
        return Embedding(count, width, self.storage.dense, self.device, scale)

    def head(self, embedding: Embedding | PositionedEmbedding, tied: bool, softcap: float = 0.0) -> Head | TiedHead:
        if tied:
            return TiedHead(embedding, softcap)
        width, count = embedding.matrix.in_features, embedding.matrix.out_features
        return Head(Linear(width, count, self.storage.dense, device=self.device), softcap)

    def rms_norm(self, width: int, eps: float) -> RMSNorm:
        return RMSNorm(width, eps, self.device)

    def layer_norm(self, width: int, eps: float) -> LayerNorm:
        return LayerNorm(width, eps, self.device)


class DecoderLayer(Part):
    """Attention, then MLP. Takes the normed residual stream and returns what is still to be added to it."""

    def __init__(self, attention_norm: Norm, attention: nn.Module, mlp_norm: Norm, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor, positions_T: Tensor, attention: AttentionBackend, cache: LayerCache
    ) -> Tensor:
        x_TE = self.attention(x_TE, positions_T, attention, cache)
        y_TE: Tensor = self.mlp(self.mlp_norm.add(x_TE, residual_TE))
        return y_TE


class Decoder(Part):
    """`names` says where a checkpoint's tensors go; `max_position` is the context length the model was made for."""

    def __init__(
        self,
        *,
        embedding: Embedding | PositionedEmbedding,
        layers: Sequence[DecoderLayer],
        norm: Norm,
        head: Head | TiedHead,
        cache_specs: list[CacheSpec],
        names: Names,
        max_position: int,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.cache_specs = cache_specs
        self.names = names
        self.max_position = max_position
        self.vocab_size = embedding.matrix.out_features
        self.tasks: tuple[Task, ...] = ("generate", "embed")
        self._layers = tuple(layers)
        self._next_norms = (*(layer.attention_norm for layer in layers[1:]), norm)

    @property
    def ability(self) -> Ability:
        return Ability(tasks=self.tasks, width=self.embedding.matrix.in_features)

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, attention: AttentionBackend, caches: Sequence[LayerCache]
    ) -> Tensor:
        """Final hidden states [T, E]. `attention.plan` must have been called for this step."""
        return self.stack(self.embedding(token_ids_T, positions_T), positions_T, attention, caches)

    def stack(
        self, residual_TE: Tensor, positions_T: Tensor, attention: AttentionBackend, caches: Sequence[LayerCache]
    ) -> Tensor:
        """From embedded tokens to final hidden states; the residual stream is written over."""
        x_TE: Tensor = self._layers[0].attention_norm(residual_TE)
        for layer, cache, next_norm in zip(self._layers, caches, self._next_norms, strict=True):
            x_TE = layer(x_TE, residual_TE, positions_T, attention, cache)
            x_TE = next_norm.add(x_TE, residual_TE)
        return x_TE

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """float32 [R, V]."""
        logits_RV: Tensor = self.head(hidden_RE)
        return logits_RV
