"""What a model is estimated to take, from its files' headers and its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import LLAMA, write_gguf

from octavo.checkpoint import resolve
from octavo.config import EngineConfig
from octavo.repository.memory import estimate

MODEL = {"token_embd.weight": np.zeros((256, 64), np.float32), "output_norm.weight": np.zeros(64, np.float32)}
NUMBERS = 256 * 64 + 64
STORED = 256 * 64 // 32 * 34 + 4 * 64  # Q8_0: 34 bytes for 32 numbers; F32
TOKEN = 2 * 2 * 16  # keys and values of two heads of 16 numbers, in one layer


def estimated(path: Path, **flags: Any) -> int:
    """Less what the process takes."""
    config = EngineConfig.of(model=str(path), **flags)
    return estimate(config, resolve(config.model)) - (320 << 20)


@pytest.mark.parametrize(
    ("flags", "weights", "number"),
    [
        ({}, STORED, 2),
        ({"dtype": "bfloat16"}, STORED, 2),
        ({"dtype": "float32"}, NUMBERS * 4, 4),
        ({"device": "cuda:0"}, NUMBERS * 2, 2),
    ],
)
def test_packed_weights_are_counted_as_they_will_be_kept(
    tmp_path: Path, flags: dict[str, Any], weights: int, number: int
) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=LLAMA, tensors=MODEL, types={"token_embd.weight": "Q8_0"})
    assert estimated(path, kv_cache_memory=0x1000, **flags) == weights + 0x1000
    blocks = estimated(path, num_gpu_blocks_override=3, block_size=8, **flags)
    assert blocks == weights + 3 * 8 * TOKEN * number


def test_only_the_files_that_will_be_read_count(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(400)
    for name in ("model-00001-of-00001.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(weights)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert estimated(tmp_path, kv_cache_memory=0x1000) == 400 + 0x1000
