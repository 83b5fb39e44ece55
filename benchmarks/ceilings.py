"""What this machine can do at most, through torch: the numbers that every figure is held against.

Prints one JSON line, so that it can be run in a process of its own. Knows nothing of any model.
"""

from __future__ import annotations

import argparse
import json
import os

import torch

from octavo.kernels.ceilings import product_rate, read_bandwidth


def measure(patience_s: float) -> dict[str, float]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    return {
        "read GB/s": read_bandwidth(patience_s) / 1e9,
        "fp32 GEMM TFLOP/s": product_rate(torch.float32, patience_s) / 1e12,
        "bf16 GEMM TFLOP/s": product_rate(torch.bfloat16, patience_s) / 1e12,
        "int8 GEMM TOP/s": product_rate(torch.int8, patience_s) / 1e12,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each ceiling (default 1)")
    print(json.dumps(measure(parser.parse_args().seconds)))
