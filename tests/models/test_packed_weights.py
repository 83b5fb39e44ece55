"""Models of quantized files: every weight is what it dequantizes to, and nothing is held twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runner import Sequence
from test_gguf import FAMILIES, converted

from octavo.checkpoint.folder import open_path
from octavo.errors import CheckpointError
from octavo.kernels import cpu
from octavo.kernels.packed import dequantize
from octavo.layers.linear import Linear
from octavo.layers.quantization.packed import Packed
from octavo.layers.quantization.scheme import Dense
from octavo.models.decoder import Decoder
from octavo.models.registry import build
from octavo.models.weights.loader import load_weights
from octavo.models.weights.sources import open_source

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="no compiled kernels"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def mixed(name: str) -> str | None:
    """A type for each tensor; two types within q, k, v and within gate, up."""
    kinds = {"attn_v": "Q8_0", "attn_k": "Q5_1", "ffn_up": "Q5_0", "token_embd": "Q8_0", "output": "Q4_0"}
    if "position" in name:
        return None
    return next((kind for part, kind in kinds.items() if part in name), "Q4_1")


def loaded(path: Path, quantized: bool, dtype: torch.dtype = torch.float32) -> Decoder:
    checkpoint = open_path(path, "model", "auto")
    model = build(checkpoint.config, dtype, torch.device("cpu"))
    load_weights(model, open_source(checkpoint, quantized))
    return model


def matrices(model: Decoder) -> dict[str, Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def random_model(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.mark.parametrize(("arch", "make"), FAMILIES.items(), ids=FAMILIES)
def test_matrices_hold_what_the_file_says(tmp_path: Path, arch: str, make: Callable[[], Any]) -> None:
    path = converted(tmp_path / "model.gguf", arch, random_model(make), mixed)
    plain, packed = loaded(path, quantized=False), loaded(path, quantized=True)
    names = [name for name, linear in matrices(packed).items() if isinstance(linear.scheme, Packed)]
    assert set(matrices(plain)) - set(names) == ({"embedding.positions.matrix"} if arch == "gpt2" else set())
    for name in names:
        linear = matrices(packed)[name]
        assert torch.equal(dequantize(linear.scheme.matrix), matrices(plain)[name].weight)
        assert linear.bias is None or torch.equal(linear.bias, matrices(plain)[name].bias)
        assert not hasattr(linear, "weight")
    tokens = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected, found = (Sequence(model, len(tokens)).feed(tokens) for model in (plain, packed))
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_a_matrix_with_a_part_in_full_precision_becomes_numbers(tmp_path: Path) -> None:
    make = FAMILIES["llama"]
    path = converted(
        tmp_path / "m.gguf", "llama", random_model(make), lambda name: None if "attn_k" in name else "Q8_0"
    )
    plain, packed = loaded(path, quantized=False), loaded(path, quantized=True)
    for name, linear in matrices(packed).items():
        assert isinstance(linear.scheme, Dense if name.endswith("qkv") else Packed)
        if name.endswith("qkv"):
            assert torch.equal(linear.weight, matrices(plain)[name].weight)


def test_a_matrix_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = converted(tmp_path / "m.gguf", "llama", random_model(FAMILIES["llama"]), lambda _: "Q8_0")
    checkpoint = open_path(path, "model", "auto")
    checkpoint.config["intermediate_size"] = 64
    model = build(checkpoint.config, torch.float32, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.\w+_proj.weight' has shape .*96"):
        load_weights(model, open_source(checkpoint, quantized=True))
