"""Every kernel on random data against float64: the first thing to run on a GPU that kernels have never seen.

What an error may be follows from the arithmetic: half a unit in the last place of what is stored, and the errors of
float32 sums, which grow with the root of their length; `Trial.near` takes it per number. What only moves data must be
equal. Memory that no kernel may read holds NaN, and so does what it is to fill.
"""

# T tokens, R rows, E width, K and N inner and outer features, H query heads, G key/value heads, D head size, B block
# size, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import reference
from octavo.kernels.draws import IN_PROMPT, Adjustments, DeviceDraws, Draws, Report
from octavo.kernels.layout import COLUMNS, Layout, Order
from octavo.kernels.ops import Kernels
from octavo.kernels.philox import uniform
from octavo.kernels.triton.gpu import gpu

_SUMS = 4 * 2.0**-24  # of float32, a few of its roundings


@dataclass(frozen=True)
class Verdict:
    kernel: str
    case: str
    excess: float  # the largest error as a multiple of what it may be; over 1 is wrong

    @property
    def right(self) -> bool:
        return self.excess <= 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the random data."""

    tokens: tuple[int, ...] = (1, 7, 300)
    width: int = 4096
    heads: tuple[tuple[int, int, int], ...] = ((32, 8, 128),)  # H, G, D
    rows: tuple[tuple[int, int], ...] = ((1, 0), (1, 4097), (1, 300), (40, 1000), (513, 0), (1, 63))  # new, before
    matrix: tuple[int, int] = (6144, 4096)
    vocabulary: int = 128256


MORE = Sizes(tokens=(3, 64, 1025), width=2880, heads=((32, 8, 64), (16, 8, 128), (4, 1, 256), (14, 2, 64)),
             matrix=(1152, 2048), vocabulary=151936)  # fmt: skip
TINY = Sizes(
    tokens=(1, 3), width=96, heads=((4, 2, 32),), rows=((1, 20), (5, 9), (1, 0)), matrix=(48, 128), vocabulary=300
)


class Trial:
    """A kernel under trial: random data of one dtype, and what its results may be."""

    def __init__(self, kernels: Kernels, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> None:
        self.kernels, self.device, self.dtype, self.sizes = kernels, device, dtype, sizes
        self._random = torch.Generator(device).manual_seed(1)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self._random, device=self.device).to(dtype or self.dtype)

    def ints(self, *values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def floats(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._random, device=self.device)

    def below(self, end: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(end, shape, generator=self._random, device=self.device, dtype=dtype)

    def blank(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype or self.dtype, device=self.device)

    def near(self, name: str, case: str, got: Tensor, exact: Tensor, spread: Tensor | float = 0.0) -> Verdict:
        """exact: float64. spread: how far each number may be off beside its own rounding."""
        allowed = torch.finfo(got.dtype).eps * exact.abs() + spread + 1e-30
        excess = ((got.double() - exact).abs() / allowed).nan_to_num(math.inf, math.inf)
        return Verdict(name, self._case(case), float(excess.max()) if excess.numel() else 0.0)

    def equal(self, name: str, case: str, got: Tensor, expected: Tensor) -> Verdict:
        same = (got == expected) | (got != got) & (expected != expected)
        return Verdict(name, self._case(case), 0.0 if bool(same.all()) else math.inf)

    def _case(self, case: str) -> str:
        return f"{case}, {str(self.dtype).removeprefix('torch.')}"


Check = Callable[[Trial], Iterator[Verdict]]


def norms(trial: Trial) -> Iterator[Verdict]:
    width, eps = trial.sizes.width, 1e-5
    weight_E, bias_E = trial.normal(width, dtype=torch.float32), trial.normal(width, dtype=torch.float32)

    def rms(x: Tensor) -> Tensor:
        x = x.double()
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_E.double()

    def layer(x: Tensor) -> Tensor:
        x = x.double() - x.double().mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_E.double() + bias_E.double()

    forms: dict[str, tuple[Callable[[Tensor], Tensor], tuple[Tensor, ...]]] = {
        "rms_norm": (rms, (weight_E,)), "layer_norm": (layer, (weight_E, bias_E))
    }  # fmt: skip
    for tokens in trial.sizes.tokens:
        case = f"{tokens} × {width}"
        for name, (form, weights) in forms.items():
            x_TE, residual_TE = trial.normal(tokens, width), trial.normal(tokens, width)
            spread = _SUMS * math.sqrt(width) * (1 + form(x_TE).abs())
            yield trial.near(name, case, getattr(trial.kernels, name)(x_TE, *weights, eps), form(x_TE), spread)
            added = f"add_{name}"
            total_TE = (residual_TE.double() + x_TE.double()).to(trial.dtype)
            got = getattr(trial.kernels, added)(x_TE, residual_TE, *weights, eps)
            yield trial.near(added, case, got, form(total_TE), spread.max())
            yield trial.equal(added, f"{case}, the sum", residual_TE, total_TE)


def activations(trial: Trial) -> Iterator[Verdict]:
    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def gelu_tanh(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    alone: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": torch.relu}
    gated: dict[str, Callable[[Tensor], Tensor]] = {"silu_mul": F.silu, "gelu_tanh_mul": gelu_tanh}
    for tokens in trial.sizes.tokens:
        case = f"{tokens} × {trial.sizes.width}"
        x_TE = trial.normal(tokens, 2 * trial.sizes.width) * 3
        left, right = x_TE.double().chunk(2, -1)
        for name, form in alone.items():
            exact = form(x_TE.double())
            yield trial.near(name, case, getattr(trial.kernels, name)(x_TE), exact, 1e-6 * (1 + x_TE.double().abs()))
        for name, form in gated.items():
            spread = 1e-6 * (1 + left.abs()) * right.abs()
            yield trial.near(name, case, getattr(trial.kernels, name)(x_TE), form(left) * right, spread)


def _cache_dtypes(trial: Trial) -> list[torch.dtype]:
    """Of 8 bits only where the hardware rounds to them: the interpreter does that wrongly."""
    return [trial.dtype, *(each for each in code_dtypes(trial.device) if each.is_floating_point)]


def rotary(trial: Trial) -> Iterator[Verdict]:
    block_size = 16
    for heads, kv_heads, size in trial.sizes.heads:
        angles = trial.below(1000, 64, size // 2, dtype=torch.int64).double()
        table_PD = torch.cat((angles.cos(), angles.sin()), 1).float()
        weights = tuple(trial.normal(size, dtype=torch.float32) for _ in range(2))
        for tokens in trial.sizes.tokens:
            for cache_dtype in _cache_dtypes(trial):
                for normed in (False, True):
                    case = f"{tokens} of {heads}/{kv_heads} × {size}, {'' if normed else 'not '}normed, {cache_dtype}"
                    yield from _rotary(trial, case, tokens, (heads, kv_heads, size), block_size, table_PD,
                                       weights if normed else (), cache_dtype)  # fmt: skip


def _rotary(
    trial: Trial, case: str, tokens: int, heads: tuple[int, int, int], block_size: int, table_PD: Tensor,
    weights: tuple[Tensor, ...], cache_dtype: torch.dtype,
) -> Iterator[Verdict]:  # fmt: skip
    many, kv_heads, size = heads
    eps, scales = 1e-6, (0.5, 0.25) if cache_dtype.itemsize == 1 else (1.0, 1.0)
    blocks = tokens // block_size + 2
    slots_T = trial.permutation(blocks * block_size)[:tokens]
    slots_T[-1] = -1 if tokens > 1 else slots_T[-1]
    positions_T = trial.below(len(table_PD), tokens)
    row = trial.normal(tokens, many + 2 * kv_heads, size)
    exact_TND = row.double()
    if weights:
        scale = (exact_TND.square().mean(-1, keepdim=True) + eps).rsqrt()
        each = [weights[0].double()] * many + [weights[1].double()] * kv_heads
        exact_TND[:, : many + kv_heads] *= scale[:, : many + kv_heads] * torch.stack(each)
    cos, sin = table_PD.double()[positions_T].unsqueeze(1).chunk(2, -1)
    x, y = exact_TND[:, : many + kv_heads].chunk(2, -1)
    turned = torch.cat((x * cos - y * sin, y * cos + x * sin), -1)
    spread = 1e-5 * torch.cat((x.abs() + y.abs(),) * 2, -1)
    q, k, v = torch.split(row.clone(), [many, kv_heads, kv_heads], 1)
    caches = [torch.full((blocks, kv_heads, block_size, size), 7.0, device=trial.device).to(cache_dtype) for _ in "kv"]
    trial.kernels.rotary_and_write(
        q, k, v, positions_T, table_PD, caches[0], caches[1], slots_T,
        weights[0] if weights else None, weights[1] if weights else None, eps, scales[0], scales[1],
    )  # fmt: skip
    yield trial.near("rotary_and_write", f"{case}, q", q, turned[:, :many], spread[:, :many])
    kept = slots_T >= 0
    places = (slots_T[kept] // block_size, slice(None), slots_T[kept] % block_size)
    k_spread = spread[kept, many:] / scales[0] + _smallest(cache_dtype)
    yield trial.near("rotary_and_write", f"{case}, k", caches[0][places], turned[kept, many:] / scales[0], k_spread)
    v_exact = exact_TND[kept, many + kv_heads :] / scales[1]
    yield trial.near("rotary_and_write", f"{case}, v", caches[1][places], v_exact, _smallest(cache_dtype))
    others = [torch.full_like(each, 7.0) for each in caches]
    v_row = row[:, many + kv_heads :]
    trial.kernels.write_kv(row[:, many : many + kv_heads], v_row, others[0], others[1], slots_T, *scales)
    yield trial.near("write_kv", case, others[1][places], v_exact, _smallest(cache_dtype))
    untouched = torch.ones(blocks, block_size, dtype=torch.bool, device=trial.device)
    untouched[places[0], places[2]] = False
    rest = torch.cat([each.transpose(1, 2)[untouched].float() for each in (*caches, *others)])
    yield trial.equal("write_kv", f"{case}, all else", rest, torch.full_like(rest, 7.0))


def _smallest(dtype: torch.dtype) -> float:
    """Numbers below are rounded to a multiple of this."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


@dataclass(frozen=True)
class Paged:
    """Contexts of random keys and values, and queries at their ends; unused slots hold NaN."""

    q_THD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    query_start: Tensor
    seq_lens_R: Tensor
    block_tables: Tensor

    @classmethod
    def random(
        cls, trial: Trial, rows: tuple[tuple[int, int], ...], heads: tuple[int, int, int], dtype: torch.dtype
    ) -> Paged:
        """rows: new tokens, and tokens before them."""
        many, kv_heads, size = heads
        block_size = 16
        lengths = [new + before for new, before in rows]
        counts = [-(-length // block_size) for length in lengths]
        order = trial.permutation(sum(counts) + 1)
        tables = torch.full((len(rows), max(counts)), 2**30, dtype=torch.int32, device=trial.device)
        k, v = (trial.blank(len(order), kv_heads, block_size, size, dtype=torch.float32) for _ in "kv")
        begin = 0
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks = order[begin : begin + count]
            tables[row, :count] = blocks.int()
            place = torch.arange(length, device=trial.device)
            for cache in (k, v):
                cache[blocks[place // block_size], :, place % block_size] = trial.normal(
                    length, kv_heads, size, dtype=torch.float32
                )
            begin += count
        starts = np.cumsum([0, *(new for new, _ in rows)]).tolist()
        q_THD = trial.normal(starts[-1], many, size)
        return cls(q_THD, k.to(dtype), v.to(dtype), trial.ints(*starts), trial.ints(*lengths), tables)

    def exact(
        self,
        scale: float,
        window: int,
        softcap: float,
        causal: bool,
        sinks_H: Tensor | None,
        scales: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """And the weighted sum of the values' sizes, of which errors are a share."""
        outs, sizes = [], []
        block_size = self.k_cache.size(2)
        starts = self.query_start.tolist()
        for row, length in enumerate(self.seq_lens_R.tolist()):
            blocks = self.block_tables[row, : -(-length // block_size)].long()
            k_GSD, v_GSD = (
                each[blocks].double().transpose(0, 1).flatten(1, 2)[:, :length] * by
                for each, by in zip((self.k_cache, self.v_cache), scales, strict=True)
            )
            q_HTD = self.q_THD[starts[row] : starts[row + 1]].double().transpose(0, 1)
            heads, count, _ = q_HTD.shape
            group = heads // len(k_GSD)
            k_HSD, v_HSD = (each.repeat_interleave(group, 0) for each in (k_GSD, v_GSD))
            scores = q_HTD @ k_HSD.transpose(1, 2) * scale
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            key = torch.arange(length, device=scores.device)
            query = torch.arange(length - count, length, device=scores.device).unsqueeze(1)
            if causal:
                scores = scores.masked_fill((key > query) | (key <= query - (window or length)), -math.inf)
            if sinks_H is not None:
                scores = torch.cat((scores, sinks_H.double()[:, None, None].expand(-1, count, 1)), -1)
            weights = scores.softmax(-1)[..., :length]
            outs.append((weights @ v_HSD).transpose(0, 1))
            sizes.append((weights @ v_HSD.abs()).transpose(0, 1))
        return torch.cat(outs), torch.cat(sizes)


def attention(trial: Trial) -> Iterator[Verdict]:
    decoding = tuple((1, new + before - 1) for new, before in trial.sizes.rows)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "window, cap": {"window": 40, "softcap": 20.0},
        "whole texts": {"causal": False},
        "sinks": {"sinks": True},
        "fixed splits": {"split_tokens": 64},
    }
    for heads in trial.sizes.heads:
        for rows_name, rows in (("decoding", decoding), ("mixed", trial.sizes.rows)):
            for kind, options in kinds.items():
                for cache_dtype in _cache_dtypes(trial) if kind in ("plain", "fixed splits") else [trial.dtype]:
                    case = f"{rows_name}, {heads[0]}/{heads[1]} × {heads[2]}, {kind}, {cache_dtype}"
                    paged = Paged.random(trial, rows, heads, cache_dtype)
                    yield _attention(trial, case, paged, **options)


def _attention(
    trial: Trial,
    case: str,
    paged: Paged,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    sinks: bool = False,
    split_tokens: int = 0,
) -> Verdict:
    heads, size = paged.q_THD.shape[1:]
    scales = (0.5, 2.0) if paged.k_cache.element_size() == 1 else (1.0, 1.0)
    sinks_H = trial.normal(heads, dtype=torch.float32) if sinks else None
    seen = (size**-0.5, window, softcap, causal, sinks_H)
    got = trial.kernels.paged_attention(
        paged.q_THD, paged.k_cache, paged.v_cache, paged.query_start, paged.seq_lens_R, paged.block_tables,
        *seen, *scales, split_tokens,
    )  # fmt: skip
    exact, weighed = paged.exact(*seen, scales)
    # Weights are rounded like the queries before they meet the values.
    return trial.near("paged_attention", case, got, exact, (torch.finfo(trial.dtype).eps / 2 + 1e-4) * weighed)


def products(trial: Trial) -> Iterator[Verdict]:
    outputs, inputs = trial.sizes.matrix
    weight_NK = trial.normal(outputs, inputs) * inputs**-0.5
    bias_N = trial.normal(outputs)
    for tokens in trial.sizes.tokens:
        x_TK = trial.normal(tokens, inputs)
        exact, spread = _product(x_TK, weight_NK.double(), trial.dtype)
        for case, bias, full in (("", None, False), (", bias", bias_N, False), (", float32", None, True)):
            got = trial.kernels.linear(x_TK, weight_NK, bias, full)
            wanted = exact if bias is None else exact + bias.double()
            yield trial.near("linear", f"{tokens} × {inputs} × {outputs}{case}", got, wanted, spread)


def _product(x_TK: Tensor, weight_NK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """And its spread: partial sums may be rounded to `dtype` on the way."""
    x_TK = x_TK.double()
    root = (x_TK.square() @ weight_NK.square().t()).sqrt()
    return x_TK @ weight_NK.t(), (2 * torch.finfo(dtype).eps + _SUMS * math.sqrt(x_TK.size(1))) * root


def few_bits(trial: Trial) -> Iterator[Verdict]:
    """Products by weights of 4 bits, and by codes of 8 bits on both sides."""
    outputs, inputs = trial.sizes.matrix
    for group in (32, 128):
        codes = trial.below(256, outputs, inputs // 2).to(torch.uint8)
        scales, least = (trial.normal(outputs, inputs // group, dtype=torch.float16).abs() * 0.02 for _ in range(2))
        halves = codes.view(outputs, -1, group // 2)
        whole = torch.cat((halves & 15, halves >> 4), 2).double()
        for minimums in (None, least):
            shifted = whole - 8 if minimums is None else whole
            weight_NK = shifted * scales.double().unsqueeze(2)
            weight_NK = (weight_NK if minimums is None else weight_NK + minimums.double().unsqueeze(2)).flatten(1)
            for tokens in trial.sizes.tokens:
                x_TK = trial.normal(tokens, inputs)
                exact, spread = _product(x_TK, weight_NK, trial.dtype)
                case = f"{tokens} × {inputs} × {outputs}, groups of {group}{', minimums' * (minimums is not None)}"
                got = trial.kernels.group_linear(x_TK, codes, scales, minimums, None, False)
                yield trial.near("group_linear", case, got, exact, spread)
    for dtype in code_dtypes(trial.device):
        # Half a step of whole numbers; of floats half a unit in the last of three places. Such errors are random.
        coarse = 1 / (2 * 127) if dtype is torch.int8 else 2.0**-4
        codes_NK, scales_N = reference.quantize_rows(trial.normal(outputs, inputs), dtype)
        weight_NK = codes_NK.double() * scales_N.double().unsqueeze(1)
        for tokens in trial.sizes.tokens:
            x_TK = trial.normal(tokens, inputs)
            exact, spread = _product(x_TK, weight_NK, trial.dtype)
            size = x_TK.double().abs().amax(1, keepdim=True).expand_as(x_TK) if dtype is torch.int8 else x_TK.double()
            rounding = 6 * coarse / math.sqrt(3) * (size.square() @ weight_NK.square().t()).sqrt()
            got = trial.kernels.scaled_linear(x_TK, codes_NK, scales_N, None, False)
            yield trial.near(
                "scaled_linear", f"{tokens} × {inputs} × {outputs}, {dtype}", got, exact, spread + rounding
            )


def code_dtypes(device: torch.device) -> list[torch.dtype]:
    """The types of 8 bits that the hardware multiplies."""
    arch = gpu(device).arch
    if arch.startswith("gfx94"):
        return [torch.int8, torch.float8_e4m3fnuz]
    can = device.type != "cpu" and (arch.startswith("gfx95") or (arch[:3] == "sm_" and int(arch[3:]) >= 89))
    return [torch.int8, *([torch.float8_e4m3fn] if can else [])]


def invariance(trial: Trial) -> Iterator[Verdict]:
    outputs, inputs = trial.sizes.matrix
    weight_NK, x_TK = trial.normal(outputs, inputs) * inputs**-0.5, trial.normal(trial.sizes.tokens[-1], inputs)
    exact, spread = _product(x_TK, weight_NK.double(), trial.dtype)
    got = trial.kernels.invariant_linear(x_TK, weight_NK, None, False)
    yield trial.near("invariant_linear", f"{len(x_TK)} × {inputs} × {outputs}", got, exact, spread)
    for tokens in trial.sizes.tokens[:-1]:
        alone = trial.kernels.invariant_linear(x_TK[:tokens], weight_NK, None, False)
        yield trial.equal("invariant_linear", f"{tokens} alone", alone, got[:tokens])


def blocks(trial: Trial) -> Iterator[Verdict]:
    planes, count, size = 4, 9, 16 * trial.sizes.width // 16
    held = trial.normal(planes, count, size)
    other = trial.blank(planes, count, size)
    sources, destinations = trial.permutation(count)[:4], trial.permutation(count)[:4]
    expected = other.clone()
    expected[:, destinations] = held[:, sources]
    trial.kernels.copy_blocks(held, other, sources, destinations)
    yield trial.equal("copy_blocks", "between tensors", other, expected)
    expected = held.clone()
    expected[:, sources] = held[:, [each for each in range(count) if each not in sources.tolist()][:4]]
    free = torch.tensor([each for each in range(count) if each not in sources.tolist()][:4], device=trial.device)
    trial.kernels.copy_blocks(held, held, free, sources)
    yield trial.equal("copy_blocks", "within one", held, expected)


def layouts(trial: Trial) -> Iterator[Verdict]:
    block_size, slots, width = 16, 8, 300
    rows = [(0, 20, 0), (37, 1, 2), (100, 1, 7), (3, 40, 0)]  # start, count, table entries that are known
    columns: list[list[int]] = []
    tokens: list[int] = []
    entries: list[int] = []
    for place, (start, count, known) in enumerate(rows):
        fresh = -(-(start + count) // block_size) - known
        row = [slots - 1 - place, start, len(tokens), count, known, len(entries), fresh]
        columns.append(row + [0] * (COLUMNS - len(row)))
        tokens += [-1] if count == 1 else range(count)
        entries += range(50 * (place + 1), 50 * (place + 1) + fresh)
    order = Order(*(torch.tensor(each, dtype=torch.int32, device=trial.device) for each in (columns, tokens, entries)))
    tables, last = trial.below(99, slots, width, dtype=torch.int32), trial.below(99, slots)
    found = []
    for kernels, device in ((trial.kernels, trial.device), (reference, torch.device("cpu"))):
        many, padded = (len(tokens) + 2,), len(rows) + 2
        shapes = (many, many, many, (padded + 1,), (padded,), (padded, width))
        types = [torch.int64] * 3 + [torch.int32] * 3
        blanks = [torch.full(each, -7, dtype=kind, device=device) for each, kind in zip(shapes, types, strict=True)]
        out = Layout._make(blanks)
        kept = tables.to(device, copy=True)
        kernels.lay_out(Order(*(each.to(device) for each in order)), last.to(device), kept, block_size, out)
        needed = [
            out.block_tables_PB[row, : -(-(start + count) // block_size)] for row, (start, count, _) in enumerate(rows)
        ]
        found.append([*out[:5], *needed, kept])
    for number, (got, expected) in enumerate(zip(*found, strict=True)):
        yield trial.equal("lay_out", f"field {number}", got.cpu(), expected)


def _wanted(rows: list[tuple[float, float, float, int]]) -> Draws:
    """temperature, min-p, top-p, top-k of each; two draws a row."""
    temperature, min_p, top_p, top_k = (np.array(column) for column in zip(*rows, strict=True))
    return Draws(
        temperature.astype(np.float32),
        min_p.astype(np.float32),
        top_p.astype(np.float32),
        top_k.astype(np.int64),
        np.arange(len(rows), dtype=np.int64) * 3_000_000_000,
        np.arange(0, 2 * len(rows) + 1, 2, dtype=np.int64),
        np.arange(2 * len(rows), dtype=np.uint64) * np.uint64(2**63 - 25) + np.uint64(7),
    )


def draws(trial: Trial) -> Iterator[Verdict]:
    """The token in whose share of the distribution, in float64, the draw's number falls, or a neighbour by rounding."""
    rows = [(0.0, 0.0, 1.0, 0), (1.0, 0.0, 1.0, 0), (0.7, 0.05, 1.0, 0), (1.0, 0.0, 0.9, 0), (1.3, 0.0, 0.95, 50)]
    wanted = _wanted(rows)
    logits_RV = trial.normal(len(rows), trial.sizes.vocabulary, dtype=torch.float32) * 3
    tokens, peaks = trial.kernels.sample(logits_RV.clone(), wanted)
    yield trial.equal("sample", "best", trial.floats(*peaks), logits_RV.amax(1))
    for draw, token in enumerate(tokens):
        excess = _outside(logits_RV[draw // 2].cpu(), wanted, draw // 2, draw, token) / 1e-5
        yield Verdict("sample", f"{rows[draw // 2]}", excess)
    changes = _adjustments(trial, len(rows))
    adjusted, told = torch.full_like(logits_RV, math.nan), trial.below(1, len(tokens))
    moved = DeviceDraws(*(torch.as_tensor(each.view("int64") if each.dtype == np.uint64 else each) for each in wanted))
    moved = moved._replace(top_k_R=moved.top_k_R.int(), first_R1=moved.first_R1.int())
    moved = DeviceDraws(*(each.to(trial.device) for each in moved))
    best_R = trial.blank(len(rows), dtype=torch.float32)
    trial.kernels.draw(logits_RV, moved, told, best_R, changes, adjusted, True, True)
    expected = torch.stack([_adjusted(row, changes, place) for place, row in enumerate(logits_RV.double())])
    finite = expected.isfinite()
    yield trial.equal("draw", "what is forbidden", adjusted.isfinite(), finite)
    yield trial.near("draw", "adjusted", adjusted[finite], expected[finite], 1e-6 * (1 + expected[finite].abs()))
    for draw, token in enumerate(told.tolist()):
        row = draw // 2
        yield Verdict("draw", f"{rows[row]}", _outside(adjusted[row].cpu(), wanted, row, draw, token) / 1e-5)
    yield trial.equal("draw", "what is remembered", changes.last_M[:1], told[:1])


def _outside(logits_V: Tensor, wanted: Draws, row: int, draw: int, token: int) -> float:
    """How far, in probability, the draw's number lies outside the token's share."""
    if wanted.temperature_R[row] == 0:
        return 0.0 if logits_V[token] == logits_V.max() else math.inf
    ids, sums = reference._distribution(logits_V - logits_V.max(), wanted, row)
    places = [token] if ids is None else (ids == token).nonzero()[:, 0].tolist()
    if not places:
        return math.inf
    sums = sums / sums[-1]
    number = uniform(int(wanted.seeds_D[draw]), int(wanted.positions_R[row]))
    before = float(sums[places[0] - 1]) if places[0] else 0.0
    return max(before - number, number - float(sums[places[0]]), 0.0)


def _adjustments(trial: Trial, rows: int) -> Adjustments:
    """The first row is changed in every way, the second by a mask alone, the others not at all."""
    vocabulary = trial.sizes.vocabulary
    steering_SV = trial.normal(1, vocabulary, dtype=torch.float32)
    steering_SV[:, ::7] = -math.inf
    masks_GW = trial.below(2**31, 1, -(-vocabulary // 32)).int()
    masks_GW[:, 0] = -1
    said_MV = trial.below(3, 1, vocabulary, dtype=torch.int32)
    said_MV[:, 1::3] |= IN_PROMPT
    none = [-1] * (rows - 2)
    return Adjustments(
        trial.ints(0, -1, *none), trial.ints(0, 0, *none), trial.ints(0, -1, *none),
        trial.floats(*[1.7] * rows), trial.floats(*[0.5] * rows), trial.floats(*[0.25] * rows),
        steering_SV, masks_GW, said_MV, trial.below(1, 1),
    )  # fmt: skip


def _adjusted(x_V: Tensor, changes: Adjustments, row: int) -> Tensor:
    token = torch.arange(len(x_V), device=x_V.device)
    if row == 0:
        x_V = x_V + changes.steering_SV[0].double()
    if row <= 1:
        allowed_V = changes.masks_GW[0][token // 32] >> token % 32 & 1
        x_V = x_V.masked_fill(allowed_V == 0, -math.inf)
    if row == 0:
        said_V = changes.said_MV[0]
        x_V = torch.where(said_V > 0, torch.where(x_V > 0, x_V / 1.7, x_V * 1.7), x_V)
        times_V = said_V & IN_PROMPT - 1
        x_V = torch.where(times_V > 0, x_V - (0.25 * times_V + 0.5), x_V)
    return x_V


def counts(trial: Trial) -> Iterator[Verdict]:
    vocabulary = trial.sizes.vocabulary
    said_MV, last_M = trial.below(1, 2, vocabulary, dtype=torch.int32), trial.below(vocabulary, 2)
    rows_E, tokens_E = trial.below(2, 400, dtype=torch.int32), trial.below(50, 400, dtype=torch.int32) - 1
    times_E = trial.below(3, 400, dtype=torch.int32)
    expected = said_MV.cpu().clone()
    reference.count_tokens(expected, last_M.cpu(), rows_E.cpu(), tokens_E.cpu(), times_E.cpu())
    trial.kernels.count_tokens(said_MV, last_M, rows_E, tokens_E, times_E)
    yield trial.equal("count_tokens", "400", said_MV.cpu(), expected)


def logprobs(trial: Trial) -> Iterator[Verdict]:
    raw_RV = trial.normal(3, trial.sizes.vocabulary, dtype=torch.float32) * 3
    tokens_D = trial.below(trial.sizes.vocabulary, 4)
    most = 20
    wanted = Report(
        trial.ints(0, 2), trial.ints(5, most), trial.ints(0, 1, 3), trial.ints(0, 0, 1),
        trial.blank(3, dtype=torch.float32), trial.ints(0, 0, 0), trial.blank(2, most, dtype=torch.float32),
        torch.full((2, most), -1, dtype=torch.int32, device=trial.device),
    )  # fmt: skip
    trial.kernels.report_logprobs(raw_RV, tokens_D, wanted)
    exact_RV = raw_RV.double().log_softmax(-1)
    spread = 1e-5
    own = exact_RV[[0, 0, 2], tokens_D[[0, 1, 3]]]
    yield trial.near("report_logprobs", "drawn", wanted.own_P, own, spread)
    ranks = (exact_RV[[0, 0, 2]] > own[:, None]).sum(1) + 1
    yield trial.equal("report_logprobs", "ranks", wanted.rank_P, ranks)
    for place, (row, count) in enumerate([(0, 5), (2, most)]):
        values, ids = exact_RV[row].sort(descending=True, stable=True)
        yield trial.near("report_logprobs", "best", wanted.best_QN[place, :count], values[:count], spread)
        yield trial.equal("report_logprobs", "their ids", wanted.best_ids_QN[place, :count], ids[:count])


#: By what they try; a test sees that no kernel of octavo's is missing.
CHECKS: Mapping[tuple[str, ...], Check] = {
    ("linear",): products,
    ("group_linear", "scaled_linear"): few_bits,
    ("invariant_linear",): invariance,
    ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"): norms,
    ("gelu", "gelu_tanh", "relu", "silu_mul", "gelu_tanh_mul"): activations,
    ("copy_blocks",): blocks,
    ("lay_out",): layouts,
    ("count_tokens",): counts,
    ("sample", "draw"): draws,
    ("report_logprobs",): logprobs,
    ("rotary_and_write", "write_kv"): rotary,
    ("paged_attention",): attention,  # last: it takes the longest to compile
}
