"""The engine on a real GPU: the tests of its fake, and what only hardware shows. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_engine import GEMMA2, GREEDY, LLAMA, QWEN3, SAMPLED, Executor, Told, ask, engine, on_cpu, run

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.execution.device import CudaDevice
from octavo.execution.worker import Worker
from octavo.request import PoolingParams, Request, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SHAPES = [
    shape | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    for shape in (LLAMA, QWEN3, GEMMA2)
]


def on_gpu(config: EngineConfig, checkpoint: Checkpoint, requests: Sequence[Request]) -> dict[tuple[str, int], Told]:
    return run(EngineCore(config, Executor(Worker(config, checkpoint)), hash_seed=b"x"), requests)


def judge(tmp_path: Path, shape: dict[str, Any], dtype: str, got: dict[tuple[str, int], Told], most: float) -> None:
    """By a CPU, given the tokens before it, each token is at most so far behind the best."""
    config, checkpoint = engine(tmp_path, shape, max_num_batched_tokens=64, dtype=dtype)
    prompts = {request.request_id: request.prompt_token_ids for request in GREEDY}
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    for (name, _), told in got.items():
        text = [*prompts[name], *told.tokens]
        request = Request(request_id=name, prompt_token_ids=text, params=params, max_tokens=1, seed=0)
        positions = on_cpu(config, checkpoint, [request])[name, 0].prompt_logprobs[-len(told.tokens) :]
        behind = [position.logprobs[1] - position.logprobs[0] for position in positions]
        assert max(behind) <= most, (name, behind)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["model_type"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.01), ("bfloat16", 0.15), ("float16", 0.02)])
def test_greedy_tokens_are_those_of_a_cpu(shape: dict[str, Any], dtype: str, most: float, tmp_path: Path) -> None:
    told = []
    for eager in (False, True):
        config, checkpoint = engine(tmp_path, shape, device="cuda", dtype=dtype, enforce_eager=eager)
        told.append(on_gpu(config, checkpoint, GREEDY))
        judge(tmp_path, shape, dtype, told[-1], most)
    assert {key: len(each.tokens) for key, each in told[0].items()} == {
        key: len(each.tokens) for key, each in told[1].items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bytes_alone_and_together(dtype: str, tmp_path: Path) -> None:
    config, checkpoint = engine(tmp_path, SHAPES[1], device="cuda", dtype=dtype, deterministic=True)
    together = on_gpu(config, checkpoint, SAMPLED)
    worker = Worker(config, checkpoint)
    for request in SAMPLED:
        alone = run(EngineCore(config, Executor(worker), hash_seed=b"x"), [request])
        assert alone == {key: told for key, told in together.items() if key[0] == request.request_id}
        worker.sleep(1)
        worker.wake()


def test_who_gives_way_goes_on_where_it_was(tmp_path: Path) -> None:
    shape, arguments = SHAPES[0], {"device": "cuda", "max_model_len": 48, "deterministic": True}
    requests = [ask(number, 10, 16, temperature=0.8 * (number % 2)) for number in range(4)]
    config, checkpoint = engine(tmp_path, shape, num_gpu_blocks_override=6, **arguments)
    core = EngineCore(config, Executor(Worker(config, checkpoint)))
    got = run(core, requests)
    assert core.scheduler.preemptions > 0
    roomy, checkpoint = engine(tmp_path, shape, **arguments)
    assert got == on_gpu(roomy, checkpoint, requests)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_prompts_become_vectors(pooling: str, tmp_path: Path) -> None:
    params = PoolingParams(pooling=pooling, normalize=True)
    requests = [ask(1, 4, 9), ask(2, 40, pooling=params), ask(3, 1, pooling=params)]
    expected = on_cpu(*engine(tmp_path, SHAPES[0]), requests)
    got = on_gpu(*engine(tmp_path, SHAPES[0], device="cuda"), requests)
    for key in (("r2", 0), ("r3", 0)):
        torch.testing.assert_close(torch.tensor(got[key].pooled), torch.tensor(expected[key].pooled), atol=2e-3, rtol=0)


@torch.inference_mode()
def test_a_device_does_what_its_fake_does() -> None:
    device = CudaDevice(torch.device("cuda"))
    x, out = torch.ones(4, device=device.torch), torch.zeros(4, device=device.torch)
    host, event = device.pinned((4,), torch.float32), device.event()
    assert host.is_pinned()
    event.synchronize()  # a new one lies before everything

    def double() -> None:
        out.copy_(x * 2)

    double()
    graph = device.graph_pool().capture(double)
    x.fill_(3)
    assert out.tolist() == [2.0] * 4, "capturing executes nothing"
    graph.replay()
    host.copy_(out, non_blocking=True)
    event.record()
    event.synchronize()
    assert host.tolist() == [6.0] * 4
    free, total = device.memory()
    assert 0 < free < total
    device.reset_peak()
    assert 0 < device.peak() < total
