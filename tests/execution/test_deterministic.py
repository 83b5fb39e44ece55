"""--deterministic on a GPU: the same bits alone, in a batch, in pieces and after giving way, by the real kernels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton.language", reason="no triton: the kernels of a GPU cannot be interpreted")

from fake_device import FakeDevice
from quick_kernels import quick
from test_gpu_runner import LLAMA, Told, ask, engine, on_gpu

from octavo.kernels.triton import kernels

#: What adds up numbers is the GPU's own; the rest is plain torch, which is quicker than the interpreter.
SUMS = ("invariant_linear", "paged_attention", "rms_norm", "add_rms_norm")
KERNELS = SimpleNamespace(**{**vars(quick), **{name: getattr(kernels, name) for name in SUMS}})
SHAPE = LLAMA | {"num_hidden_layers": 1}
REQUESTS = [ask(1, 18, 3, logprobs=2), ask(2, 3, 3, logprobs=2), ask(3, 9, 2, logprobs=2)]


def bits(told: dict[tuple[str, int], Told]) -> dict[tuple[str, int], object]:
    return {key: (each.tokens, [one.logprobs for one in each.logprobs]) for key, each in told.items()}


def test_results_have_the_same_bits_alone_together_in_pieces_and_preempted(tmp_path: Path) -> None:
    def said(numbers: list[int], **arguments: object) -> dict[tuple[str, int], object]:
        config, checkpoint = engine(tmp_path, SHAPE, deterministic=True, **arguments)
        return bits(on_gpu(config, checkpoint, [REQUESTS[number] for number in numbers], FakeDevice(), KERNELS))

    alone = said([0]) | said([1], enforce_eager=True) | said([2])
    assert said([0, 1, 2]) == alone
    assert said([2, 1, 0], max_num_batched_tokens=7) == alone
    assert said([0, 1, 2], num_gpu_blocks_override=5, enable_prefix_caching=False) == alone
