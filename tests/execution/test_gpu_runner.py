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
from quick_kernels import quick

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.execution.worker import Worker
from octavo.kernels import ops
from octavo.plan import Pending, StepPlan
from octavo.request import Logprobs, Output, Request, SamplingParams

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
        for output in core.step().outputs:
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


def ask(number: int, length: int, tokens: int, **params: object) -> Request:
    chosen = SamplingParams(**{"temperature": 0.0, "max_tokens": tokens, **params})
    prompt = [(7 * number + 3 * place) % 96 for place in range(length)]
    return Request(request_id=f"r{number}", prompt_token_ids=prompt, params=chosen, max_tokens=tokens, seed=number)


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
