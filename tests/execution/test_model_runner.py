"""A step from plan to result: what a row is told when it fails, whatever else it asked for."""

from __future__ import annotations

import torch

from octavo.execution.kv_cache import KVCache
from octavo.execution.model_runner import cpu_runner
from octavo.models.registry import build
from octavo.models.weights.loader import dummy_weights
from octavo.plan import Row, SequenceSpec, StepPlan
from octavo.request import SamplingParams

CPU = torch.device("cpu")
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 64}


def test_a_callers_fault_stays_one_beside_prompt_logprobs():
    model = build(GPT2, torch.float32, CPU)
    dummy_weights(model)
    runner = cpu_runner(model, KVCache(model.cache_specs, 4, 16, torch.float32, CPU), 64, 64)
    params = SamplingParams(allowed_token_ids=[7], bad_words=["x"], prompt_logprobs=0)
    spec = SequenceSpec(0, [1, 2, 3], 3, params, 5, [], [[7]])
    result = runner.submit(StepPlan(1, [spec], [Row(0, 0, [1, 2, 3], 0, [0], 1)], [], [])).result().rows[0]
    assert result.fault == "invalid"
    assert result.error is not None
    assert len(result.prompt_logprobs) == 2
