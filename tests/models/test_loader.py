"""Every tensor in its place, or an error that names it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runner import Sequence
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.models.decoder import Decoder
from octavo.models.registry import build
from octavo.models.weights.loader import dummy_weights, load_weights

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 11,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 32,
}
GEMMA: dict[str, Any] = LLAMA | {"model_type": "gemma3_text", "head_dim": 4}


def model_of(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Decoder:
    return build(config, dtype, torch.device("cpu"))


def tensors() -> dict[str, Tensor]:
    """A whole checkpoint of LLAMA."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"model.embed_tokens": (11, 8), "model.norm": (8,), "lm_head": (11, 8)}
    for n in range(2):
        layer = f"model.layers.{n}."
        shapes |= {layer + name: (8,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {layer + f"self_attn.{p}_proj": (4 if p in "kv" else 8, 8) for p in "qkvo"}
        shapes |= {layer + f"mlp.{name}_proj": (12, 8) for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj": (8, 12)}
    return {name + ".weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_fused_parts_lie_below_each_other() -> None:
    model, source = model_of(LLAMA), tensors()
    load_weights(model, iter(source.items()))
    attention = [source[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(model.layers[1].attention.qkv.weight, torch.cat(attention))
    assert torch.equal(model.head.matrix.weight, source["lm_head.weight"])


def test_weights_are_cast_and_norms_keep_float32() -> None:
    model, source = model_of(LLAMA, torch.bfloat16), tensors()
    load_weights(model, iter(source.items()))
    assert torch.equal(model.embedding.matrix.weight, source["model.embed_tokens.weight"].bfloat16())
    assert torch.equal(model.norm.weight, source["model.norm.weight"])


def test_tied_models_and_known_leftovers_need_no_head() -> None:
    model, source = model_of(LLAMA | {"tie_word_embeddings": True}), tensors()
    source["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    load_weights(model, iter(source.items()))
    del source["lm_head.weight"]
    load_weights(model, iter(source.items()))
    assert torch.equal(model.logits(torch.eye(8)), source["model.embed_tokens.weight"].t())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, "lacks 'layers.1.mlp.up_proj.weight'"),
        ({"lm_head.weight": None}, "lacks 'lm_head.weight'"),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(12, 8)}, "'model.layers.2.mlp.up_proj.weight' has no place"),
        (
            {"model.layers.0.self_attn.q_proj.bias": torch.ones(8)},
            "'model.layers.0.self_attn.q_proj.bias' has no place",
        ),
        ({"model.layers.0.self_attn.k_proj.weight": torch.ones(8, 8)}, r"shape \[8, 8\].* asks for \[4, 8\]"),
        ({"model.norm.weight": torch.ones(1)}, r"'model.norm.weight' has shape \[1\]"),
        ({"model.norm.weight": torch.ones(8, dtype=torch.int8)}, "torch.int8"),
    ],
)
def test_errors_name_the_tensor(change: dict[str, Tensor | None], message: str) -> None:
    source = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model_of(LLAMA), iter(source.items()))


def test_many_missing_tensors_are_counted() -> None:
    with pytest.raises(CheckpointError, match="and 18 more"):
        load_weights(model_of(LLAMA), iter(()))


def test_gpt2_matrices_are_turned_over() -> None:
    model = model_of(GPT2)
    stored = {
        key.removesuffix(".weight"): value
        for key, value in {"transformer.h.0.attn.c_attn.weight": torch.randn(8, 24)}.items()
    }
    with pytest.raises(CheckpointError, match="lacks"):
        load_weights(model, iter({name + ".weight": tensor for name, tensor in stored.items()}.items()))
    assert torch.equal(model.layers[0].attention.qkv.weight, stored["transformer.h.0.attn.c_attn"].t())


@pytest.mark.parametrize("config", [LLAMA, GPT2, GEMMA], ids=lambda config: config["model_type"])
def test_dummy_weights_are_repeatable_and_sane(config: dict[str, Any]) -> None:
    models = [model_of(config) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        dummy_weights(model, seed)
    logits = [Sequence(model, 5).feed([1, 2, 3, 4, 5]) for model in models]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert 0.1 < logits[0].std() < 10
