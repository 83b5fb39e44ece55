"""The two kernels that a step spends its time in, alone, held against what the machine can do in the same minutes.

    make bench-kernels
    make bench-kernels ARGS="--types Q4_1 Q8_0 --shapes 3072x576 --heads 9/3x64 --context 4000"

The product of few-bit weights: one row of activations reads the weights once, so GB/s beside the speed of reading
memory; many rows compute, so TOP/s (two operations a product) beside torch's int8 product. Attention: decoding reads
every sequence's keys and values once; prefill computes, beside torch's bfloat16 product. Copies take turns, so that
what is read comes from memory and not from a cache. Medians; ± is how far the quickest run was from them.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

import ceilings
import numpy as np
import torch

from octavo.kernels import _native, cpu
from octavo.kernels.packed import GGUF_TYPES, PackedMatrix, allocate, gguf_packing, packed_bytes

# Gate and up, down and logits of SmolLM2-135M; down of Qwen2.5-1.5B.
SHAPES = ["3072x576", "576x1536", "49152x576", "1536x8960"]
HEADS = ["9/3x64", "4/1x256", "32/8x64"]  # SmolLM2-135M, gemma-3-270m, Llama-3.2-1B
ROWS = [1, 8, 32, 512]
SEQUENCES = [1, 8, 32]
_BLOCK = 16  # tokens in a block of the KV cache
_BF16 = 1


def times(operation: Callable[[], object], seconds: float) -> list[float]:
    """Of as many runs as fit, at least five; the first is not counted."""
    found: list[float] = []
    operation()
    while len(found) < 5 or sum(found) < seconds:
        start = perf_counter()
        operation()
        found.append(perf_counter() - start)
    return found


def packed_copies(kind: str, rows: int, columns: int, megabytes: int) -> list[PackedMatrix]:
    packing = gguf_packing(kind)
    assert packing is not None
    parts = [(rows, packing)]
    size = packed_bytes(columns, parts)
    memory = allocate([size] * max(2, (megabytes << 20) // size))
    first = PackedMatrix(columns, parts, memory[0])
    row_bytes = _native.gguf_row_bytes(GGUF_TYPES[kind], columns)
    first.pack_gguf(0, kind, np.random.default_rng(0).integers(0, 256, rows * row_bytes, dtype=np.uint8))
    copies = [PackedMatrix(columns, parts, each) for each in memory[1:]]
    for copy in copies:
        copy.data.copy_(first.data)
    return [first, *copies]


def product(matrices: list[PackedMatrix], tokens: int) -> Callable[[], object]:
    rows, columns = matrices[0].rows, matrices[0].columns
    x = torch.randn(tokens, columns).bfloat16()
    quantized = torch.empty(_native.quantized_bytes(tokens, columns), dtype=torch.uint8)
    _native.quantize(_BF16, x.data_ptr(), columns, quantized.data_ptr(), tokens, columns)
    y = torch.empty(tokens, rows, dtype=torch.bfloat16)
    turn = cycle([each.data.data_ptr() for each in matrices])
    return lambda: _native.quantized_linear(_BF16, _BF16, quantized.data_ptr(), next(turn), 0, y.data_ptr(), tokens)


class Attention:
    """One layer's cache of about `megabytes`, in which sequences of `context` tokens take turns."""

    def __init__(self, heads: str, context: int, megabytes: int) -> None:
        counts, size = heads.split("x")
        self.heads, self.kv_heads = map(int, counts.split("/"))
        self.head_size, self.context = int(size), context
        self.bytes_per_sequence = 2 * context * self.kv_heads * self.head_size * torch.bfloat16.itemsize
        self.blocks = -(-context // _BLOCK)
        self.sequences = max(2, (megabytes << 20) // self.bytes_per_sequence)
        shape = (self.sequences * self.blocks, self.kv_heads, _BLOCK, self.head_size)
        self.k, self.v = (torch.randn(shape).bfloat16() for _ in range(2))
        tables = torch.randperm(shape[0], dtype=torch.int32).view(self.sequences, -1)
        self.turn = cycle([tables[place] for place in range(self.sequences)])

    def run(self, rows: int, tokens: int) -> Callable[[], object]:
        """Sequences whose last `tokens` are asked for."""
        q = torch.randn(rows * tokens, self.heads, self.head_size).bfloat16()
        query_start = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32)
        seq_lens = torch.full((rows,), self.context, dtype=torch.int32)
        tables = cycle([torch.stack([next(self.turn) for _ in range(rows)]) for _ in range(self.sequences)])
        scale = self.head_size**-0.5
        return lambda: cpu.compiled.paged_attention(q, self.k, self.v, query_start, seq_lens, next(tables), scale)

    def operations(self) -> int:
        """Of a whole prefill: two products with every key a token may see."""
        return 4 * self.heads * self.head_size * self.context * (self.context + 1) // 2


def cell(found: list[float], amount: float, unit: str, ceiling: float) -> str:
    """`amount` of the unit was done in each of these times."""
    middle = statistics.median(found)
    spread = (middle - min(found)) / middle
    return f"{amount / middle:.{1 if unit == 'GB/s' else 2}f} {unit} {amount / middle / ceiling:4.0%} ±{spread:3.0%}"


def line(name: str, cells: list[str]) -> str:
    return f"{name:<24}" + "".join(f"{text:>24}" for text in cells)


def product_lines(args: argparse.Namespace, limits: dict[str, float]) -> Iterator[str]:
    yield line("product", [f"{tokens} rows" for tokens in args.rows])
    for shape in args.shapes:
        rows, columns = map(int, shape.split("x"))
        for kind in args.types:
            if kind.endswith("_K") and columns % 256:
                continue
            matrices = packed_copies(kind, rows, columns, args.megabytes)
            cells = []
            for tokens in args.rows:
                found = times(product(matrices, tokens), args.seconds)
                if tokens == 1:
                    cells.append(cell(found, matrices[0].data.nbytes / 1e9, "GB/s", limits["read GB/s"]))
                else:
                    cells.append(cell(found, 2 * tokens * rows * columns / 1e12, "TOP/s", limits["int8 GEMM TOP/s"]))
            yield line(f"{shape} {kind}", cells)


def attention_lines(args: argparse.Namespace, limits: dict[str, float]) -> Iterator[str]:
    yield line("attention", [*(f"{rows} decoding" for rows in args.sequences), f"prefill of {args.context:,}"])
    for heads in args.heads:
        layer = Attention(heads, args.context, args.megabytes)
        cells = []
        for rows in args.sequences:
            found = times(layer.run(rows, 1), args.seconds)
            cells.append(cell(found, rows * layer.bytes_per_sequence / 1e9, "GB/s", limits["read GB/s"]))
        found = times(layer.run(1, args.context), args.seconds)
        cells.append(cell(found, layer.operations() / 1e12, "TFLOP/s", limits["bf16 GEMM TFLOP/s"]))
        yield line(f"{heads} after {args.context:,}", cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="*", default=list(GGUF_TYPES), choices=list(GGUF_TYPES))
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="outputs x inputs")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of activations")
    parser.add_argument("--heads", nargs="*", default=HEADS, help="query heads/KV heads x head size")
    parser.add_argument("--sequences", nargs="+", type=int, default=SEQUENCES, help="that are decoded together")
    parser.add_argument("--context", type=int, default=1000, help="tokens that attention sees (default 1,000)")
    parser.add_argument("--isa", default=_native.available_isas()[0], choices=_native.available_isas())
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure (default 0.3)")
    parser.add_argument("--megabytes", type=int, default=256, help="of copies that take turns (default 256)")
    args = parser.parse_args()

    limits = ceilings.measure(args.seconds)
    print(f"{args.isa}, {args.threads} threads; at most:", ", ".join(f"{limits[name]:.2f} {name}" for name in limits))
    cpu.use_threads(args.threads)
    _native.use_isa(args.isa)
    for text in product_lines(args, limits):
        print(text, flush=True)
    print()
    for text in attention_lines(args, limits):
        print(text, flush=True)


if __name__ == "__main__":
    main()
