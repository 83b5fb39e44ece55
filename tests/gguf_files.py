"""GGUF files for tests, written by ggml's own Python package: an author who does not know how octavo reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

# A small Llama: the numbers of a file in which nothing is missing.
LLAMA: dict[str, Any] = {
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
TENSORS: dict[str, npt.NDArray[Any]] = {
    "token_embd.weight": np.zeros((300, 64), np.float32),
    "output_norm.weight": np.zeros(64, np.float32),
}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def write_gguf(
    path: Path,
    arch: str = "llama",
    metadata: Mapping[str, Any] = LLAMA,
    tensors: Mapping[str, npt.NDArray[Any]] = TENSORS,
    types: Mapping[str, str] | None = None,
) -> Path:
    """`types` names the storage of tensors given as float arrays; others are stored as they are."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
