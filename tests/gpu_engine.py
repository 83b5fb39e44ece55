"""Engines of tiny models, driven step by step, and what their requests are told: for tests with and without a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.execution.worker import Worker
from octavo.plan import Pending, StepPlan
from octavo.request import BeamSearchParams, Logprobs, Output, PoolingParams, Request, SamplingParams

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
ENGINE = {
    "device": "cpu",
    "load_format": "dummy",
    "dtype": "float32",
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "block_size": 8,
    "num_gpu_blocks_override": 40,
}


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
    config = EngineConfig.of(model=str(tmp_path), **{**ENGINE, **arguments})
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


GREEDY = [ask(1, 5, 9), ask(2, 30, 6), ask(3, 1, 8), ask(4, 12, 5), ask(5, 5, 7)]
SAMPLED = [
    ask(1, 5, 8, temperature=0.9, top_k=20, top_p=0.95, logprobs=3),
    ask(2, 20, 6, temperature=1.1, n=3),
    ask(3, 3, 8, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.3),
    ask(4, 30, 3, prompt_logprobs=2, logprobs=0),
    replace(ask(5, 6, 5), beam=BeamSearchParams(beam_width=2, max_tokens=5)),
    ask(6, 4, 6, min_tokens=3, stop_token_ids=list(range(0, 96, 2)), logit_bias={7: 2.0}),
    ask(7, 9, 4, allowed_token_ids=[3, 5, 9], temperature=0.7, min_p=0.05),
]
