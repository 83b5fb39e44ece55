"""The Gemma family: norms before and after each part, norm weights stored as w - 1, embeddings scaled by their width,
layers that see a window alternating with layers that see everything.

Gemma 2 caps scores and logits; Gemma 3 norms each head instead and turns the two kinds of layers at different speeds.
Of a Gemma 3 with vision only the text part is built.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.errors import CheckpointError
from octavo.layers.attention.backend import AttentionSpec, CacheSpec
from octavo.layers.attention.layer import Attention
from octavo.layers.mlp import GATED_ACTIVATIONS, GatedMLP
from octavo.layers.norm import PostNorm
from octavo.layers.quantization.choice import Storage
from octavo.layers.rotary import HeadNorm, Rope, Rotary
from octavo.models.decoder import Decoder, DecoderLayer, Materials
from octavo.models.fields import MAX_POSITIONS, Fields
from octavo.models.llama import IGNORED, IGNORED_WHEN_TIED, UNTIED, Heads, layer_types
from octavo.models.weights.slots import Names, To

TARGETS = {
    "embed_tokens": To("embedding.matrix"),
    "layers.{}.input_layernorm": To("layers.{}.attention_norm", offset=1.0),
    "layers.{}.self_attn.q_proj": To("layers.{}.attention.inner.qkv", "q"),
    "layers.{}.self_attn.k_proj": To("layers.{}.attention.inner.qkv", "k"),
    "layers.{}.self_attn.v_proj": To("layers.{}.attention.inner.qkv", "v"),
    "layers.{}.self_attn.o_proj": To("layers.{}.attention.inner.out"),
    "layers.{}.post_attention_layernorm": To("layers.{}.attention.norm", offset=1.0),
    "layers.{}.pre_feedforward_layernorm": To("layers.{}.mlp_norm", offset=1.0),
    "layers.{}.mlp.gate_proj": To("layers.{}.mlp.inner.gate_up", "gate"),
    "layers.{}.mlp.up_proj": To("layers.{}.mlp.inner.gate_up", "up"),
    "layers.{}.mlp.down_proj": To("layers.{}.mlp.inner.down"),
    "layers.{}.post_feedforward_layernorm": To("layers.{}.mlp.norm", offset=1.0),
    "norm": To("norm", offset=1.0),
}
HEAD_NORM = {
    "layers.{}.self_attn.q_norm": To("layers.{}.attention.inner.rotary.norm", "q", offset=1.0),
    "layers.{}.self_attn.k_norm": To("layers.{}.attention.inner.rotary.norm", "k", offset=1.0),
}
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
VISION = (r"^vision_tower\.", r"^multi_modal_projector\.")


def build(fields: Fields, storage: Storage, device: torch.device) -> Decoder:
    fields = _text(fields)
    gemma2 = fields.model_type == "gemma2"
    fields.only("use_bidirectional_attention", False)
    make = Materials(storage, device)
    heads = Heads.of(fields, count=8, kv_count=4, size=256)
    inner = fields.whole("intermediate_size", 9216, high=2**20)
    activation = fields.choice("hidden_activation", GATED_ACTIVATIONS, "gelu_pytorch_tanh")
    eps = fields.real("rms_norm_eps", 1e-6, high=1.0)
    bias = fields.flag("attention_bias", False)
    longest = fields.whole("max_position_embeddings", 8192 if gemma2 else 131072, high=MAX_POSITIONS)
    window = fields.whole("sliding_window", 4096, high=MAX_POSITIONS)
    scale = fields.real("query_pre_attn_scalar", 256, high=2**20) ** -0.5
    softcap = fields.maybe_real("attn_logit_softcapping", 50.0 if gemma2 else None)
    tables = {kind: rope.table(heads.size, longest, device) for kind, rope in _ropes(fields).items()}

    def layer(kind: str) -> DecoderLayer:
        attention = Attention(
            make.linear(heads.width, heads.parts, bias),
            make.linear(heads.count * heads.size, heads.width, bias),
            heads.size,
            AttentionSpec(scale=scale, window=window if kind == "sliding_attention" else 0, softcap=softcap),
            Rotary(tables[kind], None if gemma2 else HeadNorm(heads.size, eps, device)),
        )
        mlp = GatedMLP(
            make.linear(heads.width, {"gate": inner, "up": inner}), make.linear(inner, heads.width), activation
        )
        return DecoderLayer(
            make.rms_norm(heads.width, eps),
            PostNorm(attention, make.rms_norm(heads.width, eps)),
            make.rms_norm(heads.width, eps),
            PostNorm(mlp, make.rms_norm(heads.width, eps)),
        )

    layers = [layer(kind) for kind in _kinds(fields)]
    embedding = make.embedding(fields.whole("vocab_size", 262208, high=2**22), heads.width, heads.width**0.5)
    tied = fields.flag("tie_word_embeddings", True)
    cap = fields.maybe_real("final_logit_softcapping", 30.0 if gemma2 else None)
    return Decoder(
        embedding=embedding,
        layers=layers,
        norm=make.rms_norm(heads.width, eps),
        head=make.head(embedding, tied, cap),
        cache_specs=[CacheSpec(heads.kv_count, heads.size)] * len(layers),
        names=Names(
            targets=TARGETS | ({} if gemma2 else HEAD_NORM) | ({} if tied else UNTIED),
            prefixes=PREFIXES,
            ignored=VISION + (IGNORED_WHEN_TIED if tied else IGNORED),
        ),
        max_position=longest,
    )


def _text(fields: Fields) -> Fields:
    """The text part of a multimodal configuration."""
    if fields.model_type != "gemma3":
        return fields
    text = fields.values.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError("the configuration of a gemma3 must have a text_config")
    return Fields(text, "gemma3_text")


def _kinds(fields: Fields) -> list[str]:
    """Which layers see only a window: all but every sixth (Gemma 3), every other one (Gemma 2), or as listed."""
    count = fields.whole("num_hidden_layers", 26, high=2**10)
    period = 2 if fields.model_type == "gemma2" else fields.whole("sliding_window_pattern", 6, high=2**10)
    return layer_types(
        fields, ["sliding_attention" if (number + 1) % period else "full_attention" for number in range(count)]
    )


def _ropes(fields: Fields) -> dict[str, Rope]:
    if fields.model_type == "gemma2":
        return dict.fromkeys(("sliding_attention", "full_attention"), fields.rope())
    own = fields.values.get("rope_parameters")
    if isinstance(own, Mapping) and "sliding_attention" in own:
        local = fields.rope("sliding_attention")
    else:
        local = Rope(base=fields.real("rope_local_base_freq", 10000.0))
    return {"sliding_attention": local, "full_attention": fields.rope("full_attention", 1000000.0)}
