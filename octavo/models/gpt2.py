"""GPT-2: learned positions, layer norms, a plain MLP; its checkpoints store matrices as [in, out]."""

from __future__ import annotations

import torch

from octavo.errors import CheckpointError
from octavo.layers.attention.backend import AttentionSpec, CacheSpec
from octavo.layers.attention.layer import Attention
from octavo.layers.embedding import PositionedEmbedding
from octavo.layers.mlp import ACTIVATIONS, MLP
from octavo.layers.quantization.choice import Storage
from octavo.models.decoder import Decoder, DecoderLayer, Materials
from octavo.models.fields import MAX_HEAD_SIZE, MAX_POSITIONS, Fields
from octavo.models.weights.slots import Names, To

TARGETS = {
    "wte": To("embedding.tokens.matrix"),
    "wpe": To("embedding.positions.matrix"),
    "h.{}.ln_1": To("layers.{}.attention_norm"),
    "h.{}.attn.c_attn": To("layers.{}.attention.qkv", transpose=True),
    "h.{}.attn.c_proj": To("layers.{}.attention.out", transpose=True),
    "h.{}.ln_2": To("layers.{}.mlp_norm"),
    "h.{}.mlp.c_fc": To("layers.{}.mlp.up", transpose=True),
    "h.{}.mlp.c_proj": To("layers.{}.mlp.down", transpose=True),
    "ln_f": To("norm"),
}
UNTIED = {"lm_head": To("head.matrix")}
IGNORED = (r"\.attn\.(bias|masked_bias)$",)  # causal masks


def build(fields: Fields, storage: Storage, device: torch.device) -> Decoder:
    make = Materials(storage, device)
    width = fields.whole("n_embd", 768, high=2**17)
    heads = fields.whole("n_head", 12, high=2**12)
    if width % heads or width // heads > MAX_HEAD_SIZE:
        raise CheckpointError(f"n_embd {width} must be a multiple of n_head {heads}, heads of at most {MAX_HEAD_SIZE}")
    inner = fields.whole("n_inner", 4 * width, high=2**20)
    count = fields.whole("n_layer", 12, high=2**10)
    longest = fields.whole("n_positions", 1024, high=MAX_POSITIONS)
    eps = fields.real("layer_norm_epsilon", 1e-5, high=1.0)
    activation = fields.choice("activation_function", ACTIVATIONS, "gelu_new")
    scale = (width // heads) ** -0.5 if fields.flag("scale_attn_weights", True) else 1.0
    shrinking = fields.flag("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)

    def layer(number: int) -> DecoderLayer:
        return DecoderLayer(
            make.layer_norm(width, eps),
            Attention(
                make.linear(width, dict.fromkeys("qkv", width), bias=True),
                make.linear(width, width, bias=True),
                width // heads,
                AttentionSpec(scale=scale / (number + 1) if shrinking else scale),
            ),
            make.layer_norm(width, eps),
            MLP(make.linear(width, inner, bias=True), make.linear(inner, width, bias=True), activation),
        )

    embedding = PositionedEmbedding(
        make.embedding(fields.whole("vocab_size", 50257, high=2**22), width), make.embedding(longest, width)
    )
    tied = fields.flag("tie_word_embeddings", True)
    return Decoder(
        embedding=embedding,
        layers=[layer(number) for number in range(count)],
        norm=make.layer_norm(width, eps),
        head=make.head(embedding, tied),
        cache_specs=[CacheSpec(heads, width // heads)] * count,
        names=Names(
            targets=TARGETS if tied else TARGETS | UNTIED,
            prefixes=("transformer.",),
            ignored=(*IGNORED, r"^lm_head\.") if tied else IGNORED,
        ),
        max_position=longest,
    )
