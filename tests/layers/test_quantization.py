"""Weights brought to few bits while they are loaded: how far from what they were, on a CPU and as a GPU has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels import cpu, reference
from octavo.kernels.packed import dequantize
from octavo.layers.linear import Linear
from octavo.layers.quantization.choice import Storage, choose
from octavo.layers.quantization.eight_bits import EightBits
from octavo.layers.quantization.int4 import Int4
from octavo.layers.quantization.packed import Packed
from octavo.layers.quantization.scheme import Dense
from octavo.models.decoder import Decoder
from octavo.models.registry import build, outline
from octavo.models.weights.loader import dummy_weights, load_weights, pack_coded

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32,
}
FP8 = EightBits(torch.float8_e4m3fn)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


@pytest.mark.parametrize(
    ("scheme", "levels"), [(Int4(32), 15), (Int4(128), 15), (EightBits(torch.int8), 254), (FP8, 16)], ids=str
)
def test_every_weight_is_within_half_a_level(scheme: Int4 | EightBits, levels: int) -> None:
    weight = random(6, 128)
    weight[2] = 0
    weight[3] = 5
    linear = Linear(128, {"q": 4, "k": 2}, scheme)
    linear.fill("k", weight[4:])
    linear.fill("q", weight[:4])
    got = linear(torch.eye(128))  # in 8 bits ones are exact
    spread = (weight.aminmax(dim=1).max - weight.aminmax(dim=1).min).clamp(min=2 * 5 / 15)
    if not isinstance(scheme, Int4):
        spread = 2 * weight.abs().amax(1).clamp(min=1e-6)
    assert ((got.t() - weight).abs() <= (spread[:, None] / levels) * 0.51 + 3e-3 * weight.abs()).all()


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
@pytest.mark.parametrize("scheme", [Int4(32), Int4(128), EightBits(torch.int8)], ids=str)
def test_a_cpu_multiplies_by_the_same_weights(scheme: Int4 | EightBits) -> None:
    linear = Linear(128, {"gate": 20, "up": 13}, scheme, bias=torch.float32)
    linear.fill(None, random(33, 128))
    linear.slots()["bias"].copy_(random(33))
    if isinstance(scheme, Int4):
        assert linear.tensors["codes"] is not None
        stored = reference.group_weights(*(linear.tensors[name] for name in ("codes", "scales", "minimums")))
    else:
        stored = linear.tensors["codes"].float() * linear.tensors["scales"]
    expected = linear(random(3, 128))
    packed = scheme.packed(linear.tensors, torch.float32)
    torch.testing.assert_close(dequantize(packed.matrix), stored)
    linear.adopt(packed)
    assert linear.tensors.keys() == {"bias"}
    torch.testing.assert_close(linear(random(3, 128)), expected, atol=0.3, rtol=0)  # activations are rounded, too


def logits(storage: Storage, packed: bool = False) -> Tensor:
    from octavo.layers.attention.backend import AttentionMetadata, LayerCache
    from octavo.layers.attention.paged import PagedAttention

    dense = build(SHAPE, torch.float32, CPU)
    dummy_weights(dense, 3)
    assert isinstance(dense, Decoder)
    model = build(SHAPE, torch.float32, CPU, storage)
    assert isinstance(model, Decoder)
    load_weights(model, iter(checkpoint_of(dense)))
    if packed:
        pack_coded(model, torch.float32)
        assert isinstance(model.layers[1].mlp.down.scheme, Packed)
    assert type(model.head.matrix.scheme) is Dense
    attention = PagedAttention()
    attention.plan(
        AttentionMetadata(
            torch.tensor([0, 20], dtype=torch.int32),
            torch.tensor([20], dtype=torch.int32),
            torch.tensor([[0, 1]], dtype=torch.int32),
            torch.arange(20),
        )
    )
    caches = [LayerCache(*torch.zeros(2, 2, 1, 16, 16)) for _ in model.layers]
    with torch.inference_mode():
        return model.logits(model(torch.arange(20) * 2, torch.arange(20), attention, caches))


def checkpoint_of(model: Decoder) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = [
        ("model.embed_tokens.weight", model.embedding.matrix.tensors["weight"]),
        ("model.norm.weight", model.norm.weight),
        ("lm_head.weight", model.head.matrix.tensors["weight"]),
    ]
    for number, layer in enumerate(model.layers):
        begin = f"model.layers.{number}."
        found += [
            (begin + "input_layernorm.weight", layer.attention_norm.weight),
            (begin + "post_attention_layernorm.weight", layer.mlp_norm.weight),
            (begin + "self_attn.o_proj.weight", layer.attention.out.tensors["weight"]),
            (begin + "mlp.down_proj.weight", layer.mlp.down.tensors["weight"]),
        ]
        for prefix, linear in (("self_attn.", layer.attention.qkv), ("mlp.", layer.mlp.gate_up)):
            found += [(f"{begin}{prefix}{part}_proj.weight", linear.slots(part)["weight"]) for part in linear.parts]
    return found


@pytest.mark.parametrize(
    ("quantization", "arch", "most"),
    [("none", None, 0.0), ("int8", None, 0.04), ("int4", None, 0.25), ("fp8", "sm_90", 0.12), ("int4", "sm_90", 0.25)],
)
def test_a_models_logits_stay_near(quantization: str, arch: str | None, most: float) -> None:
    """By the length of the difference; on a CPU as a GPU computes and, packed, as the CPU itself does."""
    storage = choose(quantization, torch.float32, arch, deterministic=False)
    exact = logits(choose("auto", torch.float32, None, deterministic=False))
    assert (logits(storage) - exact).norm() <= most * exact.norm()
    if quantization in ("int8", "int4") and cpu.available():
        assert (logits(storage, packed=True) - exact).norm() <= most * exact.norm()


def test_few_bits_take_the_memory_of_few_bits() -> None:
    def bytes_of(quantization: str) -> int:
        storage = choose(quantization, torch.bfloat16, "sm_90", deterministic=False)
        model = outline(SHAPE | {"hidden_size": 1024}, torch.bfloat16, storage)
        return sum(parameter.nbytes for parameter in model.layers.parameters() if parameter.dim() == 2)

    assert bytes_of("int8") < 0.51 * bytes_of("none")
    assert bytes_of("fp8") < 0.51 * bytes_of("none")
    assert bytes_of("int4") < 0.29 * bytes_of("none")  # 4 bits and, for groups of 32, 1 bit of numbers beside


def test_rows_that_no_group_divides_stay_as_they_are() -> None:
    storage = choose("int4", torch.bfloat16, None, deterministic=False)
    assert isinstance(storage.matrix(100), Dense)
    assert storage.matrix(96) == Int4(32)
    assert storage.matrix(4096) == Int4(128)


@pytest.mark.parametrize(
    ("quantization", "arch", "deterministic", "says"),
    [
        ("fp8", None, False, "needs a GPU"),
        ("fp8", "sm_80", False, "sm_80 does not multiply"),
        ("fp8", "gfx90a", False, "gfx90a does not multiply"),
        ("fp8", "gfx908", False, "gfx908 does not multiply"),
        ("fp8", "sm_90", True, "--deterministic"),
        ("int4", "sm_90", True, "--deterministic"),
    ],
)
def test_what_cannot_be_done_is_refused(quantization: str, arch: str | None, deterministic: bool, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(quantization, torch.bfloat16, arch, deterministic)


def test_a_cpu_needs_no_other_kernels_to_be_deterministic() -> None:
    assert choose("auto", torch.bfloat16, None, deterministic=True).dense == Dense(torch.bfloat16)
    assert choose("int4", torch.bfloat16, None, deterministic=True).matrix(128) == Int4(128)
