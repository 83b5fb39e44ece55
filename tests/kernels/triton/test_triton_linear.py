"""Products by packed weights and invariant ones, against plain torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_inputs import DEVICE, DTYPES, close, normal, rows_apart

from octavo.kernels import reference
from octavo.kernels.triton import kernels
from octavo.kernels.triton import linear as triton_linear
from octavo.kernels.triton.gpu import OTHERWISE

ROWS = st.sampled_from([1, 2, 15, 16, 17, 33, 70, 130])
CODES = st.sampled_from([torch.int8, torch.float8_e4m3fn])


def rows_for(codes: torch.dtype, seed: int, rows: int, inner: int, dtype: torch.dtype) -> Tensor:
    """Any numbers for int8. Where codes are floats such as are codes themselves: the interpreter cuts others off."""
    x = normal(seed, rows, inner, dtype=dtype)
    if codes is not torch.int8:
        x = x.to(codes).to(dtype)
        x[:, 0] = 7.0  # 448 / 7 is a power of two
        x = x.clamp(-7, 7)
    return rows_apart(x)


@settings(max_examples=25)
@given(
    rows=ROWS,
    outer=st.integers(1, 150),
    groups=st.integers(1, 9),
    group=st.sampled_from([32, 64, 128]),
    minimums=st.booleans(),
    bias=st.booleans(),
    whole=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_products_by_4_bit_weights(
    rows: int,
    outer: int,
    groups: int,
    group: int,
    minimums: bool,
    bias: bool,
    whole: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    inner = groups * group
    codes = torch.randint(0, 256, (outer, inner // 2), dtype=torch.uint8, device=DEVICE)
    scales = normal(seed, outer, groups).abs().to(torch.float16) / inner**0.5 / 4
    least = -scales * 7 if minimums else None
    x, b = rows_apart(normal(seed + 1, rows, inner, dtype=dtype)), normal(3, outer, dtype=dtype) if bias else None
    got = kernels.group_linear(x, codes, scales, least, b, whole)
    close(got, reference.group_linear(x, codes, scales, least, b, whole), 8)


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("minimums", [False, True])
def test_weights_written_out_for_many_rows_are_the_references(group: int, minimums: bool) -> None:
    outer, groups = 5, 40 if group == 32 else 10
    codes = torch.randint(0, 256, (outer, groups * group // 2), dtype=torch.uint8, device=DEVICE)
    scales = normal(1, outer, groups)
    least = normal(2, outer, groups) if minimums else None
    assert torch.equal(
        triton_linear._expanded(codes, scales, least, torch.float32), reference.group_weights(codes, scales, least)
    )


@settings(max_examples=25)
@given(
    rows=ROWS,
    outer=st.integers(1, 150),
    inner=st.sampled_from([32, 100, 128, 1024, 1500]),
    codes=CODES,
    bias=st.booleans(),
    whole=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_products_by_8_bit_codes(
    rows: int, outer: int, inner: int, codes: torch.dtype, bias: bool, whole: bool, dtype: torch.dtype, seed: int
) -> None:
    weight, scales = reference.quantize_rows(normal(seed, outer, inner) / inner**0.5, codes)
    x, b = rows_for(codes, seed + 1, rows, inner, dtype), normal(3, outer, dtype=dtype) if bias else None
    if rows > 1:
        x[1] = 0
    got = kernels.scaled_linear(x, weight, scales, b, whole)
    close(got, reference.scaled_linear(x, weight, scales, b, whole), 4)


@settings(max_examples=25)
@given(rows=st.integers(1, 4), inner=st.integers(1, 300), codes=CODES, dtype=DTYPES)
def test_rows_become_codes(rows: int, inner: int, codes: torch.dtype, dtype: torch.dtype) -> None:
    x = rows_for(codes, inner, rows, inner, dtype)
    got, scale = triton_linear.quantize_rows(x, codes)
    expected, expected_scale = reference.quantize_rows(x, codes)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    difference = (got.float() - expected.float()).abs()
    assert (difference <= (1 if codes is torch.int8 else 0)).all()  # where a quotient is half way, either
    assert (difference > 0).sum() <= 1 + rows * inner // 50


@settings(max_examples=12)
@given(
    rows=st.sampled_from([1, 3, 64, 65, 130]),
    outer=st.integers(1, 150),
    inner=st.sampled_from([32, 100, 1024, 1100]),
    bias=st.booleans(),
    whole=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_an_invariant_products_rows_have_the_same_bits_in_any_batch(
    rows: int, outer: int, inner: int, bias: bool, whole: bool, dtype: torch.dtype, seed: int
) -> None:
    weight, x = normal(seed, outer, inner, dtype=dtype) / inner**0.5, rows_apart(normal(seed, rows, inner, dtype=dtype))
    b = normal(3, outer, dtype=dtype) if bias else None
    got = kernels.invariant_linear(x, weight, b, whole)
    close(got, reference.linear(x, weight, b, whole), 8)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(kernels.invariant_linear(x[row : row + 1], weight, b, whole)[0], got[row])


def test_an_invariant_product_is_cut_or_not_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, b = normal(1, 40, 3000), normal(2, 5, 3000), normal(3, 40)
    cut = kernels.invariant_linear(x, weight, b)
    monkeypatch.setattr(triton_linear, "gpu", lambda _: OTHERWISE._replace(multiprocessors=0))
    assert torch.equal(kernels.invariant_linear(x, weight, b), cut)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("minimums", [False, True])
def test_nvidias_instructions_unpack_every_byte(dtype: torch.dtype, minimums: bool) -> None:
    x = torch.empty(1, 1, dtype=dtype, device="meta")
    every = np.arange(256, dtype=np.uint32)
    words = every | (every ^ 0x5A) << 8 | (255 - every) << 16 | (every ^ 0xC3) << 24
    got = ptx(triton_linear._unpacking(x, minimums), words)
    for word, numbers in zip(words.tolist(), got.tolist(), strict=True):
        bytes_ = [word >> 8 * place & 255 for place in range(4)]
        assert numbers == [(byte >> shift & 15) - (0 if minimums else 8) for shift in (0, 4) for byte in bytes_]


def ptx(text: str, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """The few instructions of which `text` may be made, for each of the words: the numbers of its four outputs."""
    registers = {"$4": words.astype(np.uint64)}
    halves: dict[str, npt.NDArray[np.float32]] = {}

    def value(name: str) -> npt.NDArray[np.uint64]:
        return registers[name] if name in registers else np.full(len(words), int(name, 0), np.uint64)

    def numbers(kind: str, pair: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        bits = np.stack((pair & 0xFFFF, pair >> 16), 1)
        if kind == "f16x2":
            return bits.astype(np.uint16).view(np.float16).astype(np.float32)
        return (bits << 16).astype(np.uint32).view(np.float32)

    for line in text.strip("{ }").split(";"):
        name, *operands = line.replace(",", " ").split() or [".reg"]
        if name == ".reg":
            continue
        first, *rest = operands
        inputs = [value(each) for each in rest]
        if name == "mov.b32":
            registers[first] = inputs[0]
        elif name == "and.b32":
            registers[first] = inputs[0] & inputs[1]
        elif name == "shr.b32":
            registers[first] = inputs[0] >> inputs[1]
        elif name == "prmt.b32":
            both, selector = inputs[0] | inputs[1] << 32, int(rest[2], 0)
            picked = [both >> 8 * (selector >> 4 * place & 7) & 255 for place in range(4)]
            registers[first] = sum((byte << 8 * place for place, byte in enumerate(picked)), np.zeros_like(both))
        else:
            kind = name.removeprefix("fma.rn.")
            factor, other, more = (numbers(kind, each) for each in inputs)
            halves[first] = factor * other + more  # exact: all are small whole numbers
    return np.concatenate([halves[f"${number}"] for number in range(4)], 1)


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 33, 64, 65, 100, 128, 255])
@pytest.mark.parametrize(("inner", "outer"), [(4096, 6144), (4096, 4096), (14336, 4096), (4096, 28672)])
def test_few_rows_keep_all_multiprocessors_busy(rows: int, inner: int, outer: int) -> None:
    tiles = (
        triton_linear.grouped_tile(rows, outer, inner // 128, DEVICE),
        triton_linear.scaled_tile(rows, outer, inner, DEVICE),
    )
    for tile in tiles:
        programs = -(-outer // tile.columns) * -(-rows // tile.rows) * tile.slices
        assert programs >= 0.7 * OTHERWISE.multiprocessors
