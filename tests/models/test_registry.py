"""Configurations that cannot be served are refused with a reason, before any memory is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.errors import CheckpointError
from octavo.models.registry import FAMILIES, build

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": "mamba"}, "'mamba' is not supported; these are: llama, mistral"),
        ({"model_type": "../llama"}, "is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "does not generate text"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": 0}, "hidden_size in the configuration must be a whole number from 1"),
        ({"hidden_size": -8}, "hidden_size"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"hidden_size": 8.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
        ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, "8 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 3}, "odd"),
        ({"head_dim": 4096}, "head_dim"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu' is not supported; these are: gelu_new"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"architectures": "?", "quantization_config": 4}, "quantized with 4"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": 10**500}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_scaling": {"type": "llama3", "factor": 2, "high_freq_factor": 1}}, "high_freq_factor"),
        ({"rope_scaling": {"type": ["default"]}}, "rope type"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": 3}, "must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_size": 2**17, "num_attention_heads": 2**7, "vocab_size": 2**22}, "GiB"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["odd"]}, "layer_types"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": [[]]}, "layer_types"),
        ({"model_type": "gemma3"}, "text_config"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(LLAMA | change, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForQuestionAnswering"]}, "'BertForQuestionAnswering' is no encoder of texts"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 3}, "hidden_size 8 must be a multiple"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"model_type": "roberta", "pad_token_id": 31}, "pad_token_id"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 0}, "num_labels"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "does not generate text"),
        ({"model_type": "llama", "architectures": ["LlamaBidirectionalModel"]}, "does not generate text"),
    ],
)
def test_refused_encoders(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(LLAMA | {"model_type": "bert"} | change, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("change", [{"n_head": 3}, {"n_layer": 0}, {"activation_function": "?"}, {"n_positions": -1}])
def test_refused_gpt2(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(change))):
        build(GPT2 | change, torch.float32, torch.device("cpu"))


def test_a_model_says_what_runners_need() -> None:
    model = build(LLAMA, torch.bfloat16, torch.device("cpu"))
    assert (model.vocab_size, model.max_position) == (11, 32)
    assert [(spec.num_kv_heads, spec.head_size) for spec in model.cache_specs] == [(1, 4)]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_on_the_list_builds(family: str) -> None:
    config = {"gpt2": GPT2, "gemma3": {"text_config": LLAMA}}.get(family, LLAMA) | {"model_type": family}
    model = build(config, torch.float32, torch.device("cpu"))
    for target in model.names.targets.values():
        model.get_submodule(target.module.format(0))
