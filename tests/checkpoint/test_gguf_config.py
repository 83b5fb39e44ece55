"""GGUF metadata as a config.json: against what transformers says of the same models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import LLAMA, TENSORS, write_gguf

from octavo.checkpoint import Checkpoint, GGUFFile
from octavo.checkpoint.folder import open_path
from octavo.checkpoint.gguf_config import config_from_gguf
from octavo.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The config of the small Llama with some arguments of `write_gguf` changed."""
    return config_from_gguf(GGUFFile(write_gguf(tmp_path / "model.gguf", **changes)))


def renamed(arch: str) -> dict[str, Any]:
    return {key.replace("llama.", f"{arch}."): value for key, value in LLAMA.items()}


def test_llama(tmp_path: Path) -> None:
    found = config(tmp_path, metadata=LLAMA | {"tokenizer.ggml.eos_token_id": 7, "llama.rope.freq_base": 5e5})
    assert found == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,  # not the float32 beside it
        "max_position_embeddings": 128,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": 7,
        "torch_dtype": "float32",
    }


def test_tensors_tell_what_metadata_does_not(tmp_path: Path) -> None:
    more = {
        "output.weight": np.zeros((300, 64), np.float32),
        "blk.0.attn_q.bias": np.zeros(64, np.float32),
        "blk.0.ffn_gate.bias": np.zeros(96, np.float32),
    }
    found = config(tmp_path, tensors=TENSORS | more)
    assert (found["tie_word_embeddings"], found["attention_bias"], found["mlp_bias"]) == (False, True, True)


@pytest.mark.parametrize(("stored", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16")])
def test_dtype_is_that_of_the_matrices(tmp_path: Path, stored: str, dtype: str) -> None:
    assert config(tmp_path, types={"token_embd.weight": stored})["torch_dtype"] == dtype


def test_heads_given_per_layer_are_one_number_if_they_agree(tmp_path: Path) -> None:
    assert config(tmp_path, metadata=LLAMA | {"llama.attention.head_count_kv": [2, 2]})["num_key_value_heads"] == 2
    with pytest.raises(CheckpointError, match="head_count_kv is a ndarray"):
        config(tmp_path, metadata=LLAMA | {"llama.attention.head_count_kv": [2, 1]})


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_qwen(tmp_path: Path, arch: str) -> None:
    found = config(tmp_path, arch=arch, metadata=renamed(arch) | {f"{arch}.attention.key_length": 32})
    assert (found["model_type"], found["head_dim"], found["rms_norm_eps"]) == (arch, 32, 1e-5)


def test_gpt2(tmp_path: Path) -> None:
    from transformers import GPT2Config

    metadata = {
        "gpt2.block_count": 1,
        "gpt2.context_length": 1024,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 12,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }
    theirs = GPT2Config(n_layer=1, n_embd=64, n_inner=256, vocab_size=300)
    for key, value in config(tmp_path, arch="gpt2", metadata=metadata).items():
        if key not in ("architectures", "torch_dtype"):
            assert getattr(theirs, key) == value, key


def test_gemma3_has_what_llama_cpp_knows_by_heart(gemma3: Checkpoint) -> None:
    from transformers import Gemma3TextConfig

    given = {name: gemma3.config[name] for name in ("hidden_size", "num_hidden_layers", "head_dim", "sliding_window")}
    theirs = Gemma3TextConfig(**given).to_dict()  # their defaults for the rest
    ours = gemma3.config
    for key in ("layer_types", "hidden_activation", "query_pre_attn_scalar", "rms_norm_eps", "attention_bias"):
        assert ours[key] == theirs[key], key
    assert ours["rope_theta"] == theirs["rope_parameters"]["full_attention"]["rope_theta"]
    assert ours["rope_local_base_freq"] == theirs["rope_parameters"]["sliding_attention"]["rope_theta"]
    assert (ours["model_type"], ours["vocab_size"]) == ("gemma3_text", 262144)
    assert (ours["num_attention_heads"], ours["num_key_value_heads"], ours["sliding_window"]) == (4, 1, 512)
    assert (ours["tie_word_embeddings"], ours["torch_dtype"]) == (True, "bfloat16")


def test_the_largest_gemma3_scales_attention_by_its_hidden_size(tmp_path: Path) -> None:
    numbers = renamed("gemma3") | {"gemma3.block_count": 62, "gemma3.attention.key_length": 32}
    many = TENSORS | {f"blk.{layer}.attn_norm.weight": np.zeros(64, np.float32) for layer in range(62)}
    assert config(tmp_path, arch="gemma3", metadata=numbers, tensors=many)["query_pre_attn_scalar"] == 64 // 4


def test_smollm2(smollm2: Checkpoint) -> None:
    shape = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    wanted = shape | {"model_type": "llama", "vocab_size": 49152, "rope_theta": 1e5, "max_position_embeddings": 8192}
    assert wanted.items() <= smollm2.config.items()
    assert (smollm2.name, smollm2.format) == ("SmolLM2-135M-Instruct", "gguf")


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors() -> np.ndarray[Any, np.dtype[np.float32]]:
    """How much slower Llama 3 turns each frequency, by transformers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 5e5 ** -(np.arange(0, 64, 2, dtype=np.float32) / 64)
    return (plain / slowed.numpy()).astype(np.float32)


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path: Path) -> None:
    numbers = LLAMA | {
        "llama.rope.freq_base": 5e5,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
    }
    factors = llama3_factors()
    tensors = TENSORS | {"rope_freqs.weight": factors}
    assert config(tmp_path, metadata=numbers, tensors=tensors)["rope_scaling"] == LLAMA3
    tensors["rope_freqs.weight"] = np.linspace(1, 9, 32, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight.*not those of Llama 3"):
        config(tmp_path, metadata=numbers, tensors=tensors)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 8.0}, {"rope_type": "linear", "factor": 8.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, keys: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    metadata = LLAMA | {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
    assert config(tmp_path, metadata=metadata).get("rope_scaling") == scaling


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", 2**31 - 1, "block_count is 2147483647, but the file has only 2 tensors"),
        ("llama.block_count", 0, "block_count is zero"),
        ("llama.attention.head_count", "four", "head_count is 'four'"),
        ("llama.attention.head_count", 128, "attention.key_length is zero"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "epsilon is nan"),
        ("llama.rope.freq_base", -1.0, "freq_base is -1.0"),
        ("llama.rope.dimension_count", 8, "a part of the head"),
        ("llama.rope.scaling.type", "longrope", "'longrope'"),
        ("llama.expert_count", 8, "mixture-of-experts"),
        ("tokenizer.ggml.tokens", [str(place) for place in range(301)], "301 tokens"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        config(tmp_path, metadata=LLAMA | {key: value})
    assert message in str(caught.value)


def test_missing_numbers_and_tensors_are_named(tmp_path: Path) -> None:
    without = {key: value for key, value in LLAMA.items() if key != "llama.context_length"}
    with pytest.raises(CheckpointError, match=r"llama\.context_length is missing"):
        config(tmp_path, metadata=without)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight"):
        config(tmp_path, tensors={"output_norm.weight": np.zeros(64, np.float32)})


def test_an_unknown_architecture_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'mamba'; octavo reads GGUF files of llama, qwen2"):
        config(tmp_path, arch="mamba")


def test_recommended_sampling_becomes_a_generation_config(tmp_path: Path) -> None:
    sampling = {"temp": 0.7, "top_k": 20, "penalty_repeat": 1.05, "min_p": float("nan"), "top_p": True, "mirostat": 1}
    metadata = LLAMA | {f"general.sampling.{key}": value for key, value in sampling.items()}
    found = open_path(write_gguf(tmp_path / "model.gguf", metadata=metadata), "model", "auto").generation_config
    assert found == {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}, "numbers as their author wrote them"
