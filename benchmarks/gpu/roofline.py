"""The least time that a step can take: bytes over bandwidth, operations over their rate. Knows nothing of measuring.

    decoding   t = max(W / BW, 2 (P_lin + P_head) B / F) + B · context · KV / BW
    prefill    t = (2 P_lin S + 2 P_head + 2 L H D S²) / F

W bytes of weights that a step reads (linear layers in the format's width, the head in 16 bits; of the embedding a step
reads only rows), P weights, B sequences, S tokens, L layers, H query heads of D, KV bytes of a token's keys and values
in all layers, BW and F what the GPU can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Rate = Literal["bf16", "fp8", "int8"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's sizes, under its name; the weights are random."""

    name: str
    model_type: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False  # the head is the embedding

    @property
    def linear_weights(self) -> int:
        """Of all layers."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.hidden

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's matrices, as they are multiplied, and of the head."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_size, self.hidden),
            "o": (self.hidden, self.heads * self.head_size),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocabulary, self.hidden),
        }

    def config(self, longest: int) -> dict[str, Any]:
        """A config.json, for texts of at most so many tokens."""
        return {
            "model_type": self.model_type,
            "architectures": [{"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[self.model_type]],
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": longest,
            "tie_word_embeddings": self.tied,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        }


LLAMA_8B = Shape(name="Llama-3.1-8B", model_type="llama", layers=32, hidden=4096, inner=14336, heads=32, kv_heads=8,
                 head_size=128, vocabulary=128256)  # fmt: skip
QWEN_8B = Shape(name="Qwen3-8B", model_type="qwen3", layers=36, hidden=4096, inner=12288, heads=32, kv_heads=8,
                head_size=128, vocabulary=151936)  # fmt: skip
LLAMA_1B = Shape(name="Llama-3.2-1B", model_type="llama", layers=16, hidden=2048, inner=8192, heads=32, kv_heads=8,
                 head_size=64, vocabulary=128256, tied=True)  # fmt: skip
QWEN_06B = Shape(name="Qwen3-0.6B", model_type="qwen3", layers=28, hidden=1024, inner=3072, heads=16, kv_heads=8,
                 head_size=128, vocabulary=151936, tied=True)  # fmt: skip
SHAPES = (LLAMA_8B, QWEN_8B, LLAMA_1B, QWEN_06B)


@dataclass(frozen=True)
class Format:
    """How weights and caches are stored, and which of the GPU's rates products have."""

    name: str
    weight_bytes: float
    cache_bytes: float
    rate: Rate


BF16 = Format("bf16", 2.0, 2.0, "bf16")
FP8 = Format("fp8 + fp8 KV", 1.0, 1.0, "fp8")
INT4 = Format("int4 g128", 0.5 + 2 / 128, 2.0, "bf16")  # an fp16 scale for 128 weights
FORMATS = (BF16, FP8, INT4)


@dataclass(frozen=True)
class Ceilings:
    """What the GPU was seen to do: bytes copied a second, read and written, and operations a second (0: not at all)."""

    bandwidth: float
    bf16: float
    fp8: float = 0.0
    int8: float = 0.0

    def rate(self, name: Rate) -> float:
        """A GPU without units for a format computes it in 16 bits."""
        return getattr(self, name) or self.bf16


def cache_bytes(shape: Shape, form: Format) -> float:
    """Of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * form.cache_bytes


def weight_bytes(shape: Shape, form: Format) -> float:
    return shape.linear_weights * form.weight_bytes + shape.head_weights * 2


def decode_seconds(shape: Shape, form: Format, sequences: int, context: float, ceilings: Ceilings) -> float:
    """A step in which each sequence, with so many tokens in its context, gets one more."""
    operations = 2 * (shape.linear_weights + shape.head_weights) * sequences
    product = max(weight_bytes(shape, form) / ceilings.bandwidth, operations / ceilings.rate(form.rate))
    return product + sequences * context * cache_bytes(shape, form) / ceilings.bandwidth


def prefill_seconds(shape: Shape, form: Format, tokens: int, ceilings: Ceilings) -> float:
    """A prompt's way to its first token."""
    products = 2 * shape.linear_weights * tokens + 2 * shape.head_weights
    attention = 2 * shape.layers * shape.heads * shape.head_size * tokens**2
    return (products + attention) / ceilings.rate(form.rate)


@dataclass(frozen=True)
class Load:
    """Requests that are all there at the beginning."""

    requests: int
    prompt: int
    output: int

    def __str__(self) -> str:
        return f"{self.prompt}/{self.output}"


def offline_seconds(shape: Shape, form: Format, load: Load, at_once: int, ceilings: Ceilings) -> float:
    """All prompts one after the other, then all outputs by `at_once` sequences of the mean length."""
    prompts = load.requests * prefill_seconds(shape, form, load.prompt, ceilings)
    steps = load.requests * load.output / at_once
    return prompts + steps * decode_seconds(shape, form, at_once, load.prompt + load.output / 2, ceilings)


def product_seconds(rows: int, matrix: tuple[int, int], form: Format, ceilings: Ceilings) -> float:
    """One matrix, [outputs, inputs], by so many rows of 16 bits."""
    outputs, inputs = matrix
    bytes_ = outputs * inputs * form.weight_bytes + 2 * rows * (inputs + outputs)
    return max(bytes_ / ceilings.bandwidth, 2 * rows * outputs * inputs / ceilings.rate(form.rate))


def decode_attention_seconds(shape: Shape, form: Format, sequences: int, context: int, ceilings: Ceilings) -> float:
    """One layer."""
    return sequences * context * cache_bytes(shape, form) / shape.layers / ceilings.bandwidth


def prefill_attention_seconds(shape: Shape, tokens: int, ceilings: Ceilings) -> float:
    """One layer of one causal prompt, in 16 bits."""
    return 2 * shape.heads * shape.head_size * tokens**2 / ceilings.bf16
