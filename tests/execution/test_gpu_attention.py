"""An engine whose attention is chosen by flags: 8-bit caches, fixed splits, libraries; on a GPU that is none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_device import FakeDevice
from quick_kernels import quick
from test_gpu_runner import LLAMA, ask, engine, on_cpu, on_gpu, same

from octavo.errors import ConfigError
from octavo.execution.worker import Worker
from octavo.kernels import ops, reference
from octavo.layers.attention.flashinfer import FlashInfer
from octavo.layers.attention.paged import PagedAttention

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))
import fake_attention_libraries as fake

REQUESTS = [ask(1, 5, 6), ask(2, 30, 5), ask(3, 1, 6)]


class Newer(FakeDevice):
    fp8 = True


PLAIN = SimpleNamespace(
    **{
        **vars(quick),
        "paged_attention": reference.paged_attention,
        "rotary_and_write": reference.rotary_and_write,
        "write_kv": reference.write_kv,
    }
)


def test_a_cache_of_8_bit_floats_is_written_and_read(tmp_path: Path) -> None:
    """Other numbers than exact ones, and close to them."""
    told = {}
    for kind in ("auto", "fp8_e4m3", "fp8_e5m2"):
        config, checkpoint = engine(tmp_path, LLAMA, kv_cache_dtype=kind, enforce_eager=True)
        told[kind] = on_gpu(config, checkpoint, [ask(1, 9, 2, logprobs=3)], Newer(), PLAIN)
    (exact,), *others = (each.values() for each in told.values())
    for (rounded,) in others:
        first, second = (torch.tensor(each.logprobs[0].logprobs) for each in (exact, rounded))
        assert not torch.equal(first, second)
        torch.testing.assert_close(first, second, atol=0.05, rtol=0.05)


def test_8_bit_caches_hold_four_times_the_tokens_of_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "kernels_for", lambda _: PLAIN)
    blocks = []
    for kind in ("auto", "fp8"):
        config, checkpoint = engine(
            tmp_path,
            LLAMA,
            kv_cache_dtype=kind,
            enforce_eager=True,
            kv_cache_memory=2**20,
            num_gpu_blocks_override=None,
        )
        worker = Worker(config, checkpoint, Newer())
        blocks.append(worker.capacity.num_blocks)
    assert blocks[1] == 4 * blocks[0]


def test_deterministic_splits_at_fixed_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    class Watched(PagedAttention):
        def __init__(self, split_tokens: int = 0) -> None:
            super().__init__(split_tokens)
            seen.add(split_tokens)

    monkeypatch.setattr("octavo.layers.attention.choice.PagedAttention", Watched)
    for deterministic, splits in ((False, 0), (True, 512)):
        seen.clear()
        config, checkpoint = engine(tmp_path, LLAMA, deterministic=deterministic)
        same(on_gpu(config, checkpoint, REQUESTS, FakeDevice()), on_cpu(config, checkpoint, REQUESTS))
        assert seen == {splits}


def test_a_library_computes_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Op by op: the stand-in looks at values, as no captured operation may."""
    made = []

    class Watched(FlashInfer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("octavo.layers.attention.flashinfer.FlashInfer", Watched)
    monkeypatch.setitem(sys.modules, "flashinfer", fake.FLASHINFER)
    monkeypatch.setattr("octavo.layers.attention.choice._HALVES", (torch.float32,))
    shape = LLAMA | {"head_dim": 64}
    config, checkpoint = engine(tmp_path, shape, attention_backend="flashinfer", enforce_eager=True)
    got = on_gpu(config, checkpoint, REQUESTS, FakeDevice())
    plain, _ = engine(tmp_path, shape)
    same(got, on_cpu(plain, checkpoint, REQUESTS))
    assert made


def test_a_backend_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "kernels_for", lambda _: quick)
    config, checkpoint = engine(tmp_path, LLAMA | {"head_dim": 64}, attention_backend="flashinfer", dtype="bfloat16")
    with pytest.raises(ConfigError, match="flashinfer-python is not installed"):
        Worker(config, checkpoint, FakeDevice())


def test_a_cpu_refuses_what_only_a_gpu_has(tmp_path: Path) -> None:
    for arguments in ({"attention_backend": "triton"}, {"kv_cache_dtype": "fp8"}):
        config, checkpoint = engine(tmp_path, LLAMA, device="cpu", **arguments)
        with pytest.raises(ConfigError, match="needs a GPU"):
            Worker(config, checkpoint)
