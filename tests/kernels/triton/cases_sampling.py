"""Draws and log-probabilities at the vocabularies of Llama 3, Qwen and Gemma 3, for steps of any size."""

from __future__ import annotations

import torch
from compiling import Case, Expect, New

from octavo.kernels.draws import Adjustments, DeviceDraws, Report
from octavo.kernels.triton import kernels

VOCABULARIES = (128256, 151936, 262144)
ROWS = (1, 2, 7, 16, 256)  # of steps: they cost no kernel each


def draws_of(new: New, rows: int) -> DeviceDraws:
    def floats() -> torch.Tensor:
        return new(rows, dtype=torch.float32)

    return DeviceDraws(
        floats(), floats(), floats(), new(rows, dtype=torch.int32), new(rows, dtype=torch.int64),
        new(rows + 1, dtype=torch.int32), new(rows, dtype=torch.int64),
    )  # fmt: skip


def draws(new: New) -> None:
    for vocabulary in VOCABULARIES:
        for rows in ROWS:
            logits, asked = new(rows, vocabulary, dtype=torch.float32), draws_of(new, rows)
            tokens, peaks = new(rows, dtype=torch.int64), new(rows, dtype=torch.float32)
            for random, restricted in ((False, False), (True, False), (True, True)):
                kernels.draw(logits, asked, tokens, peaks, None, None, random, restricted)


def adjusted_draws(new: New) -> None:
    for vocabulary in VOCABULARIES:
        for rows in ROWS:
            logits, asked = new(rows, vocabulary, dtype=torch.float32), draws_of(new, rows)
            changes = Adjustments(
                *(new(rows, dtype=torch.int32) for _ in range(3)),
                *(new(rows, dtype=torch.float32) for _ in range(3)),
                new(2, vocabulary, dtype=torch.float32),
                new(1, vocabulary // 32, dtype=torch.int32),
                new(2, vocabulary, dtype=torch.int32),
                new(2, dtype=torch.int64),
            )
            tokens, peaks = new(rows, dtype=torch.int64), new(rows, dtype=torch.float32)
            for adjusted in (None, torch.empty_like(logits)):
                kernels.draw(logits, asked, tokens, peaks, changes, adjusted, False, False)


def counts(new: New) -> None:
    for vocabulary in VOCABULARIES:
        for entries in ROWS:
            kernels.count_tokens(
                new(4, vocabulary, dtype=torch.int32), new(4, dtype=torch.int64),
                *(new(entries, dtype=torch.int32) for _ in range(3)),
            )  # fmt: skip


def log_probabilities(new: New) -> None:
    for vocabulary in VOCABULARIES:
        for rows in ROWS:
            for most in (0, 1, 5, 16, 20):
                logits = new(rows, vocabulary, dtype=torch.float32)
                ints = [new(rows, dtype=torch.int32) for _ in range(5)]
                wanted = Report(
                    *ints[:4], new(rows, dtype=torch.float32), ints[4],
                    new(rows, most, dtype=torch.float32), new(rows, most, dtype=torch.int32),
                )  # fmt: skip
                kernels.report_logprobs(logits, new(rows, dtype=torch.int64), wanted)


# At most one of each kernel for each vocabulary: the sizes of steps make no difference.
SLIM = Expect(registers=128, narrow_loads=0)
CASES = [
    Case("sampling: draws", draws, SLIM, binaries=14, quick=("sm_90",)),
    Case("sampling: adjusted draws", adjusted_draws, SLIM, binaries=5),
    Case("sampling: counts of tokens", counts, SLIM, binaries=1),
    Case("sampling: log-probabilities", log_probabilities, SLIM, binaries=6),
]
