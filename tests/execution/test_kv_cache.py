"""Sizing the cache from a budget, fitting the context into it, copying blocks."""

from __future__ import annotations

import pytest
import torch

from octavo.config import CacheConfig
from octavo.errors import ConfigError
from octavo.execution import kv_cache
from octavo.execution.kv_cache import GIB, KVCache, bytes_per_block, fit_context, plan_blocks, plan_host_blocks
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


@pytest.mark.parametrize("chunk", [1, 1000, 2**20])
def test_swapped_blocks_come_back_wherever_they_are_put(chunk, monkeypatch):
    monkeypatch.setattr(kv_cache, "_HOST_CHUNK", chunk)
    made = []

    def make(shape, dtype):
        made.append(torch.full(shape, float("nan"), dtype=dtype))
        return made[-1]

    cache = KVCache([SPECS[0], SPECS[1], SPECS[0]], 6, 2, torch.float32, CPU, make)
    for number, each in enumerate(cache.caches):
        for block in range(6):
            each.k[block], each.v[block] = 10 * block + number, -10 * block - number
    assert not made, "memory is taken when it is used"
    cache.swap_out([(1, 7), (2, 0), (3, 7)])
    for each in cache.caches:
        each.k[:4], each.v[:4] = 0, 0
    cache.swap_in([(0, 7), (2, 0)])
    for number, each in enumerate(cache.caches):
        assert [each.k[block].unique().tolist() for block in range(6)] == [
            [30 + number], [0], [20 + number], [0], [40 + number], [50 + number]
        ]  # fmt: skip
        assert each.v[2].unique().tolist() == [-20 - number]


def test_swapping_goes_on_without_pinned_memory(caplog):
    def refuse(*_):
        raise RuntimeError("out of host memory")

    cache = KVCache(SPECS, 2, 2, torch.float32, CPU, refuse)
    cache.caches[0].k[1] = 5
    cache.swap_out([(1, 3)])
    cache.swap_in([(0, 3)])
    assert cache.caches[0].k[0].unique().item() == 5
    assert "out of host memory" in caplog.text


@pytest.mark.parametrize(
    ("space", "on_gpu", "free", "blocks"),
    [
        (None, False, 100 * GIB, 0),
        (None, True, 100 * GIB, 4 * GIB // 100),
        (None, True, 4000, 10),
        (0, True, 100 * GIB, 0),
        (1050, False, 2000, 10),
    ],
)
def test_swap_space(space, on_gpu, free, blocks):
    assert plan_host_blocks(CacheConfig(swap_space=space), 100, free, on_gpu) == blocks


def test_swap_space_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"--swap-space asks for 2\.00 GiB"):
        plan_host_blocks(CacheConfig(swap_space=2 * GIB), 100, GIB, False)
