"""What this machine can do at most, through torch: the numbers that every figure is held against.

Prints one JSON line, so that it can be run in a process of its own. Knows nothing of any engine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from time import perf_counter

import torch

ROWS, INNER, COLUMNS = 1024, 2048, 2048
READ_BYTES = 2**29


def best_seconds(operation: Callable[[], object], patience_s: float) -> float:
    """The quickest of as many runs as fit into `patience_s`, at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < patience_s:
        start = perf_counter()
        operation()
        times.append(perf_counter() - start)
    return min(times[1:])


def measure(patience_s: float) -> dict[str, float]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    memory = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    operations = 2 * ROWS * INNER * COLUMNS
    left, right = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    left_bf16, right_bf16 = left.bfloat16(), right.bfloat16()
    left_int8, right_int8 = (torch.randint(-128, 128, x.shape, dtype=torch.int8) for x in (left, right))
    int_mm = torch._int_mm
    return {
        "read GB/s": READ_BYTES / best_seconds(memory.sum, patience_s) / 1e9,
        "fp32 GEMM TFLOP/s": operations / best_seconds(lambda: left @ right, patience_s) / 1e12,
        "bf16 GEMM TFLOP/s": operations / best_seconds(lambda: left_bf16 @ right_bf16, patience_s) / 1e12,
        "int8 GEMM TOP/s": operations / best_seconds(lambda: int_mm(left_int8, right_int8), patience_s) / 1e12,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each ceiling (default 1)")
    print(json.dumps(measure(parser.parse_args().seconds)))
