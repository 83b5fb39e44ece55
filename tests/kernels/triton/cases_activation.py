"""Activations at the widths of models from 0.6B to 70B; those of GPT-2 and BERT for the ungated ones."""

from __future__ import annotations

from compiling import Case, Expect, New

from octavo.kernels.triton import kernels

TOKENS = (1, 2, 7, 16, 256, 2048)  # of steps: they cost no kernel each
GATED = (1536, 3072, 6912, 14336, 28672)
PLAIN = (1536, 3072)


def gated(new: New) -> None:
    for width in GATED:
        for tokens in TOKENS:
            kernels.silu_mul(new(tokens, 2 * width))
            kernels.gelu_tanh_mul(new(tokens, 2 * width))


def plain(new: New) -> None:
    for width in PLAIN:
        for tokens in TOKENS:
            for act in (kernels.gelu, kernels.gelu_tanh, kernels.relu):
                act(new(tokens, width))


SLIM = Expect(registers=64, narrow_loads=0)
CASES = [
    Case("gated activations", gated, SLIM, binaries=2 * len(GATED)),
    Case("activations", plain, SLIM, binaries=3 * len(PLAIN)),
]
