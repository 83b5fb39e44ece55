"""Norms as models of 0.6B to 405B launch them."""

from __future__ import annotations

import torch
from compiling import Case, Expect, New

from octavo.kernels.triton import kernels

WIDTHS = (576, 1024, 4096, 8192, 16384)
TOKENS = (1, 2, 7, 16, 256, 2048)  # of steps: they cost no kernel each


def rms_norms(new: New, widths: tuple[int, ...] = WIDTHS) -> None:
    for width in widths:
        for tokens in TOKENS:
            x, weight = new(tokens, width), new(width, dtype=torch.float32)
            kernels.rms_norm(x, weight, 1e-5)
            kernels.add_rms_norm(x, new(tokens, width), weight, 1e-6)


def layer_norms(new: New) -> None:
    for width in (384, 768, 1280, 4096):
        for tokens in TOKENS:
            x, weight, bias = new(tokens, width), new(width, dtype=torch.float32), new(width, dtype=torch.float32)
            kernels.layer_norm(x, weight, bias, 1e-5)
            kernels.add_layer_norm(x, new(tokens, width), weight, bias, 1e-5)


SLIM = Expect(registers=128, narrow_loads=0)
CASES = [
    Case("rms norms", rms_norms, SLIM, binaries=2 * len(WIDTHS)),
    Case("rms norms 8B", lambda new: rms_norms(new, (4096,)), SLIM, binaries=2, quick=("sm_90", "gfx942")),
    Case("layer norms", layer_norms, SLIM, binaries=8),
]
