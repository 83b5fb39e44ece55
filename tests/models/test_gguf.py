"""GGUF weights: bits against ggml's own package, names and layouts against transformers' models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import LLAMA, TENSORS, write_gguf
from torch import Tensor

from octavo.checkpoint import Checkpoint, GGUFFile
from octavo.checkpoint.folder import open_path
from octavo.errors import CheckpointError
from octavo.models.weights.gguf import dequantize, read_tensor
from octavo.models.weights.sources import open_source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("blocks", [1, 5000])
def test_values_are_equal_to_the_last_bit(kind: str, blocks: int) -> None:
    """Random bytes are blocks too; more of them than are unpacked at once."""
    stored = gguf.GGMLQuantizationType[kind]
    _, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    raw = np.random.default_rng(0).integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, stored).reshape(-1)
    ours = dequantize(raw.reshape(-1), kind)
    assert ours.dtype == np.float32
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_left_as_stored(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    file = GGUFFile(write_gguf(tmp_path / "model.gguf", tensors={"t": values}, types={"t": kind}))
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[kind]
    found = read_tensor(file, file.tensors["t"])
    assert found.dtype == dtype
    assert torch.equal(found, torch.from_numpy(values).to(dtype))


# --- a transformers model, named and laid out as llama.cpp's converter does, must come back as it was -----------------


def small_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True))


def small_qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))


def small_qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False))


def small_gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16))


def small_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=300))


SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


def pairs(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of q and k rows: dimension i beside dimension i + half of its head."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return torch.stack([halves[:, 0], halves[:, 1]], dim=2).reshape(rows.shape)


def as_llama_cpp(arch: str, name: str, values: Tensor) -> Tensor:
    if arch == "llama" and ("attn_q" in name or "attn_k" in name):
        return pairs(values, 4 if "attn_q" in name else 2)
    if arch == "gemma3" and "norm" in name:
        return values + 1
    if arch == "gpt2" and name.endswith(("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")):
        return values.T
    return values


def converted(path: Path, arch: str, model: Any, kind_of: Callable[[str], str | None] = lambda _: None) -> Path:
    """Names by ggml's own table; `kind_of` names the type that a matrix is stored in."""
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    table = gguf.get_tensor_name_map(architecture, 2)
    tensors = {}
    for theirs, parameter in model.named_parameters():  # a tied output is the embedding and not written
        name = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        tensors[name] = as_llama_cpp(arch, name, parameter.detach()).contiguous().numpy()
    kinds = {name: kind_of(name) for name, values in tensors.items() if values.ndim == 2}
    return write_gguf(path, arch, METADATA[arch], tensors, {name: kind for name, kind in kinds.items() if kind})


METADATA: dict[str, dict[str, Any]] = {
    "llama": {key: 2 if "block_count" in key else value for key, value in LLAMA.items()},
    "gpt2": {
        "gpt2.block_count": 2,
        "gpt2.context_length": 128,
        "gpt2.embedding_length": 64,
        "gpt2.attention.head_count": 4,
    },
}
for family in ("qwen2", "qwen3", "gemma3"):
    METADATA[family] = {key.replace("llama.", f"{family}."): value for key, value in METADATA["llama"].items()}

FAMILIES = {
    "llama": small_llama,
    "qwen2": small_qwen2,
    "qwen3": small_qwen3,
    "gemma3": small_gemma3,
    "gpt2": small_gpt2,
}


@pytest.mark.parametrize(("arch", "build"), FAMILIES.items(), ids=FAMILIES)
def test_a_model_comes_back_as_it_was(tmp_path: Path, arch: str, build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # norms and biases too: a constant would hide a mistake
    checkpoint = open_path(converted(tmp_path / "model.gguf", arch, model), "model", "auto")
    assert checkpoint.config["model_type"] == model.config.model_type
    wanted = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = dict(open_source(checkpoint))
    assert found.keys() == wanted.keys()
    tolerance = 1e-6 if arch == "gemma3" else 0.0  # one was added to the norms and taken back
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=tolerance)


def test_the_table_of_rope_factors_is_no_weight(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    metadata = LLAMA | {"llama.rope.freq_base": 1e4}
    checkpoint = open_path(write_gguf(tmp_path / "m.gguf", metadata=metadata, tensors=TENSORS | factors), "m", "auto")
    assert set(dict(open_source(checkpoint))) == {"model.embed_tokens.weight", "model.norm.weight"}


@pytest.mark.parametrize("name", ["blk.0.attn_qkv.weight", "blk.x.attn_q.weight", "vision.weight", "token_embd.scale"])
def test_a_tensor_the_family_lacks_is_named(tmp_path: Path, name: str) -> None:
    extra = {name: np.zeros((64, 64), np.float32)}
    checkpoint = open_path(write_gguf(tmp_path / "model.gguf", tensors=TENSORS | extra), "model", "auto")
    with pytest.raises(CheckpointError, match=f"model.gguf: tensor '{name}' is unknown in a llama model"):
        list(open_source(checkpoint))


def test_rows_that_are_not_heads_are_refused(tmp_path: Path) -> None:
    odd = {"blk.0.attn_q.weight": np.zeros((60, 64), np.float32)}
    checkpoint = open_path(write_gguf(tmp_path / "model.gguf", tensors=TENSORS | odd), "model", "auto")
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight' has 60 rows for 4 heads"):
        list(open_source(checkpoint))


@pytest.mark.parametrize(("name", "arch"), [("smollm2", "llama"), ("gemma3", "gemma3")])
def test_real_models(name: str, arch: str, request: pytest.FixtureRequest) -> None:
    """Every tensor of the transformers model is there, and a layer's values are those of ggml's own reader."""
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint: Checkpoint = request.getfixturevalue(name)
    fields = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(checkpoint.config["model_type"], **fields))
    shapes, layer = {}, []
    for key, values in open_source(checkpoint):
        shapes[key] = values.shape
        if ".layers.3." in key:
            layer.append(values)
    assert shapes == {key: parameter.shape for key, parameter in model.named_parameters()}

    file = GGUFFile(checkpoint.path)
    heads = {"attn_q": checkpoint.config["num_attention_heads"], "attn_k": checkpoint.config["num_key_value_heads"]}
    stored = [info for info in file.tensors.values() if info.name.startswith("blk.3.")]
    for info, values in zip(stored, layer, strict=True):
        raw = file.raw(info.name).reshape(info.shape[0], -1)
        theirs = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[info.type])).view(info.shape)
        kind = info.name.split(".")[2]
        if arch == "llama" and kind in heads:
            values = pairs(values, heads[kind])
        if arch == "gemma3" and "norm" in kind:
            values = values + 1
        assert torch.equal(values, theirs), info.name
