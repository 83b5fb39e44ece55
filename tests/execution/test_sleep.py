"""A worker that sleeps holds nothing, and afterwards is as it was: at both levels, on a CPU and on a device."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from fake_device import FakeDevice

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.errors import CheckpointError, ConfigError
from octavo.execution import stowed, worker
from octavo.execution.worker import Worker
from octavo.plan import DRAWN, Row, SequenceSpec, StepPlan
from octavo.request import SamplingParams

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 70,
    "max_position_embeddings": 64,
}
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def model(tmp_path: Path) -> tuple[EngineConfig, Checkpoint]:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config = EngineConfig.of(
        model=str(tmp_path),
        load_format="dummy",
        dtype="float32",
        device="cpu",
        enforce_eager=True,
        num_gpu_blocks_override=4,
        max_num_batched_tokens=32,
        max_num_seqs=2,
    )
    return config, resolve(config.model)


def story(worker: Worker, number: int) -> list[int]:
    """A prompt and what follows it; the sequence is forgotten."""
    spec = SequenceSpec(number, [5, 6, 7], 3, GREEDY, 1, [], [])
    tokens = (
        worker.submit(StepPlan(0, [spec], [Row(number, 0, [5, 6, 7], 0, [2], 1)], [], [])).result().rows[0].token_ids
    )
    for step in range(3):
        row = Row(number, 3 + step, [DRAWN if worker.capacity.steps_ahead else tokens[-1]], 1, [], 1)
        tokens += worker.submit(StepPlan(step + 1, [], [row], [], [])).result().rows[0].token_ids
    worker.submit(StepPlan(9, [], [], [], [number])).result()
    return tokens


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("on_device", [False, True])
def test_after_sleep_all_is_as_before(model: tuple[EngineConfig, Checkpoint], level: int, on_device: bool) -> None:
    device = FakeDevice() if on_device else None
    sleeper = Worker(*model, device)
    told = story(sleeper, 0)
    runner = weakref.ref(sleeper._runner)
    for number in (1, 2):
        sleeper.sleep(level)
        assert runner() is None, "it holds the KV cache"
        held = sleeper._model
        if held is not None:
            assert stowed.weight_bytes(held) == 0
        assert (held is not None) == (level == 1 and on_device)
        sleeper.wake()
        assert story(sleeper, number) == told
        runner = weakref.ref(sleeper._runner)


def test_weights_that_share_memory_and_those_beyond_a_chunk_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stowed, "_CHUNK", 100)
    module = torch.nn.Module()
    whole = torch.arange(90, dtype=torch.float32)
    module.register_buffer("first", whole[:40].view(4, 10).t())
    module.register_buffer("rest", whole[40:])
    module.register_parameter(
        "other", torch.nn.Parameter(torch.full((7,), 3, dtype=torch.float16), requires_grad=False)
    )
    module.register_buffer("nothing", torch.empty(0))
    before = [each.clone() for each in (module.first, module.rest, module.other)]
    away = stowed.Stowed(module, FakeDevice())
    assert stowed.weight_bytes(module) == 0
    assert [each.nbytes for each in away._chunks] == [100, 100, 100, 74]
    away.restore()
    assert all(map(torch.equal, (module.first, module.rest, module.other), before))
    module.first[0, 0] = 7
    assert module.first.untyped_storage().data_ptr() == module.rest.untyped_storage().data_ptr()


def test_level_1_needs_memory_of_the_machine(
    model: tuple[EngineConfig, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Worker(*model, FakeDevice())
    told = story(sleeper, 0)
    monkeypatch.setattr(worker, "available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="level 2"):
        sleeper.sleep(1)
    assert story(sleeper, 1) == told, "it stayed awake"


@pytest.mark.parametrize("level", [1, 2])
def test_who_finds_no_room_sleeps_on(
    model: tuple[EngineConfig, Checkpoint], level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Worker(*model, FakeDevice())
    told = story(sleeper, 0)
    sleeper.sleep(level)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "KVCache", full)
        for _ in range(2):
            with pytest.raises(ConfigError, match="no room to wake up"):
                sleeper.wake()
            assert sleeper._runner is None
            assert sleeper._model is None or stowed.weight_bytes(sleeper._model) == 0
    sleeper.wake()
    assert story(sleeper, 1) == told


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError


def test_files_that_are_gone_are_named_and_may_come_back(
    model: tuple[EngineConfig, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = Worker(*model)
    told = story(sleeper, 0)
    sleeper.sleep(1)

    def gone(*_: object) -> None:
        raise CheckpointError("model.safetensors is not there")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_load", gone)
        with pytest.raises(CheckpointError, match="not there"):
            sleeper.wake()
    sleeper.wake()
    assert story(sleeper, 1) == told
