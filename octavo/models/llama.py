"""The Llama family: RMS norms before each part, rotary positions, grouped heads, gated MLP.

Llama 1-3 and what shares its shape (SmolLM, TinyLlama, Yi, ...), Mistral, Qwen 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.errors import CheckpointError
from octavo.layers.attention.backend import AttentionSpec, CacheSpec
from octavo.layers.attention.layer import Attention
from octavo.layers.mlp import GATED_ACTIVATIONS, GatedMLP
from octavo.layers.quantization.choice import Storage
from octavo.layers.rotary import HeadNorm, Rotary
from octavo.models.decoder import Decoder, DecoderLayer, Materials
from octavo.models.fields import MAX_HEAD_SIZE, MAX_POSITIONS, Fields
from octavo.models.weights.slots import Names, To

TARGETS = {
    "embed_tokens": To("embedding.matrix"),
    "layers.{}.input_layernorm": To("layers.{}.attention_norm"),
    "layers.{}.self_attn.q_proj": To("layers.{}.attention.qkv", "q"),
    "layers.{}.self_attn.k_proj": To("layers.{}.attention.qkv", "k"),
    "layers.{}.self_attn.v_proj": To("layers.{}.attention.qkv", "v"),
    "layers.{}.self_attn.o_proj": To("layers.{}.attention.out"),
    "layers.{}.post_attention_layernorm": To("layers.{}.mlp_norm"),
    "layers.{}.mlp.gate_proj": To("layers.{}.mlp.gate_up", "gate"),
    "layers.{}.mlp.up_proj": To("layers.{}.mlp.gate_up", "up"),
    "layers.{}.mlp.down_proj": To("layers.{}.mlp.down"),
    "norm": To("norm"),
}
HEAD_NORM = {
    "layers.{}.self_attn.q_norm": To("layers.{}.attention.rotary.norm", "q"),
    "layers.{}.self_attn.k_norm": To("layers.{}.attention.rotary.norm", "k"),
}
UNTIED = {"lm_head": To("head.matrix")}
IGNORED = (r"\.rotary_emb\.inv_freq$",)
IGNORED_WHEN_TIED = (*IGNORED, r"^lm_head\.")


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes of attention, checked."""

    width: int
    count: int
    kv_count: int
    size: int

    @classmethod
    def of(
        cls, fields: Fields, count: int | None = None, kv_count: int | None = None, size: int | None = None
    ) -> Heads:
        """From the config; the arguments are the family's defaults."""
        width = fields.whole("hidden_size", high=2**17)
        heads = fields.whole("num_attention_heads", count, high=2**12)
        kv_heads = fields.whole("num_key_value_heads", heads if kv_count is None else kv_count, high=2**12)
        if heads % kv_heads:
            raise CheckpointError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if size is None and fields.values.get("head_dim") is None and width % heads:
            raise CheckpointError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
        head_size = fields.whole("head_dim", size or width // heads, high=MAX_HEAD_SIZE)
        if head_size % 2:
            raise CheckpointError(f"head_dim {head_size} is odd: rotary positions need pairs")
        return cls(width, heads, kv_heads, head_size)

    @property
    def parts(self) -> dict[str, int]:
        return {"q": self.count * self.size, "k": self.kv_count * self.size, "v": self.kv_count * self.size}


def build(fields: Fields, storage: Storage, device: torch.device) -> Decoder:
    qwen = fields.model_type in ("qwen2", "qwen3")
    make, heads = Materials(storage, device), Heads.of(fields, size=128 if fields.model_type == "qwen3" else None)
    inner = fields.whole("intermediate_size", high=2**20)
    activation = fields.choice("hidden_act", GATED_ACTIVATIONS, "silu")
    eps = fields.real("rms_norm_eps", 1e-6, high=1.0)
    bias = fields.flag("attention_bias", False)
    qkv_bias = bias or fields.model_type == "qwen2"
    mlp_bias = fields.flag("mlp_bias", False)
    longest = fields.whole("max_position_embeddings", 2048 if not qwen else 32768, high=MAX_POSITIONS)
    table_PD = fields.rope().table(heads.size, longest, device)

    def layer(window: int) -> DecoderLayer:
        norm = HeadNorm(heads.size, eps, device) if fields.model_type == "qwen3" else None
        return DecoderLayer(
            make.rms_norm(heads.width, eps),
            Attention(
                make.linear(heads.width, heads.parts, qkv_bias),
                make.linear(heads.count * heads.size, heads.width, bias),
                heads.size,
                AttentionSpec(scale=heads.size**-0.5, window=window),
                Rotary(table_PD, norm),
            ),
            make.rms_norm(heads.width, eps),
            GatedMLP(
                make.linear(heads.width, {"gate": inner, "up": inner}, mlp_bias),
                make.linear(inner, heads.width, mlp_bias),
                activation,
            ),
        )

    layers = [layer(window) for window in windows(fields)]
    embedding = make.embedding(fields.whole("vocab_size", high=2**22), heads.width)
    tied = fields.flag("tie_word_embeddings", False)
    return Decoder(
        embedding=embedding,
        layers=layers,
        norm=make.rms_norm(heads.width, eps),
        head=make.head(embedding, tied),
        cache_specs=[CacheSpec(heads.kv_count, heads.size)] * len(layers),
        names=Names(
            targets=TARGETS | (HEAD_NORM if fields.model_type == "qwen3" else {}) | ({} if tied else UNTIED),
            ignored=IGNORED_WHEN_TIED if tied else IGNORED,
        ),
        max_position=longest,
    )


def windows(fields: Fields) -> list[int]:
    """How many keys each layer sees; 0: all."""
    count = fields.whole("num_hidden_layers", high=2**10)
    if fields.model_type == "mistral":
        window = fields.values.get("sliding_window", 4096)
        return [0 if window is None else fields.whole("sliding_window", 4096, high=MAX_POSITIONS)] * count
    if fields.model_type not in ("qwen2", "qwen3") or not fields.flag("use_sliding_window", False):
        return [0] * count
    window = fields.whole("sliding_window", 4096, high=MAX_POSITIONS)
    first = fields.whole("max_window_layers", 28, low=0, high=2**10)
    default = ["sliding_attention" if number >= first else "full_attention" for number in range(count)]
    return [window if kind == "sliding_attention" else 0 for kind in layer_types(fields, default)]


def layer_types(fields: Fields, default: list[str]) -> list[str]:
    """sliding_attention or full_attention for each layer."""
    types = fields.values.get("layer_types") or default
    known = {"sliding_attention", "full_attention"}
    if not isinstance(types, list) or len(types) != len(default) or not known.issuperset(map(str, types)):
        raise CheckpointError(f"layer_types must name {' or '.join(sorted(known))} for each of {len(default)} layers")
    return types
