"""The engine on a GPU that is none: real scheduler, runner, graphs and kernels (interpreted), a device that catches
misuse. What comes out is what the engine says on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeDevice
from msgspec.structs import replace
from quick_kernels import quick

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.execution import worker
from octavo.execution.batch import Batch
from octavo.execution.worker import Worker
from octavo.kernels import ops
from octavo.plan import Pending, StepPlan
from octavo.request import BeamSearchParams, Logprobs, Output, PoolingParams, Request, SamplingParams

pytest.importorskip("triton.language", reason="no triton: the kernels of a GPU cannot be interpreted")

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "tie_word_embeddings": True}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "sliding_window": 8,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 10.0,
}
BERT = LLAMA | {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "num_labels": 1,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
ENGINE = {"load_format": "dummy", "dtype": "float32", "max_num_batched_tokens": 24, "max_num_seqs": 4, "block_size": 8}


@contextmanager
def running_on(kernels: Any) -> Iterator[None]:
    """These compute every operation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "kernels_for", lambda _: kernels)
        yield


@dataclass
class Executor:
    """A worker, and what was asked of it."""

    worker: Worker
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.capacity = self.worker.capacity

    def submit(self, plan: StepPlan) -> Pending:
        self.plans.append(plan)
        return self.worker.submit(plan)

    def close(self) -> None: ...


@dataclass
class Told:
    """All that a request's sequence was told."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    reason: str | None = None
    pooled: list[float] = field(default_factory=list)


def run(core: EngineCore, requests: Sequence[Request]) -> dict[tuple[str, int], Told]:
    """A new request every other step."""
    told: dict[tuple[str, int], Told] = {}
    waiting = list(requests)
    step = 0
    while core.has_work or waiting:
        if waiting and step % 2 == 0:
            core.add(waiting.pop(0))
        for output in core.step().outputs if core.has_work else []:
            hear(told.setdefault((output.request_id, output.index), Told()), output)
        step += 1
        assert step < 500, "no end"
    return told


def hear(told: Told, output: Output) -> None:
    assert output.error is None, output.error
    told.tokens += output.token_ids
    told.logprobs += output.logprobs or []
    told.prompt_logprobs += output.prompt_logprobs or []
    told.reason = output.finish_reason or told.reason
    if output.pooled is not None:
        told.pooled = torch.frombuffer(bytearray(output.pooled), dtype=torch.float32).tolist()


def same(got: dict[tuple[str, int], Told], expected: dict[tuple[str, int], Told]) -> None:
    assert got.keys() == expected.keys()
    for key, mine in got.items():
        other = expected[key]
        assert (mine.tokens, mine.reason) == (other.tokens, other.reason), key
        for ours, theirs in ((mine.logprobs, other.logprobs), (mine.prompt_logprobs, other.prompt_logprobs)):
            assert [(each.token_ids, each.ranks) for each in ours] == [(each.token_ids, each.ranks) for each in theirs]
            flat = [torch.tensor([value for each in side for value in each.logprobs]) for side in (ours, theirs)]
            torch.testing.assert_close(*flat, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(mine.pooled), torch.tensor(other.pooled), atol=1e-5, rtol=1e-5)


def engine(tmp_path: Path, shape: dict[str, object], **arguments: object) -> tuple[EngineConfig, Checkpoint]:
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = EngineConfig.of(model=str(tmp_path), **{**ENGINE, "num_gpu_blocks_override": 40, **arguments})
    return config, resolve(config.model)


def ask(number: int, length: int, tokens: int = 1, *, pooling: PoolingParams | None = None, **params: Any) -> Request:
    chosen = SamplingParams(**{"temperature": 0.0, "max_tokens": tokens, **params})
    prompt = [(7 * number + 3 * place) % 96 for place in range(length)]
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=prompt,
        params=chosen,
        max_tokens=tokens,
        seed=number,
        pooling=pooling,
    )


def on_cpu(config: EngineConfig, checkpoint: Checkpoint, requests: Sequence[Request]) -> dict[tuple[str, int], Told]:
    return run(EngineCore(config, Executor(Worker(config, checkpoint)), hash_seed=b"x"), requests)


def on_gpu(
    config: EngineConfig, checkpoint: Checkpoint, requests: Sequence[Request], device: FakeDevice, kernels: Any = quick
) -> dict[tuple[str, int], Told]:
    with running_on(kernels):
        executor = Executor(Worker(config, checkpoint, device))
        told = run(EngineCore(config, executor, hash_seed=b"x"), requests)
    device.synchronize()
    return told


GREEDY = [ask(1, 5, 9), ask(2, 30, 6), ask(3, 1, 8), ask(4, 12, 5), ask(5, 5, 7)]


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
    monkeypatch.setattr(worker, "largest_steps", lambda *_, **__: [])
    config, checkpoint = engine(tmp_path, shape, cudagraph_capture_sizes=[3], max_num_batched_tokens=10)
    requests, device = [ask(1, 3, 6), ask(2, 13, 4)], FakeDevice()
    same(on_gpu(config, checkpoint, requests, device, ops.gpu_kernels()), on_cpu(config, checkpoint, requests))
    assert device.replays > 0


SAMPLED = [
    ask(1, 5, 8, temperature=0.9, top_k=20, top_p=0.95, logprobs=3),
    ask(2, 20, 6, temperature=1.1, n=3),
    ask(3, 3, 8, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.3),
    ask(4, 30, 3, prompt_logprobs=2, logprobs=0),
    replace(ask(5, 6, 5), beam=BeamSearchParams(beam_width=2, max_tokens=5)),
    ask(6, 4, 6, min_tokens=3, stop_token_ids=list(range(0, 96, 2)), logit_bias={7: 2.0}),
    ask(7, 9, 4, allowed_token_ids=[3, 5, 9], temperature=0.7, min_p=0.05),
]


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
