"""The engine on a GPU that is none: real scheduler, runner, graphs and kernels (interpreted), a device that catches
misuse. What comes out is what the engine says on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeDevice
from gpu_engine import BERT, GEMMA2, GREEDY, LLAMA, QWEN3, SAMPLED, Executor, Told, ask, engine, on_cpu, run, same
from msgspec.structs import replace
from quick_kernels import quick

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.execution import worker
from octavo.execution.batch import Batch
from octavo.execution.worker import Worker
from octavo.kernels import ops
from octavo.request import PoolingParams, Request

pytest.importorskip("triton.language", reason="no triton: the kernels of a GPU cannot be interpreted")


@contextmanager
def running_on(kernels: Any) -> Iterator[None]:
    """These compute every operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "kernels_for", lambda _: kernels)
        yield


def on_gpu(
    config: EngineConfig, checkpoint: Checkpoint, requests: Sequence[Request], device: FakeDevice, kernels: Any = quick
) -> dict[tuple[str, int], Told]:
    with running_on(kernels):
        executor = Executor(Worker(config, checkpoint, device))
        told = run(EngineCore(config, executor, hash_seed=b"x"), requests)
    device.synchronize()
    return told


@pytest.mark.parametrize(
    ("shape", "eager", "ahead"),
    [
        pytest.param(LLAMA, False, True, id="llama"),
        pytest.param(QWEN3, False, True, id="qwen3"),
        pytest.param(GEMMA2, False, True, id="gemma2"),
        pytest.param(LLAMA, True, True, id="op by op"),
        pytest.param(LLAMA, False, False, id="not ahead"),
    ],
)
def test_greedy_tokens_are_those_of_a_cpu(shape: dict[str, Any], eager: bool, ahead: bool, tmp_path: Path) -> None:
    """Prompts in pieces, decoding in graphs, a step ahead."""
    config, checkpoint = engine(tmp_path, shape, enforce_eager=eager, async_scheduling=ahead)
    device = FakeDevice()
    same(on_gpu(config, checkpoint, GREEDY, device), on_cpu(config, checkpoint, GREEDY))
    assert (device.replays == 0) == eager


@pytest.mark.parametrize("shape", [LLAMA, QWEN3, GEMMA2], ids=lambda shape: shape["model_type"])
def test_every_kernel_as_it_will_be_launched(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted, for a small GPU: a prompt in two pieces beside another's decoding, then graphs with padding."""
    from octavo.kernels.triton import attention

    monkeypatch.setattr(attention, "gpu", lambda _: attention.Gpu("sm_90", 1, 2**17, 32))
    monkeypatch.setattr(worker, "rehearsal", lambda *_, **__: [])
    config, checkpoint = engine(tmp_path, shape, cudagraph_capture_sizes=[3], max_num_batched_tokens=10)
    requests, device = [ask(1, 3, 6), ask(2, 13, 4)], FakeDevice()
    same(on_gpu(config, checkpoint, requests, device, ops.gpu_kernels()), on_cpu(config, checkpoint, requests))
    assert device.replays > 0


def test_whatever_is_asked_is_told_as_on_a_cpu(tmp_path: Path) -> None:
    config, checkpoint = engine(tmp_path, LLAMA)
    same(on_gpu(config, checkpoint, SAMPLED, FakeDevice()), on_cpu(config, checkpoint, SAMPLED))


@pytest.mark.parametrize("swaps", [False, True])
def test_who_gives_way_goes_on_where_it_was(swaps: bool, tmp_path: Path) -> None:
    """Blocks for two and a half of them. What they had computed is computed again, or waits in pinned memory."""
    config, checkpoint = engine(tmp_path, LLAMA, num_gpu_blocks_override=6, max_model_len=48)
    requests = [ask(number, 10, 16, temperature=0.8 * (number % 2)) for number in range(4)]
    with running_on(quick):
        executor = Executor(Worker(config, checkpoint, device := FakeDevice()))
        core = EngineCore(config, executor)
        if swaps:
            core.scheduler.swap_space.least = 0
        got = run(core, requests)
    device.synchronize()
    assert core.scheduler.preemptions > 0
    assert any(plan.swaps_in for plan in executor.plans) == swaps
    assert device.replays > 5
    roomy, checkpoint = engine(tmp_path, LLAMA, max_model_len=48)
    same(got, on_cpu(roomy, checkpoint, requests))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_prompts_become_vectors_beside_others_that_go_on(pooling: str, tmp_path: Path) -> None:
    config, checkpoint = engine(tmp_path, LLAMA)
    params = PoolingParams(pooling=pooling, normalize=True)
    requests = [ask(1, 4, 9), ask(2, 40, pooling=params), ask(3, 1, pooling=params), ask(4, 5, 3)]
    same(on_gpu(config, checkpoint, requests, FakeDevice()), on_cpu(config, checkpoint, requests))


def test_pairs_of_texts_are_compared(tmp_path: Path) -> None:
    config, checkpoint = engine(tmp_path, BERT)
    params = PoolingParams(task="classify", pooling="cls", second=4)
    requests = [ask(1, 12, pooling=params), ask(2, 9, pooling=params)]
    device = FakeDevice()
    same(on_gpu(config, checkpoint, requests, device), on_cpu(config, checkpoint, requests))
    assert device.captures == 0


@pytest.mark.parametrize("step", [0, 1])
def test_a_step_without_memory_ends_its_requests_and_no_others(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what it left unwritten found by who asks the same again."""
    config, checkpoint = engine(tmp_path, LLAMA)
    first, again, other = ask(1, 20, 6), replace(ask(1, 20, 6), request_id="again"), ask(2, 30, 4)
    expected = on_cpu(config, checkpoint, [again, other])
    with running_on(quick):
        core = EngineCore(config, Executor(gpu := Worker(config, checkpoint, FakeDevice())))
        replay, steps = gpu._runner._graph.replay, iter(range(100))

        def scarce(batch: Batch) -> torch.Tensor:
            if next(steps) == step:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return replay(batch)

        monkeypatch.setattr(gpu._runner._graph, "replay", scarce)
        core.add(first)
        outputs = []
        while core.has_work:
            outputs += core.step().outputs
        assert [each.error is not None for each in outputs] == [False] * step + [True]
        assert "ran out of memory" in str(outputs[-1].error)
        same(run(core, [again, other]), expected)
