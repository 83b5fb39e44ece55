"""The BERT family: learned positions and segments, attention both ways, a norm after each part.

BERT, RoBERTa and XLM-RoBERTa, as embedding models and, with a head of their own, as classifiers and cross-encoders.
"""

from __future__ import annotations

import torch

from octavo.errors import CheckpointError
from octavo.layers.attention.backend import AttentionSpec, CacheSpec
from octavo.layers.attention.layer import Attention
from octavo.layers.embedding import SegmentedEmbedding
from octavo.layers.mlp import ACTIVATIONS, MLP
from octavo.layers.quantization.choice import Storage
from octavo.models.decoder import Materials
from octavo.models.encoder import Classifier, Encoder, EncoderLayer
from octavo.models.fields import MAX_HEAD_SIZE, MAX_POSITIONS, Fields
from octavo.models.weights.slots import Names, To

TARGETS = {
    "embeddings.word_embeddings": To("embedding.tokens.matrix"),
    "embeddings.position_embeddings": To("embedding.positions.matrix"),
    "embeddings.token_type_embeddings": To("embedding.segments.matrix"),
    "embeddings.LayerNorm": To("embedding.norm"),
    "encoder.layer.{}.attention.self.query": To("layers.{}.attention.qkv", "q"),
    "encoder.layer.{}.attention.self.key": To("layers.{}.attention.qkv", "k"),
    "encoder.layer.{}.attention.self.value": To("layers.{}.attention.qkv", "v"),
    "encoder.layer.{}.attention.output.dense": To("layers.{}.attention.out"),
    "encoder.layer.{}.attention.output.LayerNorm": To("layers.{}.attention_norm"),
    "encoder.layer.{}.intermediate.dense": To("layers.{}.mlp.up"),
    "encoder.layer.{}.output.dense": To("layers.{}.mlp.down"),
    "encoder.layer.{}.output.LayerNorm": To("layers.{}.mlp_norm"),
}
BERT_CLASSIFIER = {"pooler.dense": To("classifier.dense"), "classifier": To("classifier.out")}
ROBERTA_CLASSIFIER = {"classifier.dense": To("classifier.dense"), "classifier.out_proj": To("classifier.out")}
IGNORED = (r"^embeddings\.position_ids$", r"^(cls|lm_head)\.")
IGNORED_WITHOUT_CLASSIFIER = (*IGNORED, r"^(pooler|classifier)\.")


def build(fields: Fields, storage: Storage, device: torch.device) -> Encoder:
    roberta = fields.model_type != "bert"
    make = Materials(storage, device)
    width = fields.whole("hidden_size", 768, high=2**17)
    heads = fields.whole("num_attention_heads", 12, high=2**12)
    if width % heads or width // heads > MAX_HEAD_SIZE:
        raise CheckpointError(
            f"hidden_size {width} must be a multiple of num_attention_heads {heads}, heads of at most {MAX_HEAD_SIZE}"
        )
    inner = fields.whole("intermediate_size", 4 * width, high=2**20)
    count = fields.whole("num_hidden_layers", 12, high=2**10)
    eps = fields.real("layer_norm_eps", 1e-12, high=1.0)
    activation = fields.choice("hidden_act", ACTIVATIONS, "gelu")
    fields.only("position_embedding_type", "absolute")
    fields.only("is_decoder", False)
    fields.only("add_cross_attention", False)

    def layer() -> EncoderLayer:
        return EncoderLayer(
            Attention(
                make.linear(width, dict.fromkeys("qkv", width), bias=True),
                make.linear(width, width, bias=True),
                width // heads,
                AttentionSpec(scale=(width // heads) ** -0.5, causal=False),
            ),
            make.layer_norm(width, eps),
            MLP(make.linear(width, inner, bias=True), make.linear(inner, width, bias=True), activation),
            make.layer_norm(width, eps),
        )

    places = fields.whole("max_position_embeddings", 512, high=MAX_POSITIONS)
    first = fields.whole("pad_token_id", 1, low=0, high=places - 2) + 1 if roberta else 0
    embedding = SegmentedEmbedding(
        make.embedding(fields.whole("vocab_size", 30522, high=2**22), width),
        make.embedding(places, width),
        make.embedding(fields.whole("type_vocab_size", 2, high=16), width),
        make.layer_norm(width, eps),
        first,
    )
    classifier = _classifier(fields, make, width)
    heads_of = ROBERTA_CLASSIFIER if roberta else BERT_CLASSIFIER
    return Encoder(
        embedding=embedding,
        layers=[layer() for _ in range(count)],
        classifier=classifier,
        cache_specs=[CacheSpec(heads, width // heads)] * count,
        names=Names(
            targets=TARGETS if classifier is None else TARGETS | heads_of,
            prefixes=("roberta." if roberta else "bert.",),
            ignored=IGNORED_WITHOUT_CLASSIFIER if classifier is None else IGNORED,
            renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        ),
        max_position=places - first,
    )


def _classifier(fields: Fields, make: Materials, width: int) -> Classifier | None:
    names = fields.values.get("architectures")
    if not isinstance(names, list) or not any(str(name).endswith("ForSequenceClassification") for name in names):
        return None
    labels = fields.values.get("id2label")
    classes = fields.whole("num_labels", len(labels) if isinstance(labels, dict) and labels else 2, high=2**16)
    return Classifier(make.linear(width, width, bias=True), make.linear(width, classes, bias=True), _squashes(fields))


def _squashes(fields: Fields) -> bool:
    """Cross-encoders may name the function that their scores go through; one that leaves them as they are is known."""
    own = fields.values.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else None
    named = named or fields.values.get("sbert_ce_default_activation_function")
    return not (isinstance(named, str) and named.rpartition(".")[2] == "Identity")
