"""A recorded program against the same model run op by op: equal bits, whatever the step."""

from __future__ import annotations

import resource

import pytest
import torch

from octavo.execution.batch import Batch
from octavo.execution.graphs import Eager, Recorded, make_graph
from octavo.execution.kv_cache import KVCache
from octavo.kernels import cpu
from octavo.kernels.recording import Recorder
from octavo.layers.attention.backend import AttentionMetadata
from octavo.layers.attention.paged import PagedAttention
from octavo.models.registry import build
from octavo.models.weights.loader import dummy_weights

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
GEMMA = LLAMA | {"model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 16}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 256}
BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}

pytestmark = pytest.mark.skipif(not cpu.available(), reason="needs the compiled kernels")


def step(tokens: list[int], start: int) -> Batch:
    """One sequence whose blocks are 0, 1, 2, …"""
    end = start + len(tokens)
    positions = torch.arange(start, end)
    return Batch(
        token_ids_T=torch.tensor(tokens),
        positions_T=positions,
        metadata=AttentionMetadata(
            query_start=torch.tensor([0, len(tokens)], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_tables=torch.arange(16, dtype=torch.int32)[None],
            slots=positions,
        ),
        last_R=None,
    )


@pytest.mark.parametrize("config", [LLAMA, GEMMA, GPT2], ids=["qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_program_replays_the_model(config, dtype):
    model = build(config, dtype, CPU)
    dummy_weights(model, 3)
    caches = [KVCache(model.cache_specs, 16, 16, dtype, CPU) for _ in range(2)]
    attention = PagedAttention()
    eager = Eager(model, attention, caches[0].caches)
    recorded = make_graph(model, attention, caches[1].caches, max_tokens=64)
    assert isinstance(recorded, Recorded)
    start = 0
    for count in (5, 1, 8, 3, 40, 1):  # 40: more than a dense program takes; it hands over
        batch = step([(7 * (start + place)) % 100 for place in range(count)], start)
        start += count
        assert torch.equal(recorded.replay(batch), eager.replay(batch))
    for mine, other in zip(caches[1].caches, caches[0].caches, strict=True):
        assert torch.equal(mine.k, other.k)
        assert torch.equal(mine.v, other.v)


@torch.inference_mode()
def test_a_model_that_computes_outside_the_kernels_runs_op_by_op():
    model = build(GPT2, torch.float32, CPU)
    dummy_weights(model, 3)
    model.layers[1].mlp.activate = torch.tanh
    cache = KVCache(model.cache_specs, 4, 16, torch.float32, CPU)
    assert isinstance(make_graph(model, PagedAttention(), cache.caches, max_tokens=64), Eager)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_program_replays_an_encoder(activation, dtype):
    model = build(BERT | {"hidden_act": activation}, dtype, CPU)
    dummy_weights(model, 3)
    caches = [KVCache(model.cache_specs, 16, 16, dtype, CPU) for _ in range(2)]
    attention = PagedAttention()
    eager = Eager(model, attention, caches[0].caches)
    recorded = make_graph(model, attention, caches[1].caches, max_tokens=64)
    assert isinstance(recorded, Recorded)
    for count in (5, 1, 33, 64):
        batch = step([(7 * place) % 200 for place in range(count)], 0)  # of both segments
        assert torch.equal(recorded.replay(batch), eager.replay(batch))


def test_what_a_program_works_on_begins_at_a_cache_line():
    recorder = Recorder()
    kept = [
        recorder.empty((3, 5), torch.bfloat16),
        recorder.empty((70,), torch.uint8),
        recorder.empty((1,), torch.float32),
    ]
    assert all(each.data_ptr() % 64 == 0 for each in kept)


def test_without_address_space_steps_run_op_by_op():
    model = build(LLAMA, torch.float32, CPU)
    dummy_weights(model, 3)
    cache = KVCache(model.cache_specs, 4, 16, torch.float32, CPU)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**33, limits[1]))
    try:
        graph = make_graph(model, PagedAttention(), cache.caches, max_tokens=64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert isinstance(graph, Eager)
