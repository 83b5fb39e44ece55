"""The skeleton of an encoder, built from parts: every token of a text sees the whole text, and nothing is generated.

Beside `decoder.py`, with the same face for whoever runs steps. Weights are unfilled until `models.weights.loader` fills
them. Inference only: callers run under `torch.inference_mode`. T tokens, E width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.layers.attention.backend import AttentionBackend, CacheSpec, LayerCache
from octavo.layers.embedding import SegmentedEmbedding
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm
from octavo.layers.part import Part
from octavo.models.weights.slots import Names
from octavo.plan import Ability


class EncoderLayer(Part):
    """Attention, then MLP; each is added to its input and the sum is normed."""

    def __init__(self, attention: nn.Module, attention_norm: LayerNorm, mlp: nn.Module, mlp_norm: LayerNorm) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.mlp = mlp
        self.mlp_norm = mlp_norm

    def forward(self, x_TE: Tensor, positions_T: Tensor, attention: AttentionBackend, cache: LayerCache) -> Tensor:
        """`x_TE` is written over."""
        x_TE = self.attention_norm.add(self.attention(x_TE, positions_T, attention, cache), x_TE)
        return self.mlp_norm.add(self.mlp(x_TE), x_TE)


class Classifier(Part):
    """From a text's vector to what its classes score: one score from 0 to 1, or shares of 1; without `squash` raw."""

    def __init__(self, dense: Linear, out: Linear, squash: bool = True) -> None:
        super().__init__()
        self.dense = dense
        self.out = out
        self.squash = squash

    @property
    def classes(self) -> int:
        return self.out.out_features

    def forward(self, x_RE: Tensor) -> Tensor:
        scores_RC: Tensor = self.out(torch.tanh(self.dense(x_RE)), True)
        if not self.squash:
            return scores_RC
        return scores_RC.sigmoid() if self.classes == 1 else scores_RC.softmax(-1)


class Encoder(Part):
    """`names` says where a checkpoint's tensors go; `max_position` is the longest text the model was made for."""

    def __init__(
        self,
        *,
        embedding: SegmentedEmbedding,
        layers: Sequence[EncoderLayer],
        classifier: Classifier | None,
        cache_specs: list[CacheSpec],
        names: Names,
        max_position: int,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.classifier = classifier
        self.cache_specs = cache_specs
        self.names = names
        self.max_position = max_position
        self.vocab_size = embedding.matrix.out_features
        self._layers = tuple(layers)
        self._dtype = embedding.matrix.specs["weight"].dtype

    @property
    def ability(self) -> Ability:
        width = self.embedding.matrix.in_features
        if self.classifier is None:
            return Ability(tasks=("embed",), width=width, whole_prompts=True)
        return Ability(tasks=("classify",), width=width, classes=self.classifier.classes, whole_prompts=True)

    def forward(
        self, token_ids_T: Tensor, positions_T: Tensor, attention: AttentionBackend, caches: Sequence[LayerCache]
    ) -> Tensor:
        """Final hidden states [T, E]. `attention.plan` must have been called for this step."""
        return self.stack(self.embedding(token_ids_T, positions_T), positions_T, attention, caches)

    def stack(
        self, x_TE: Tensor, positions_T: Tensor, attention: AttentionBackend, caches: Sequence[LayerCache]
    ) -> Tensor:
        """From embedded tokens, which are written over, to final hidden states."""
        for layer, cache in zip(self._layers, caches, strict=True):
            x_TE = layer(x_TE, positions_T, attention, cache)
        return x_TE

    def classify(self, vector_E: Tensor) -> Tensor:
        """float32 [C]."""
        assert self.classifier is not None
        scores_C: Tensor = self.classifier(vector_E.to(self._dtype).unsqueeze(0))[0]
        return scores_C
