"""Sizing the cache from a budget, fitting the context into it, copying blocks."""

from __future__ import annotations

import pytest
import torch

from octavo.config import CacheConfig
from octavo.errors import ConfigError
from octavo.execution.kv_cache import GIB, KVCache, bytes_per_block, fit_context, plan_blocks
from octavo.layers.attention.backend import CacheSpec

SPECS = [CacheSpec(2, 8), CacheSpec(1, 16)]
CPU = torch.device("cpu")


def test_a_block_costs_keys_and_values_of_every_layer():
    cache = KVCache(SPECS, 3, 4, torch.float32, CPU)
    held = sum(each.k.nbytes + each.v.nbytes for each in cache.caches)
    assert 3 * bytes_per_block(SPECS, 4, torch.float32) == held


def test_layers_of_one_kind_share_a_tensor_and_no_memory():
    cache = KVCache([SPECS[0], SPECS[1], SPECS[0]], 3, 4, torch.float32, CPU)
    for number, each in enumerate(cache.caches):
        each.k[:], each.v[:] = 2 * number, 2 * number + 1
    storages = [each.k.untyped_storage().data_ptr() for each in cache.caches]
    assert storages[0] == storages[2] != storages[1]
    assert [each.k.unique().item() for each in cache.caches] == [0, 2, 4]
    assert [each.v.unique().item() for each in cache.caches] == [1, 3, 5]
    assert all(tensor.is_contiguous() for each in cache.caches for tensor in (each.k, each.v))


@pytest.mark.parametrize(
    ("config", "on_gpu", "free", "blocks"),
    [
        ({"kv_cache_memory": 1000}, False, 2000, 10),
        ({"num_gpu_blocks_override": 7}, False, 0, 7),
        ({}, False, 100 * GIB, GIB // 100),  # the default
        ({}, False, 1000, 5),  # half of a small machine
        ({}, True, 5000, 50),  # all that the utilization leaves
    ],
)
def test_blocks_fill_the_budget(config, on_gpu, free, blocks):
    assert plan_blocks(CacheConfig(**config), 100, free, 64, on_gpu) == blocks


def test_a_cpu_gets_at_least_one_full_context():
    assert plan_blocks(CacheConfig(), 10**6, 100 * GIB, 16 * 5000, False) == 5000


@pytest.mark.parametrize("config", [{"kv_cache_memory": 99}, {"kv_cache_memory": 10**9}])
def test_a_budget_that_cannot_work_says_what_to_do(config):
    with pytest.raises(ConfigError, match="memory"):
        plan_blocks(CacheConfig(**config), 100, 10**6, 64, False)


@pytest.mark.parametrize(("asked", "length"), [(None, 160), (-1, 160), (100, 100)])
def test_the_context_fits_the_cache(asked, length):
    assert fit_context(asked, 1000, 10, 16) == length


@pytest.mark.parametrize("asked", [161, 2000])
def test_a_context_that_does_not_fit_is_refused(asked):
    with pytest.raises(ConfigError, match="max-model-len"):
        fit_context(asked, 1000, 10, 16)


def test_copies_happen_in_order():
    cache = KVCache(SPECS, 4, 2, torch.float32, CPU)
    for block in range(4):
        for each in cache.caches:
            each.k[block], each.v[block] = block, -block
    cache.copy([(1, 2), (3, 1)])
    assert [int(cache.caches[1].k[block].max()) for block in range(4)] == [0, 3, 1, 3]
    assert [int(cache.caches[0].v[block].min()) for block in range(4)] == [0, -3, -1, -3]
