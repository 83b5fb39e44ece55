"""A GGUF file's metadata as the config.json the same model has on the Hugging Face hub.

One function per architecture. What GGUF leaves out because llama.cpp knows it by heart (Gemma's two RoPE bases, say) is
filled in here, so the registry cannot tell the two formats apart. Values are checked for type and range, not for sense:
whether heads divide and sizes fit is the registry's question.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from octavo.checkpoint.checkpoint import SentencePooling, shown
from octavo.checkpoint.gguf import GGUFFile, StringArray
from octavo.errors import CheckpointError
from octavo.request import Pooling

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: GGUF's recommended sampling, under general.sampling, and its names in a generation_config.json.
_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}

_POOLINGS: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}

# Gemma 3's largest model scales attention by its hidden size, the others by their head size.
_GEMMA3_27B_LAYERS = 62

# Llama 3's RoPE scaling, of which GGUF keeps only the resulting factors.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """The config of the model in `file`. Raises CheckpointError for families and values octavo does not know."""
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _FAMILIES:
        raise CheckpointError(
            f"{file.path}: is of the architecture {shown(arch)}; octavo reads GGUF files of {', '.join(_FAMILIES)}"
        )
    keys = _Keys(file, arch)
    config = _common(keys) | _FAMILIES[arch](keys)
    return {name: value for name, value in config.items() if value is not None}


def generation_config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Sampling defaults that the file recommends, if any, in the shape of a generation_config.json."""
    chosen: dict[str, Any] = {}
    for key, name in _SAMPLING.items():
        match file.metadata.get(f"general.sampling.{key}"):
            case bool():
                pass
            case int(value):
                chosen[name] = value
            case float(value) if math.isfinite(value):
                chosen[name] = _shortest(value)
    return chosen


class _Keys:
    """Typed access to the keys of one architecture."""

    def __init__(self, file: GGUFFile, arch: str) -> None:
        self.file, self.arch = file, arch

    def integer(self, key: str, default: int | None = None) -> int | None:
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number per layer, all the same
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < 2**31:
            self.fail(f"{key} is {shown(value)}, not a whole number octavo can use")
        return int(value)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.integer(key, default)
        if not value:
            self.fail(f"{key} is {'missing' if value is None else 'zero'}")
        return value

    def real(self, key: str, default: float | None = None) -> float | None:
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(f"{key} is {shown(value)}, not a finite number")
        return _shortest(value)

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.arch}.{key}", default)

    def has_tensor(self, name: str) -> bool:
        return name in self.file.tensors

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.file.path}: {self.arch}.{what}")


def _shortest(value: float) -> float:
    """GGUF stores 1e-6 as the float32 beside it; give back the number its author wrote."""
    return float(str(np.float32(value))) if abs(value) < 3e38 else float(value)


def _common(keys: _Keys) -> dict[str, Any]:
    return {
        "vocab_size": _vocab_size(keys),
        "tie_word_embeddings": not keys.has_tensor("output.weight"),
        "bos_token_id": _token_id(keys, "bos_token_id"),
        "eos_token_id": _token_id(keys, "eos_token_id"),
        "pad_token_id": _token_id(keys, "padding_token_id"),
        "torch_dtype": _dtype(keys.file),
    }


def _vocab_size(keys: _Keys) -> int:
    """Rows of the embedding, which may be padded beyond the tokenizer's vocabulary but never fall short of it."""
    embedding = keys.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{keys.file.path}: has no embedding matrix (tensor 'token_embd.weight')")
    tokens = keys.file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, StringArray) and len(tokens) > embedding.shape[0]:
        raise CheckpointError(
            f"{keys.file.path}: the tokenizer has {len(tokens)} tokens, but tensor 'token_embd.weight' only "
            f"{embedding.shape[0]} rows"
        )
    return embedding.shape[0]


def _token_id(keys: _Keys, name: str) -> int | None:
    value = keys.file.metadata.get(f"tokenizer.ggml.{name}")
    return value if type(value) is int and 0 <= value < 2**31 else None


def _dtype(file: GGUFFile) -> str:
    """The type of the matrices; bfloat16 for quantized ones, which never had another."""
    stored = {info.type for info in file.tensors.values() if len(info.shape) > 1}
    return _DTYPES.get(stored.pop(), "bfloat16") if len(stored) == 1 else "bfloat16"


def _decoder(keys: _Keys, model_type: str, architecture: str) -> dict[str, Any]:
    """What Llama and its descendants share."""
    if keys.integer("expert_count", 0):
        keys.fail("expert_count is not 0: octavo does not read mixture-of-experts models from GGUF")
    heads = keys.count("attention.head_count")
    hidden_size = keys.count("embedding_length")
    head_dim = keys.count("attention.key_length", hidden_size // heads)
    if keys.count("attention.value_length", head_dim) != head_dim:
        keys.fail("attention.value_length differs from key_length, which octavo does not support")
    if keys.count("rope.dimension_count", head_dim) != head_dim:
        keys.fail("rope.dimension_count is not the head size: octavo does not support rotating a part of the head")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden_size,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": _layers(keys),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon", 1e-6),
        "max_position_embeddings": keys.count("context_length"),
        "rope_theta": _rope_theta(keys, 10_000.0),
        "rope_scaling": _rope_scaling(keys, head_dim),
    }


def _layers(keys: _Keys) -> int:
    layers = keys.count("block_count")
    if layers > len(keys.file.tensors):
        keys.fail(f"block_count is {layers}, but the file has only {len(keys.file.tensors)} tensors")
    return layers


def _rope_theta(keys: _Keys, default: float) -> float:
    theta = keys.real("rope.freq_base", default)
    if theta is None or theta <= 0:
        keys.fail(f"rope.freq_base is {theta}, not a positive number")
    return theta


def _rope_scaling(keys: _Keys, head_dim: int) -> dict[str, Any] | None:
    if keys.has_tensor("rope_freqs.weight"):
        return _llama3_scaling(keys, head_dim)
    if keys.has_tensor("rope_factors_long.weight"):
        keys.fail("rope.scaling: octavo does not read LongRoPE factors from GGUF")
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    if kind == "none":
        return None
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind != "yarn":
        keys.fail(f"rope.scaling.type is {shown(kind)}, which octavo does not know")
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
        "beta_fast": keys.real("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.real("rope.scaling.yarn_beta_slow"),
    }
    return {name: value for name, value in scaling.items() if value is not None}


def _llama3_scaling(keys: _Keys, head_dim: int) -> dict[str, Any]:
    """The parameters whose factors, one per frequency, are the tensor rope_freqs.weight."""
    info = keys.file.tensors["rope_freqs.weight"]
    if info.type != "F32" or info.shape != (head_dim // 2,):
        keys.fail("rope.scaling: tensor 'rope_freqs.weight' does not hold one float32 per frequency")
    factors = keys.file.raw(info.name).view("<f4").astype(np.float64)
    factor = float(factors.max())
    if not factor >= 1.0:  # not NaN either
        keys.fail("rope.scaling: tensor 'rope_freqs.weight' does not slow any frequency down")
    wavelengths = 2 * np.pi * _rope_theta(keys, 10_000.0) ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    smooth = smooth.clip(0.0, 1.0)
    if not np.allclose(factors, 1.0 / ((1.0 - smooth) / factor + smooth), rtol=1e-3):
        keys.fail("rope.scaling: tensor 'rope_freqs.weight' holds factors that are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": float(f"{factor:.4g}"),
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def _llama(keys: _Keys) -> dict[str, Any]:
    return _decoder(keys, "llama", "LlamaForCausalLM") | {
        "attention_bias": keys.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": keys.has_tensor("blk.0.ffn_gate.bias"),
    }


def _qwen2(keys: _Keys) -> dict[str, Any]:
    return _decoder(keys, "qwen2", "Qwen2ForCausalLM")


def _qwen3(keys: _Keys) -> dict[str, Any]:
    return _decoder(keys, "qwen3", "Qwen3ForCausalLM") | {"attention_bias": keys.has_tensor("blk.0.attn_q.bias")}


def _gemma3(keys: _Keys) -> dict[str, Any]:
    config = _decoder(keys, "gemma3_text", "Gemma3ForCausalLM")
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    by_hidden_size = layers == _GEMMA3_27B_LAYERS
    pattern = keys.count("attention.sliding_window_pattern", 6)
    del config["hidden_act"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if by_hidden_size else head_dim,
        "rope_theta": _rope_theta(keys, 1_000_000.0),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
        "sliding_window": keys.count("attention.sliding_window", 1024),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "full_attention" if layer % pattern == pattern - 1 else "sliding_attention" for layer in range(layers)
        ],
        "final_logit_softcapping": keys.real("final_logit_softcapping"),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping"),
    }


def pooling_from_gguf(file: GGUFFile) -> SentencePooling:
    """How vectors are made of texts, as far as the file says."""
    pooling = file.metadata.get(f"{file.metadata.get('general.architecture')}.pooling_type")
    return SentencePooling(pooling=_POOLINGS.get(pooling) if type(pooling) is int else None)


def _bert(keys: _Keys) -> dict[str, Any]:
    segments = keys.file.tensors.get("token_types.weight")
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": keys.count("embedding_length"),
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": _layers(keys),
        "num_attention_heads": keys.count("attention.head_count"),
        "max_position_embeddings": keys.count("context_length"),
        "type_vocab_size": segments.shape[0] if segments is not None and segments.shape else 2,
        "layer_norm_eps": keys.real("attention.layer_norm_epsilon", 1e-12),
        "hidden_act": "gelu",
    }


def _gpt2(keys: _Keys) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": keys.count("embedding_length"),
        "n_layer": _layers(keys),
        "n_head": keys.count("attention.head_count"),
        "n_positions": keys.count("context_length"),
        "n_inner": keys.count("feed_forward_length", 4 * keys.count("embedding_length")),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon", 1e-5),
    }


_FAMILIES: dict[str, Callable[[_Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "bert": _bert,
}
