"""How much memory a model will take, before it is loaded: weights, KV cache, and what a process takes by itself.

An estimate from headers and configuration, meant to be a little high: what is packed stays packed unless the
configuration says otherwise, and a cache that was not sized is counted with what it may grow to.
"""

from __future__ import annotations

from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.checkpoint.description import tensor_table
from octavo.config import EngineConfig

_PROCESS = 320 << 20  # an engine process without a model
_CACHE = 1 << 30  # on a CPU, unless one context needs more


def estimate(config: EngineConfig, checkpoint: Checkpoint) -> int:
    """Bytes. Raises OctavoError for files that contradict themselves, or OSError."""
    return _PROCESS + _weights(config, checkpoint) + _cache(config, checkpoint.config)


def _weights(config: EngineConfig, checkpoint: Checkpoint) -> int:
    if checkpoint.format == "dummy":
        return 0
    tensors = tensor_table(checkpoint)
    stored = sum(tensor.nbytes for tensor in tensors)
    unpacked = config.model.dtype == "float32" or config.execution.device.startswith("cuda")
    return max(stored, sum(tensor.values for tensor in tensors) * _number_bytes(config)) if unpacked else stored


def _number_bytes(config: EngineConfig) -> int:
    """Of a number that is not packed."""
    return 4 if config.model.dtype == "float32" else 2


def _cache(config: EngineConfig, model: dict[str, Any]) -> int:
    token = _token_numbers(model) * _number_bytes(config)
    if config.cache.num_gpu_blocks_override is not None:
        return config.cache.num_gpu_blocks_override * config.cache.block_size * token
    if config.cache.kv_cache_memory is not None:
        return config.cache.kv_cache_memory
    length = config.model.max_model_len
    context = length if length is not None and length > 0 else _whole(model, "max_position_embeddings", 0)
    return max(_CACHE, context * token)


def _token_numbers(model: dict[str, Any]) -> int:
    """Of keys and values for one token, in all layers."""
    heads = _whole(model, "num_attention_heads", 1)
    size = _whole(model, "head_dim", _whole(model, "hidden_size", 0) // heads)
    layers = _whole(model, "num_hidden_layers", 0)
    return 2 * layers * _whole(model, "num_key_value_heads", heads) * size


def _whole(model: dict[str, Any], name: str, default: int) -> int:
    value = model.get(name)
    return value if isinstance(value, int) and value > 0 else default
