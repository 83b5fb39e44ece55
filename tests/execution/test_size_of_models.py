"""What is said of a model before loading is what loading then finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.execution.footprint import footprint
from octavo.execution.worker import Worker, keeps_few_bits
from octavo.kernels.ceilings import product_rate, read_bandwidth
from octavo.layers.linear import Linear
from octavo.layers.quantization.packed import Packed
from octavo.models.registry import build
from octavo.models.weights.loader import load_weights
from octavo.models.weights.sources import open_source

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


def dummy(tmp_path: Path, **changes: object) -> EngineConfig:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return EngineConfig.of(model=str(tmp_path / "config.json"), load_format="dummy", dtype="bfloat16")


def held(model: torch.nn.Module) -> int:
    packed = [
        each.scheme.matrix.data.nbytes
        for each in model.modules()
        if isinstance(each, Linear) and isinstance(each.scheme, Packed)
    ]
    return sum(packed) + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_weights_as_they_lie_in_memory(smollm2: Checkpoint, dtype: str) -> None:
    config = EngineConfig.of(dtype=dtype, device="cpu")
    told = footprint(config, smollm2)
    model = build(smollm2.config, told.dtype, told.device)
    load_weights(model, open_source(smollm2, keeps_few_bits(config, told.device)))
    assert told.weights == held(model)
    assert told.parameters == smollm2.config["vocab_size"] * 576 + 30 * (576 * (576 * 2 + 192 * 2 + 1536 * 3 + 2)) + 576


def test_the_worker_finds_the_same_capacity(tmp_path: Path) -> None:
    model = dummy(tmp_path).model.model
    config = EngineConfig.of(model=model, load_format="dummy", device="cpu", kv_cache_memory=2**20)
    checkpoint = resolve(config.model)
    assert footprint(config, checkpoint).capacity == Worker(config, checkpoint).capacity


def test_a_step_reads_no_embedding_but_a_shared_one(tmp_path: Path) -> None:
    apart = footprint(config := dummy(tmp_path), resolve(config.model))
    shared = footprint(config := dummy(tmp_path, tie_word_embeddings=True), resolve(config.model))
    matrix = 300 * 64 * 2
    assert apart.weights - shared.weights == matrix
    assert apart.step_reads == shared.step_reads
    assert apart.weights - apart.step_reads == matrix + 128 * 16 * 4, "the embedding, and the table of positions"
    assert apart.kv_token == 2 * 2 * 2 * 16 * 2


def test_a_model_that_is_too_large_is_told_and_not_made(tmp_path: Path) -> None:
    config = dummy(tmp_path, hidden_size=2**17, intermediate_size=2**19, num_hidden_layers=500, head_dim=128)
    told = footprint(config, resolve(config.model))
    assert told.weights > told.total
    assert told.capacity is None
    assert "no room for the KV cache" in str(told.obstacle)


def test_ceilings_are_those_of_a_computer() -> None:
    assert 1e8 < read_bandwidth(0.01) < 1e14
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert 1e8 < product_rate(dtype, 0.01) < 1e16
