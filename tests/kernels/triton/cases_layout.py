"""Inputs of steps of any size: one kernel for each block size, whatever a step brings."""

from __future__ import annotations

import torch
from compiling import Case, Expect, New

from octavo.kernels.layout import COLUMNS, Layout, Order
from octavo.kernels.triton import kernels

STEPS = ((1, 1, 0, 1), (1, 2048, 128, 1), (2, 17, 3, 2), (16, 16, 1, 16), (250, 250, 7, 256), (256, 2048, 999, 256))


def steps(new: New) -> None:
    wide, narrow = torch.int64, torch.int32
    for block_size in (16, 32):
        tables, last = new(256, 8192, dtype=narrow), new(257, dtype=wide)
        for rows, tokens, fresh, padded in STEPS:
            order = Order(new(rows, COLUMNS, dtype=narrow), new(tokens, dtype=narrow), new(fresh, dtype=narrow))
            places = tokens + padded - rows
            out = Layout(
                new(places, dtype=wide),
                new(places, dtype=wide),
                new(places, dtype=wide),
                new(padded + 1, dtype=narrow),
                new(padded, dtype=narrow),
                new(padded, 8192, dtype=narrow),
            )
            kernels.lay_out(order, last, tables, block_size, out)


CASES = [Case("inputs of steps", steps, Expect(registers=96), binaries=2, quick=("sm_90",))]
