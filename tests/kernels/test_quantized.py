"""Packed matrices: what they hold against ggml's own reference, what they multiply to against plain torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kernels import cpu, reference
from octavo.kernels.packed import F16, F32, GGUF_TYPES, PackedMatrix, Packing, dequantize, gguf_packing

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
FIXTURES = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = st.sampled_from(list(GGUF_TYPES))
COUNTS = [0, 1, 2, 3, 5, 8, 9, 16, 17, 31, 40]  # of rows: none, parts of tiles, tiles, one more


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Any bits at all, but for scales that are small numbers."""
    random = np.random.default_rng(seed)
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = random.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    scales = (random.standard_normal((len(raw), 2)) * 0.01).astype(np.float16).view(np.uint8)
    first, count = (208, 2) if kind == "Q6_K" else (0, 4 if kind.endswith(("_1", "4_K", "5_K")) else 2)
    raw[:, first : first + count] = scales[:, :count]
    return raw.reshape(rows, -1)


def values(kind: str, raw: np.ndarray) -> Tensor:
    return torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).copy())


def from_gguf(*parts: tuple[str, np.ndarray], columns: int) -> PackedMatrix:
    matrix = PackedMatrix(columns, [(len(raw), gguf_packing(kind)) for kind, raw in parts])
    for number, (kind, raw) in enumerate(parts):
        matrix.pack_gguf(number, kind, raw)
    return matrix


def all_rows(matrix: PackedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    return cpu.compiled.quantized_embedding(torch.arange(matrix.rows), matrix, dtype)


def columns_of(kind: str, draw: int) -> int:
    return 256 * (1 + draw % 3) if kind.endswith("_K") else 32 * draw


def exact(x: Tensor, weights: Tensor) -> Tensor:
    """The product of what x is rounded to, summed in float64."""
    return reference._rounded(x.float()).double() @ weights.double().T


@FIXTURES
@given(kind=KINDS, rows=st.integers(1, 40), draw=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_gguf_type_keeps_its_values(quantized_isa: str, kind: str, rows: int, draw: int, seed: int) -> None:
    columns = columns_of(kind, draw)
    raw = blocks(kind, rows, columns, seed)
    matrix = from_gguf((kind, raw), columns=columns)
    expected = values(kind, raw)
    assert torch.equal(all_rows(matrix), expected)
    assert torch.equal(all_rows(matrix, torch.bfloat16), expected.bfloat16())
    assert torch.equal(dequantize(matrix), expected)


def test_rows_can_be_reordered() -> None:
    raw = blocks("Q4_1", 50, 96, 3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    matrix = PackedMatrix(96, [(50, gguf_packing("Q4_1"))])
    matrix.pack_gguf(0, "Q4_1", raw, order)
    assert torch.equal(all_rows(matrix), values("Q4_1", raw)[order])


@FIXTURES
@given(
    bits=st.sampled_from([4, 5, 6, 8]),
    group=st.sampled_from([16, 32, 64, 128]),
    scales=st.sampled_from([F16, F32]),
    minimums=st.booleans(),
    rows=st.integers(1, 35),
    groups=st.integers(1, 9),
)
def test_any_codes_keep_their_values(
    quantized_isa: str, bits: int, group: int, scales: int, minimums: bool, rows: int, groups: int
) -> None:
    minimums = minimums and group > 16
    columns = group * groups
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    numbers = [normal(seed, rows, groups) / 8 for seed in (1, 2)]
    if scales == F16:
        numbers = [each.half().float() for each in numbers]
    matrix = PackedMatrix(columns, [(rows, Packing(bits, group, scales, minimums))])
    matrix.pack_codes(0, codes, numbers[0], numbers[1] if minimums else None)
    scale, minimum = (each.repeat_interleave(group, 1) for each in numbers)
    expected = codes * scale + minimum if minimums else (codes.float() - 2 ** (bits - 1)) * scale
    assert torch.equal(all_rows(matrix), expected)
    assert torch.equal(dequantize(matrix), expected)
    x = normal(7, 19, columns)
    oracle = exact(x, expected)
    torch.testing.assert_close(
        cpu.compiled.quantized_linear(x, matrix).double(), oracle, atol=3e-6 * oracle.abs().max().item(), rtol=0
    )


def test_scales_are_rounded_to_nearest_half() -> None:
    scales = torch.cat(
        (normal(1, 4000), normal(2, 4000) * 1e-6, torch.tensor([1e6, -1e9, 65519.0, 65520.0, 0.0, 3e-8]))
    )
    matrix = PackedMatrix(32, [(len(scales), Packing(8, 32))])
    matrix.pack_codes(0, torch.full((len(scales), 32), 129, dtype=torch.uint8), scales[:, None])
    assert torch.equal(all_rows(matrix)[:, 0], scales.half().float())


@FIXTURES
@given(
    kind=KINDS,
    tokens=st.sampled_from(COUNTS),
    rows=st.integers(1, 50),
    draw=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    biased=st.booleans(),
)
def test_product(
    quantized_isa: str, kind: str, tokens: int, rows: int, draw: int, dtype: torch.dtype, biased: bool
) -> None:
    columns = columns_of(kind, draw)
    matrix = from_gguf((kind, blocks(kind, rows, columns, draw)), columns=columns)
    weights = dequantize(matrix)
    x = normal(tokens, tokens, columns).to(dtype)
    bias = normal(5, rows).to(dtype) if biased else None
    got = cpu.compiled.quantized_linear(x, matrix, bias, True)
    added = 0 if bias is None else bias.double()
    size = (x.abs().double() @ weights.abs().double().T).amax().item() if tokens else 0.0
    torch.testing.assert_close(got.double(), exact(x, weights) + added, atol=1e-6 * (size + 1), rtol=0)
    torch.testing.assert_close(reference.quantized_linear(x, matrix, bias, True), got, atol=1e-6 * (size + 1), rtol=0)
    assert torch.equal(cpu.compiled.quantized_linear(x, matrix, bias), got.to(dtype))
    if tokens:  # what rounding x to 8 bits may cost
        loss = got - x.double() @ weights.double().T - added
        assert (loss.abs() <= x.abs().max() / 253 * weights.abs().sum(1) + 1e-6 * (size + 1)).all()


def test_parts_of_different_types_are_one_matrix(quantized_isa: str) -> None:
    parts = [(kind, blocks(kind, rows, 512, rows)) for kind, rows in (("Q4_K", 40), ("Q6_K", 17), ("Q8_0", 3))]
    matrix = from_gguf(*parts, columns=512)
    weights = torch.cat([values(kind, raw) for kind, raw in parts])
    assert torch.equal(all_rows(matrix), weights)
    ids = torch.tensor([59, 0, 39, 40, 56, 57, 0])
    assert torch.equal(cpu.compiled.quantized_embedding(ids, matrix, torch.float32), weights[ids])
    x = normal(1, 21, 512)
    together = cpu.compiled.quantized_linear(x, matrix)
    alone = [cpu.compiled.quantized_linear(x, from_gguf(part, columns=512)) for part in parts]
    assert torch.equal(together, torch.cat(alone, 1))


@pytest.mark.parametrize("kind", list(GGUF_TYPES))
def test_a_row_gives_the_same_bits_anywhere(quantized_isa: str, kind: str) -> None:
    columns = 768 if kind.endswith("_K") else 608
    matrix = from_gguf((kind, blocks(kind, 70, columns, 1)), columns=columns)
    x = normal(3, 1100, columns).bfloat16()
    cpu._native.use_isa("baseline")
    expected = cpu.compiled.quantized_linear(x[:40], matrix, None, True)
    cpu._native.use_isa(quantized_isa)
    threads = cpu._native.thread_count()
    try:
        for count in (1, 2, 3):
            cpu._native.set_thread_count(count)
            for begin, end in ((0, 1), (3, 5), (0, 13), (4, 20), (39, 40), (0, 40), (7, 40), (0, 1100)):
                got = cpu.compiled.quantized_linear(x[begin:end], matrix, None, True)[:40]
                assert torch.equal(got[: 40 - begin], expected[begin:end])
    finally:
        cpu._native.set_thread_count(threads)


def test_rows_may_be_apart(quantized_isa: str) -> None:
    matrix = from_gguf(("Q8_0", blocks("Q8_0", 20, 64, 1)), columns=64)
    wide = normal(1, 30, 100).bfloat16()
    x = wide[:, 10:74]
    assert torch.equal(cpu.compiled.quantized_linear(x, matrix), cpu.compiled.quantized_linear(x.contiguous(), matrix))


def test_a_row_that_is_not_finite_spoils_itself_alone(quantized_isa: str) -> None:
    matrix = from_gguf(("Q4_0", blocks("Q4_0", 20, 64, 1)), columns=64)
    x = normal(1, 20, 64)
    expected = cpu.compiled.quantized_linear(x, matrix)
    x[3, 5], x[8, 40], x[9, 0] = torch.nan, torch.inf, -torch.inf
    got = cpu.compiled.quantized_linear(x, matrix)
    spoilt = torch.zeros(20, dtype=torch.bool)
    spoilt[[3, 8, 9]] = True
    assert got[spoilt].isnan().all()
    assert torch.equal(got[~spoilt], expected[~spoilt])


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e30, 1e36])
def test_tiny_and_huge_activations(quantized_isa: str, size: float) -> None:
    matrix = from_gguf(("Q8_0", blocks("Q8_0", 20, 64, 1)), columns=64)
    x = torch.full((3, 64), size)
    x[1, 32:] = 0
    got = cpu.compiled.quantized_linear(x, matrix)
    expected = x.double() @ dequantize(matrix).double().T
    assert torch.equal(got.isfinite(), expected.float().isfinite())
    torch.testing.assert_close(got.double(), expected.clamp(-3.4e38, 3.4e38), atol=max(1e-28, size * 1e-5), rtol=1e-5)
