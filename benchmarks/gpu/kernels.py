"""Each kernel alone at the shapes of real models, against what the GPU can do and against what others have.

Caches and weights take turns, as the layers of a model do. A peer that is not installed, or that cannot do what is
asked, is left out; one that fails is told.
"""

# T tokens, R rows, H query heads, G key/value heads, D head size, S keys, K and N inner and outer features.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels.draws import DeviceDraws
from octavo.kernels.ops import Kernels
from octavo.kernels.reference import quantize_rows
from octavo.kernels.triton.gpu import gpu
from octavo.layers.attention.backend import AttentionMetadata, AttentionSpec, LayerCache
from octavo.layers.attention.choice import Demand, choose

from .checks import code_dtypes
from .figures import OCTAVO, Figure, Outcome, Unit
from .roofline import (
    BF16,
    FP8,
    INT4,
    Ceilings,
    Format,
    Shape,
    decode_attention_seconds,
    prefill_attention_seconds,
    product_seconds,
)
from .stopwatch import Run, Stopwatch

FLASH_INFER, FLASH_ATTENTION, SDPA, TORCH = "FlashInfer", "FlashAttention", "SDPA", "torch"
_BLOCK = 16
_GROUP = 128  # weights of 4 bits that share a scale
_INNER_TILES = 8  # of torch's order of such weights
_UNITS: dict[str, float] = {"µs": 1e6, "ms": 1e3}
_MOST_LAYERS, _MOST_MATRICES = 32, 16  # that take turns

Found = Iterator[Figure | Outcome]
Turns = Callable[[], Sequence[Run]]


@dataclass(frozen=True)
class Bench:
    """What a part measures with."""

    watch: Stopwatch
    kernels: Kernels
    ceilings: Ceilings
    dtype: torch.dtype
    beside_torch: bool  # its products by few bits, which differ on a CPU

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.watch.device).to(dtype or self.dtype)

    def time(
        self, part: str, row: str, contestant: str, turns: Turns, roof: float, unit: Unit = "µs"
    ) -> Figure | Outcome:
        """roof: seconds. One that fails harms no other."""
        try:
            seconds = self.watch.seconds(turns())
        except (RuntimeError, ValueError, TypeError, NotImplementedError, ConfigError, AssertionError) as error:
            return Outcome(part=f"{part}, {row}: {contestant}", state="failed", why=f"{type(error).__name__}: {error}")
        scale = _UNITS[unit]
        return Figure(part=part, row=row, contestant=contestant, value=seconds * scale, unit=unit, roof=roof * scale)


@dataclass(frozen=True)
class Step:
    """One layer's attention in a step: equal rows of `new` tokens at the end of contexts of `context`."""

    rows: int
    new: int
    context: int

    def metadata(self, device: torch.device) -> AttentionMetadata:
        blocks = -(-self.context // _BLOCK)
        tables = torch.randperm(self.rows * blocks, device=device).int().view(self.rows, blocks)
        starts = torch.tensor([0, *accumulate([self.new] * self.rows)], dtype=torch.int32)
        lengths = torch.full((self.rows,), self.context, dtype=torch.int32)
        slots = torch.zeros(self.rows * self.new, dtype=torch.int64, device=device)
        return AttentionMetadata(
            starts.to(device), lengths.to(device), tables, slots, self.new, self.context, starts, lengths
        )

    def caches(self, bench: Bench, shape: Shape, dtype: torch.dtype) -> list[LayerCache]:
        blocks = self.rows * -(-self.context // _BLOCK)
        size = (blocks, shape.kv_heads, _BLOCK, shape.head_size)
        bytes_ = 2 * blocks * shape.kv_heads * _BLOCK * shape.head_size * dtype.itemsize
        layers = min(bench.watch.copies(bytes_), _MOST_LAYERS)
        return [LayerCache(bench.normal(*size, dtype=dtype), bench.normal(*size, dtype=dtype)) for _ in range(layers)]


def attention(
    bench: Bench, shape: Shape, decoding: Sequence[tuple[int, int]], prefills: Sequence[int], form: Format = BF16
) -> Found:
    """decoding: sequences, and their contexts. One contestant after the other: some compile for a minute first."""
    steps = {f"decode {rows} × {context:,}": Step(rows, 1, context) for rows, context in decoding}
    steps |= {f"prefill {tokens:,}": Step(1, tokens, tokens) for tokens in prefills}
    for name, turns in _ATTENDING.items():
        if name == SDPA and form != BF16:
            continue
        for row, step in steps.items():
            if step.new == 1:
                roof = decode_attention_seconds(shape, form, step.rows, step.context, bench.ceilings)
            else:
                roof = prefill_attention_seconds(shape, step.new, bench.ceilings)
            dtype = torch.float8_e4m3fn if form == FP8 else bench.dtype
            asked = Asked(bench, shape, step, dtype)
            if (runs := turns(asked)) is not None:
                yield bench.time(f"attention of {shape.name}, {form.name}", row, name, runs, roof)


class Asked(NamedTuple):
    bench: Bench
    shape: Shape
    step: Step
    cache_dtype: torch.dtype

    def queries(self) -> Tensor:
        return self.bench.normal(self.step.rows * self.step.new, self.shape.heads, self.shape.head_size)


def _ours(asked: Asked) -> Turns:
    def turns() -> list[Run]:
        bench, shape, q_THD = asked.bench, asked.shape, asked.queries()
        step = asked.step.metadata(bench.watch.device)
        return [
            partial(
                bench.kernels.paged_attention, q_THD, cache.k, cache.v, step.query_start, step.seq_lens,
                step.block_tables, shape.head_size**-0.5, 0, 0.0, True, None, 1.0, 1.0, 0,
            )
            for cache in asked.step.caches(bench, shape, asked.cache_dtype)
        ]  # fmt: skip

    return turns


class _NeverReached:
    """An event that nobody has to wait for: a library plans once here."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _library(backend: str, asked: Asked) -> Turns | None:
    bench, shape = asked.bench, asked.shape
    device = bench.watch.device
    demand = Demand(
        head_sizes=frozenset({shape.head_size}), sinks=False, dtype=bench.dtype, cache_dtype=asked.cache_dtype,
        block_size=_BLOCK, arch=gpu(device).arch,
    )  # fmt: skip
    try:
        rows = [asked.step.rows] if asked.step.new == 1 else []
        library = choose(backend, demand, device, _NeverReached, rows)
    except ConfigError:
        return None

    def turns() -> list[Run]:
        q_THD, spec = asked.queries(), AttentionSpec(scale=shape.head_size**-0.5)
        library.plan(asked.step.metadata(device))
        caches = asked.step.caches(bench, shape, asked.cache_dtype)
        return [partial(library.run, q_THD, cache, spec) for cache in caches]

    return turns


def _sdpa(asked: Asked) -> Turns:
    """Of keys that lie side by side: torch knows no pages."""

    def turns() -> list[Run]:
        bench, shape, step = asked.bench, asked.shape, asked.step
        q_RHTD = asked.queries().view(step.rows, step.new, shape.heads, shape.head_size).transpose(1, 2)
        size = (step.rows, shape.kv_heads, step.context, shape.head_size)
        bytes_ = 2 * q_RHTD.element_size() * step.rows * shape.kv_heads * step.context * shape.head_size
        layers = min(bench.watch.copies(bytes_), _MOST_LAYERS)
        attend = partial(F.scaled_dot_product_attention, q_RHTD, is_causal=step.new > 1, enable_gqa=True)
        return [partial(attend, key=bench.normal(*size), value=bench.normal(*size)) for _ in range(layers)]

    return turns


_ATTENDING: dict[str, Callable[[Asked], Turns | None]] = {
    OCTAVO: _ours,
    FLASH_ATTENTION: partial(_library, "flash_attn"),
    SDPA: _sdpa,
    FLASH_INFER: partial(_library, "flashinfer"),
}


def products(bench: Bench, shape: Shape, rows: Sequence[int], form: Format = BF16) -> Found:
    """A layer's matrices, and in 16 bits the head."""
    part = f"products of {shape.name}, {form.name}"
    for name, (outputs, inputs) in shape.matrices().items():
        if name == "head" and form != BF16:
            continue
        copies = min(bench.watch.copies(int(outputs * inputs * form.weight_bytes)), _MOST_MATRICES)
        makers = _PRODUCTS[form](bench, (outputs, inputs), copies, name == "head")
        for count in rows:
            x_TK = bench.normal(count, inputs)
            roof = product_seconds(count, (outputs, inputs), form, bench.ceilings)
            for contestant, runs in makers.items():
                yield bench.time(part, f"{name} × {count:,}", contestant, partial(runs, x_TK), roof)


Runs = Callable[[Tensor], list[Run]]
"""Products of these rows by each of some equal matrices."""


def _dense(bench: Bench, matrix: tuple[int, int], copies: int, full: bool) -> dict[str, Runs]:
    weights = [bench.normal(*matrix) * matrix[1] ** -0.5 for _ in range(copies)]
    return {
        OCTAVO: lambda x: [partial(bench.kernels.linear, x, each, None, full) for each in weights],
        TORCH: lambda x: [partial(F.linear, x, each) for each in weights],
    }


def _four_bits(bench: Bench, matrix: tuple[int, int], copies: int, full: bool) -> dict[str, Runs]:
    """Beside torch's product by weights in its own order."""
    (outputs, inputs), device = matrix, bench.watch.device
    packed = [torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8, device=device) for _ in range(copies)]
    scales, least = (bench.normal(outputs, inputs // _GROUP, dtype=torch.float16).abs() * 0.02 for _ in range(2))
    both = torch.stack((scales, least), 2).transpose(0, 1).contiguous().to(torch.bfloat16)

    def by_torch(x: Tensor) -> list[Run]:
        orders = [torch._convert_weight_to_int4pack(each, _INNER_TILES) for each in packed]
        return [partial(torch._weight_int4pack_mm, x.to(torch.bfloat16), each, _GROUP, both) for each in orders]

    return {
        OCTAVO: lambda x: [partial(bench.kernels.group_linear, x, each, scales, least, None, full) for each in packed],
        **({TORCH: by_torch} if bench.beside_torch else {}),
    }


def _eight_bits(bench: Bench, matrix: tuple[int, int], copies: int, full: bool) -> dict[str, Runs]:
    """Beside torch's product alone, which is given codes and need not find them."""
    dtype = code_dtypes(bench.watch.device)[-1]
    codes, scales = zip(*(quantize_rows(bench.normal(*matrix), dtype) for _ in range(copies)), strict=True)

    def by_torch(x: Tensor) -> list[Run]:
        x_codes, x_scale = quantize_rows(x, dtype)
        multiply = partial(torch._scaled_mm, scale_a=x_scale.view(-1, 1), out_dtype=torch.bfloat16)
        return [
            partial(multiply, x_codes, each.t(), scale_b=scale.view(1, -1))
            for each, scale in zip(codes, scales, strict=True)
        ]

    return {
        OCTAVO: lambda x: [
            partial(bench.kernels.scaled_linear, x, each, scale, None, full)
            for each, scale in zip(codes, scales, strict=True)
        ],
        **({TORCH: by_torch} if bench.beside_torch and dtype is not torch.int8 else {}),
    }


_PRODUCTS: dict[Format, Callable[[Bench, tuple[int, int], int, bool], dict[str, Runs]]] = {
    BF16: _dense, INT4: _four_bits, FP8: _eight_bits
}  # fmt: skip


def small_kernels(bench: Bench, shape: Shape, rows: Sequence[int]) -> Found:
    """All that lies between products and attention: bytes read and written over the copy's bandwidth."""
    part = f"small kernels of {shape.name}"
    for count in rows:
        for name, (run, bytes_) in _small(bench, shape, count).items():

            def turns(run: Callable[[], Run] = run, bytes_: int = bytes_) -> list[Run]:
                return [run() for _ in range(bench.watch.copies(bytes_))]

            yield bench.time(part, f"{name} × {count:,}", OCTAVO, turns, bytes_ / bench.ceilings.bandwidth)


def _small(bench: Bench, shape: Shape, tokens: int) -> dict[str, tuple[Callable[[], Run], int]]:
    """What makes a run with memory of its own, and the bytes that it reads and writes."""
    kernels, device, each = bench.kernels, bench.watch.device, bench.dtype.itemsize
    weight_E = bench.normal(shape.hidden, dtype=torch.float32)
    heads = shape.heads + 2 * shape.kv_heads
    table_PD = bench.normal(64, shape.head_size, dtype=torch.float32)
    blocks = -(-tokens // _BLOCK)
    slots_T, positions_T = (torch.arange(tokens, device=device) % end for end in (blocks * _BLOCK, 64))

    def norm() -> Run:
        x_TE, residual_TE = bench.normal(tokens, shape.hidden), bench.normal(tokens, shape.hidden)
        return lambda: kernels.add_rms_norm(x_TE, residual_TE, weight_E, 1e-5)

    def activation() -> Run:
        x_TE = bench.normal(tokens, 2 * shape.inner)
        return lambda: kernels.silu_mul(x_TE)

    def rotary() -> Run:
        q, k, v = torch.split(
            bench.normal(tokens, heads, shape.head_size), [shape.heads, shape.kv_heads, shape.kv_heads], 1
        )
        caches = [bench.normal(blocks, shape.kv_heads, _BLOCK, shape.head_size) for _ in "kv"]
        return lambda: kernels.rotary_and_write(
            q, k, v, positions_T, table_PD, caches[0], caches[1], slots_T, None, None, 0.0, 1.0, 1.0
        )

    return {
        "add and norm": (norm, 4 * tokens * shape.hidden * each),
        "silu · mul": (activation, 3 * tokens * shape.inner * each),
        "rotary, KV write": (rotary, 2 * tokens * heads * shape.head_size * each),
    }


def draws(bench: Bench, vocabulary: int, rows: Sequence[int]) -> Found:
    """A step's tokens: the best, any, and those within top-k and top-p. The logits are read at least once."""
    device = bench.watch.device
    kinds = {"greedy": (0.0, 1.0, 0), "temperature": (1.0, 1.0, 0), "top-k 50, top-p 0.9": (1.0, 0.9, 50)}
    for count in rows:
        copies = bench.watch.copies(4 * count * vocabulary)
        logits = [bench.normal(count, vocabulary, dtype=torch.float32) * 3 for _ in range(copies)]
        tokens = torch.zeros(count, dtype=torch.int64, device=device)
        peaks = torch.zeros(count, device=device)
        for name, (temperature, top_p, top_k) in kinds.items():
            wanted = DeviceDraws(
                torch.full((count,), temperature, device=device),
                torch.zeros(count, device=device),
                torch.full((count,), top_p, device=device),
                torch.full((count,), top_k, dtype=torch.int32, device=device),
                torch.arange(count, device=device),
                torch.arange(count + 1, dtype=torch.int32, device=device),
                torch.arange(count, device=device),
            )
            runs: list[Run] = [
                partial(bench.kernels.draw, each, wanted, tokens, peaks, None, None, temperature > 0, top_k > 0)
                for each in logits
            ]
            roof = 4 * count * vocabulary / bench.ceilings.bandwidth
            yield bench.time(f"drawing from {vocabulary:,}", f"{name} × {count:,}", OCTAVO, partial(list, runs), roof)
