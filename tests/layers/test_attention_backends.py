"""Every backend of attention against plain torch: on a GPU the libraries themselves, else stand-ins for them."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fake_attention_libraries as fake
import pytest
import torch
from torch import Tensor, nn

from octavo.errors import ConfigError
from octavo.kernels import reference
from octavo.layers.attention import choice
from octavo.layers.attention.backend import AttentionBackend, AttentionMetadata, AttentionSpec, LayerCache
from octavo.layers.attention.choice import Demand, choose
from octavo.layers.attention.flash_attn import CALLS, FlashAttention
from octavo.layers.attention.flashinfer import FlashInfer
from octavo.layers.attention.paged import PagedAttention, fixed_splits

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16
HEADS, KV_HEADS, HEAD_SIZE = 8, 2, 64


def library(module: str, stand_in: Any) -> Any:
    if not ON_GPU:
        return stand_in
    return pytest.importorskip(module, exc_type=ImportError)


class Sent:
    """An event, and what was done with it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def record(self) -> None:
        self.log.append("recorded")

    def synchronize(self) -> None:
        self.log.append("waited for")


BACKENDS: dict[str, tuple[int, Callable[[], AttentionBackend]]] = {  # block size, how to make it
    "triton": (16, PagedAttention),
    "fixed splits": (16, lambda: PagedAttention(fixed_splits(500))),
    "flashinfer": (16, lambda: FlashInfer(library("flashinfer", fake.FLASHINFER), DEVICE, [2], Sent())),
    "vllm.vllm_flash_attn": (
        16,
        lambda: FlashAttention(
            CALLS["vllm.vllm_flash_attn"](library("vllm.vllm_flash_attn", fake.FLASH_ATTENTION["vllm.vllm_flash_attn"]))
        ),
    ),
    "flash_attn_interface": (
        16,
        lambda: FlashAttention(
            CALLS["flash_attn_interface"](library("flash_attn_interface", fake.FLASH_ATTENTION["flash_attn_interface"]))
        ),
    ),
    "flash_attn": (
        256,
        lambda: FlashAttention(CALLS["flash_attn"](library("flash_attn", fake.FLASH_ATTENTION["flash_attn"]))),
    ),
}

SPECS = {
    "plain": AttentionSpec(scale=0.125),
    "window": AttentionSpec(scale=0.125, window=20),
    "softcap": AttentionSpec(scale=0.2, softcap=3.0),
    "whole texts": AttentionSpec(scale=0.125, causal=False),
}
STEPS = {  # rows of (new tokens, length)
    "decoding": [(1, 5), (1, 300)],
    "one": [(1, 77)],
    "prompts": [(40, 40), (3, 90)],
    "mixed": [(1, 33), (17, 64), (1, 1)],
}


def step_of(rows: list[tuple[int, int]], block_size: int) -> AttentionMetadata:
    """Blocks in shuffled order; table entries past a row's end are valid blocks of nobody."""
    counts = [-(-length // block_size) for _, length in rows]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)).int() + 1
    tables = torch.zeros((len(rows), max(counts) + 2), dtype=torch.int32)
    ends = list(itertools.accumulate(counts, initial=0))
    for row, (begin, end) in enumerate(itertools.pairwise(ends)):
        tables[row, : end - begin] = order[begin:end]
    starts = torch.tensor([0, *itertools.accumulate(new for new, _ in rows)], dtype=torch.int32)
    lengths = torch.tensor([length for _, length in rows], dtype=torch.int32)
    return AttentionMetadata(
        query_start=starts.to(DEVICE),
        seq_lens=lengths.to(DEVICE),
        block_tables=tables.to(DEVICE),
        slots=torch.zeros(0, dtype=torch.int64, device=DEVICE),
        longest_query=max(new for new, _ in rows),
        longest_context=max(length for _, length in rows),
        query_start_host=starts,
        seq_lens_host=lengths,
    )


def tensors(step: AttentionMetadata, block_size: int, seed: int = 0) -> tuple[Tensor, LayerCache]:
    generator = torch.Generator().manual_seed(seed)
    assert step.query_start_host is not None
    blocks = int(step.block_tables.max()) + 1
    wide = torch.randn(int(step.query_start_host[-1]), HEADS + 2 * KV_HEADS, HEAD_SIZE, generator=generator)
    k, v = torch.randn(2, blocks, KV_HEADS, block_size, HEAD_SIZE, generator=generator).to(DEVICE, DTYPE)
    return wide.to(DEVICE, DTYPE)[:, :HEADS], LayerCache(k, v)


def expected(q: Tensor, cache: LayerCache, step: AttentionMetadata, spec: AttentionSpec) -> Tensor:
    return reference.paged_attention(
        q, cache.k, cache.v, step.query_start, step.seq_lens, step.block_tables, spec.scale, spec.window, spec.softcap,
        spec.causal, spec.sinks, cache.k_scale, cache.v_scale,
    )  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
def test_agrees_with_plain_torch(name: str) -> None:
    """One backend through steps of all kinds, in each of which layers of all kinds run."""
    block_size, make = BACKENDS[name]
    backend = make()
    for rows in (*STEPS.values(), STEPS["decoding"], [(1, 6), (1, 301)]):
        step = step_of(rows, block_size)
        backend.plan(step)
        assert backend.metadata is step
        for seed, spec in enumerate(SPECS.values()):
            q, cache = tensors(step, block_size, seed)
            if not spec.causal and step.longest_query == 1:
                continue
            got = backend.run(q, cache, spec)
            torch.testing.assert_close(got, expected(q, cache, step, spec), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["triton", "vllm.vllm_flash_attn"])
def test_sinks(name: str) -> None:
    block_size, make = BACKENDS[name]
    backend, step = make(), step_of(STEPS["mixed"], 16)
    sinks = torch.linspace(-1, 3, HEADS, dtype=DTYPE).float().to(DEVICE)
    spec = replace(SPECS["window"], sinks=sinks)
    q, cache = tensors(step, block_size)
    backend.plan(step)
    torch.testing.assert_close(backend.run(q, cache, spec), expected(q, cache, step, spec), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("rows", [STEPS["decoding"], STEPS["mixed"]])
def test_flashinfer_reads_caches_of_8_bit_floats(rows: list[tuple[int, int]]) -> None:
    backend, step = BACKENDS["flashinfer"][1](), step_of(rows, 16)
    q, (k, v, *_) = tensors(step, 16)
    cache = LayerCache(k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn), 0.5, 2.0)
    backend.plan(step)
    got = backend.run(q, cache, SPECS["plain"])
    torch.testing.assert_close(got, expected(q, cache, step, SPECS["plain"]), atol=4e-2, rtol=4e-2)


@pytest.mark.skipif(ON_GPU, reason="asks the stand-in what was planned")
def test_flashinfer_plans_once_a_step_for_layers_of_a_kind_and_before_a_graph_is_replayed() -> None:
    backend = FlashInfer(fake.FLASHINFER, DEVICE, [2], Sent())
    for lengths in ((5, 300), (6, 301)):
        step = step_of([(1, length) for length in lengths], 16)
        backend.plan(step)
        for _ in range(3):
            for name in ("plain", "window"):
                backend.run(*tensors(step, 16), SPECS[name])
    assert [wrapper.plans for wrapper in backend._captured.values()] == [2, 2]
    # A graph is replayed: nothing runs here but `plan`, and what it left is of the new step.
    backend.plan(step_of([(1, 7), (1, 16)], 16))
    for wrapper in backend._captured.values():
        assert wrapper.plans == 3
        assert wrapper.planned["last"].tolist() == [7, 16]
    assert not backend._others


def test_flashinfer_plans_when_its_plan_before_has_been_sent() -> None:
    """Wrappers send it from pinned memory that they write to again."""
    sent = Sent()
    backend = FlashInfer(library("flashinfer", fake.FLASHINFER), DEVICE, [2], sent)
    for rows in ([(1, 5), (1, 9)], [(1, 6), (1, 10)], [(3, 8)], [(2, 30)], [(1, 7), (1, 11)]):
        step = step_of(rows, 16)
        sent.log.clear()
        backend.plan(step)
        backend.run(*tensors(step, 16), SPECS["plain"])
        assert sent.log == ["waited for", "recorded"]


@pytest.mark.skipif(ON_GPU, reason="asks the stand-in what was planned")
def test_flashinfer_gives_rows_of_padding_a_page() -> None:
    backend, step = FlashInfer(fake.FLASHINFER, DEVICE, [2], Sent()), step_of([(1, 20), (1, 1)], 16)
    assert step.seq_lens_host is not None
    step.seq_lens[1] = step.seq_lens_host[1] = 0
    q, cache = tensors(step, 16)
    backend.plan(step)
    got = backend.run(q, cache, SPECS["plain"])
    torch.testing.assert_close(got[:1], expected(q, cache, step, SPECS["plain"])[:1], atol=2e-2, rtol=2e-2)
    assert got.isfinite().all()


DEMAND = Demand(head_sizes=frozenset([128]), sinks=False, dtype=DTYPE, cache_dtype=DTYPE, block_size=16, arch="sm_90")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of modules; empty at first."""
    names: list[str] = []

    def imported(name: str) -> Any:
        if name not in names:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return fake.FLASH_ATTENTION.get(name, fake.FLASHINFER)

    monkeypatch.setattr(importlib, "import_module", imported)
    return names


def test_own_kernels_can_do_everything() -> None:
    hard = replace(DEMAND, head_sizes=frozenset([80]), sinks=True, cache_dtype=torch.float8_e5m2, arch="gfx942")
    for asked in ("auto", "triton"):
        assert isinstance(choose(asked, hard, DEVICE, Sent), PagedAttention)


@pytest.mark.parametrize("asked", ["flash_attn", "flashinfer"])
def test_what_is_not_installed_is_said(installed: list[str], asked: str) -> None:
    with pytest.raises(ConfigError, match=rf"--attention-backend {asked} cannot be used: .* is not installed"):
        choose(asked, DEMAND, DEVICE, Sent)


def test_the_first_library_that_is_there_and_lacks_nothing_is_taken(installed: list[str]) -> None:
    installed += ["flash_attn", "flashinfer"]
    assert isinstance(choose("flashinfer", DEMAND, DEVICE, Sent), FlashInfer)
    with pytest.raises(ConfigError, match="flash-attn needs --block-size 256 or a multiple"):
        choose("flash_attn", DEMAND, DEVICE, Sent)
    large = replace(DEMAND, block_size=256)
    assert isinstance(choose("flash_attn", large, DEVICE, Sent), FlashAttention)
    assert isinstance(choose("flash_attn", replace(large, arch="sm_80"), DEVICE, Sent), FlashAttention)


@pytest.mark.parametrize(
    ("asked", "change", "said"),
    [
        ("flashinfer", {"arch": "gfx942"}, "flashinfer-python does not run on gfx942"),
        ("flashinfer", {"dtype": torch.float32, "cache_dtype": torch.float32}, "in 16 bits only, not in float32"),
        ("flashinfer", {"head_sizes": frozenset([64, 80])}, "has no kernels for heads of 80"),
        ("flashinfer", {"sinks": True}, "knows no attention sinks"),
        ("flashinfer", {"split_tokens": 512}, "as --deterministic does"),
        ("flash_attn", {"cache_dtype": torch.float8_e4m3fn}, "reads no KV cache of float8_e4m3fn"),
        ("flash_attn", {"arch": "sm_100", "sinks": True}, "flash-attn knows no attention sinks"),
    ],
)
def test_what_a_library_lacks_is_said(installed: list[str], asked: str, change: dict[str, Any], said: str) -> None:
    installed += [library.module for library in choice.LIBRARIES]
    with pytest.raises(ConfigError) as error:
        choose(asked, replace(DEMAND, **change), DEVICE, Sent)
    assert said in error.value.message


def test_a_demand_is_read_off_a_model() -> None:
    class Layer(choice.Attention):
        def __init__(self, head_size: int, spec: AttentionSpec) -> None:
            nn.Module.__init__(self)
            self.head_size, self.spec = head_size, spec

    rest = {"dtype": DTYPE, "cache_dtype": DTYPE, "block_size": 16, "arch": "sm_90"}
    plain, sinking = AttentionSpec(scale=1.0), AttentionSpec(scale=1.0, sinks=torch.zeros(1))
    assert Demand.of(nn.ModuleList([Layer(64, plain), Layer(128, plain)]), **rest) == replace(
        DEMAND, head_sizes=frozenset([64, 128])
    )
    assert Demand.of(nn.ModuleList([Layer(128, plain), Layer(128, sinking)]), **rest) == replace(DEMAND, sinks=True)


def test_fixed_splits_are_few_for_long_contexts_and_never_short() -> None:
    for context in (1, 300, 4096, 5000, 131072):
        tokens = fixed_splits(context)
        assert tokens >= 512
        assert tokens & (tokens - 1) == 0
        assert context <= 16 * tokens
