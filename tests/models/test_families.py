"""Every family against transformers on tiny random weights: the same logits, whole and in chunks, the same tokens."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from runner import Sequence, greedy
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from octavo.models.decoder import Decoder
from octavo.models.registry import build
from octavo.models.weights.loader import load_weights

COMMON: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
}
GEMMA: dict[str, Any] = COMMON | {"head_dim": 16, "num_attention_heads": 4, "query_pre_attn_scalar": 24}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama2": LlamaConfig(**COMMON, tie_word_embeddings=False),
    "llama-biases": LlamaConfig(**COMMON, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=10),
    "llama3": LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama-linear": LlamaConfig(**COMMON, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}),
    "mistral": MistralConfig(**COMMON, sliding_window=13),
    "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=11, max_window_layers=1),
    "qwen2-yarn": Qwen2Config(**COMMON, rope_parameters=YARN),
    "qwen3": Qwen3Config(**COMMON, head_dim=12, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**GEMMA, sliding_window=9, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**GEMMA, sliding_window=9, sliding_window_pattern=2, rope_parameters=GEMMA3_ROPES),
    "gpt2": GPT2Config(vocab_size=199, n_embd=48, n_head=4, n_layer=3, n_positions=256),
}
PROMPT = random.Random(5).choices(range(199), k=60)


def oracle_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(11)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # the usual tiny initial weights would hide mistakes
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() == 1 else 2.0 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * (0.5 if "embed" in name or "wte" in name else spread))
    return model


def load(folder: Path) -> Decoder:
    config = json.loads((folder / "config.json").read_text())
    model = build(config, torch.float32, torch.device("cpu"))
    load_weights(model, iter(load_file(folder / "model.safetensors").items()))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, PreTrainedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = oracle_of(FAMILIES[request.param])
        oracle.save_pretrained(folder, safe_serialization=True)
    return load(folder), oracle


@torch.inference_mode()
def test_logits_agree_in_one_go_and_in_chunks(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, oracle = pair
    expected = oracle(torch.tensor([PROMPT])).logits[0]
    whole = Sequence(model, len(PROMPT)).feed(PROMPT)
    chunked = Sequence(model, len(PROMPT))
    pieces = torch.cat([chunked.feed(PROMPT[begin : begin + 7]) for begin in range(0, len(PROMPT), 7)])
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(pieces, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_tokens_agree(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, oracle = pair
    tokens = greedy(model, PROMPT, 64)
    predicted = oracle(torch.tensor([PROMPT + tokens])).logits[0].argmax(-1).tolist()
    assert tokens == predicted[len(PROMPT) - 1 : -1]


def test_old_style_rope_settings_mean_the_same(tmp_path: Path) -> None:
    config = {"model_type": "llama", **COMMON, "tie_word_embeddings": True}
    scaling = {name: value for name, value in LLAMA3.items() if name not in ("rope_theta", "rope_type")}
    new = build(config | {"rope_parameters": LLAMA3}, torch.float32, torch.device("cpu"))
    old = build(
        config | {"rope_theta": 500.0, "rope_scaling": scaling | {"type": "llama3"}}, torch.float32, torch.device("cpu")
    )
    assert torch.equal(new.layers[0].attention.rotary.table, old.layers[0].attention.rotary.table)


def test_old_style_gemma3_turns_its_two_kinds_of_layers_differently() -> None:
    shape = {key: value for key, value in GEMMA.items() if key != "rope_parameters"}
    config = {"model_type": "gemma3_text", **shape, "sliding_window": 9, "sliding_window_pattern": 2}
    old = config | {
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    models = [build(c, torch.float32, torch.device("cpu")) for c in (old, config | {"rope_parameters": GEMMA3_ROPES})]
    for layers in zip(*(model.layers for model in models), strict=True):
        first, second = (layer.attention.inner.rotary.table for layer in layers)
        assert torch.equal(first, second)
    windows = [layer.attention.inner.spec.window for layer in models[0].layers]
    assert windows == [9, 0, 9]


def test_the_text_part_of_a_multimodal_gemma3(tmp_path: Path) -> None:
    config = FAMILIES["gemma3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = oracle_of(config)
        oracle.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    text = load(tmp_path)
    named = {"language_model." + name: tensor for name, tensor in tensors.items()}
    save_file({**named, "vision_tower.x.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    both = {"model_type": "gemma3", "text_config": json.loads((tmp_path / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(both))
    assert torch.equal(Sequence(load(tmp_path), 60).feed(PROMPT), Sequence(text, 60).feed(PROMPT))


def test_bfloat16_stays_close_to_float32(pair: tuple[Decoder, PreTrainedModel], tmp_path: Path) -> None:
    _, oracle = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = build(config, torch.bfloat16, torch.device("cpu"))
    load_weights(model, iter(load_file(tmp_path / "model.safetensors").items()))
    expected = Sequence(load(tmp_path), 60).feed(PROMPT)
    error = (Sequence(model, 60).feed(PROMPT) - expected).square().mean().sqrt() / expected.std()
    assert error < 0.2  # wild weights amplify rounding; a wrong formula gives about 1.4
