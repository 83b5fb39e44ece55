"""What is left for the KV cache of a GPU: measured around a rehearsal, within a share; advice where it is nothing."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fake_device import FakeDevice
from torch import Tensor

from octavo.checkpoint import resolve
from octavo.config import EngineConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.execution.budget import Budget, measure
from octavo.execution.kv_cache import bytes_per_block
from octavo.execution.rehearsal import rehearsal
from octavo.execution.stowed import weight_bytes
from octavo.execution.worker import Worker
from octavo.models.decoder import Decoder

MIB = 2**20
ROOMY = Budget(
    total=1000 * MIB, free=880 * MIB, weights=100 * MIB, libraries=20 * MIB, activations=50 * MIB, graphs=30 * MIB
)


class Ledger:
    """A device that only keeps books: of what is allocated by `take`, and of what others hold."""

    torch = torch.device("cpu")
    uuid = "GPU-of-paper"
    multiprocessors = 1
    fp8 = False

    def __init__(self, total: int, others: int = 0) -> None:
        self.total, self.others = total, others
        self.tensors = self.kept = self.most = 0

    def take(self, size: int) -> None:
        if self.others + self.kept + self.tensors + size > self.total:
            raise torch.OutOfMemoryError
        self.tensors += size
        self.most = max(self.most, self.tensors)

    def pinned(self, shape: tuple[int, ...], type_: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=type_)

    def memory(self) -> tuple[int, int]:
        return self.total - self.others - self.kept - self.tensors, self.total

    def peak(self) -> int:
        return self.most

    def reset_peak(self) -> None:
        self.most = self.tensors

    def empty_cache(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def config(**arguments: object) -> EngineConfig:
    return EngineConfig.of(**arguments)


@pytest.mark.parametrize("in_process", [0, 200], ids=["alone", "beside other tensors of the process"])
def test_what_is_measured_is_weights_libraries_and_the_most_of_a_step(in_process: int) -> None:
    device = Ledger(1000, others=100)
    device.take(in_process)
    device.take(300)  # the weights

    def rehearse() -> int:
        device.take(50)
        device.tensors -= 50
        device.take(40)
        device.tensors -= 40
        device.kept = 20  # a library keeps it
        return 30

    budget = measure(device, 900 - in_process, 300, rehearse, config())
    assert budget == Budget(total=1000, free=580 - in_process, weights=300, libraries=20, activations=50, graphs=30)


@pytest.mark.parametrize(
    ("share", "free", "room"),
    [
        (0.5, 880, 500 - 120 - 80),  # its share, less what it has
        (0.5, 250, 250 - 80),  # others hold so much that its share is not there
        (1.0, 880, 880 - 80),
    ],
)
def test_an_engine_stays_within_its_share_and_within_what_is_free(share: float, free: int, room: int) -> None:
    budget = Budget(
        total=ROOMY.total, free=free * MIB, weights=100 * MIB, libraries=20 * MIB, activations=50 * MIB, graphs=30 * MIB
    )
    assert budget.room(config(gpu_memory_utilization=share)) == room * MIB


def test_a_cache_that_was_asked_for_is_not_bound_to_the_share() -> None:
    assert ROOMY.room(config(gpu_memory_utilization=0.2, kv_cache_memory=500 * MIB)) == 800 * MIB


def test_no_room_says_what_takes_it_and_what_to_lower() -> None:
    with pytest.raises(ConfigError) as told:
        ROOMY.room(config(gpu_memory_utilization=0.2, max_num_batched_tokens=4096, max_num_seqs=64))
    for part in ("--max-num-batched-tokens 4096", "--max-num-seqs 64", "--gpu-memory-utilization 0.2", "0.05 GiB"):
        assert part in told.value.message


def test_a_step_that_finds_no_room_says_what_to_lower() -> None:
    device = Ledger(1000)
    device.take(900)
    with pytest.raises(ConfigError, match="--max-num-batched-tokens 2048"):
        measure(device, 1000, 900, lambda: device.take(200) or 0, config())


def test_a_rehearsal_that_finds_no_memory_is_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While serving, such a step ends its requests and nothing more: here it would be taken for a small one."""
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 70, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps({**shape, **heads}))
    settings = config(model=str(tmp_path), load_format="dummy", dtype="float32", max_num_batched_tokens=64)

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "logits", full)
    with pytest.raises(ConfigError, match=r"finds no room beside the weights.*--max-num-batched-tokens 64"):
        Worker(settings, resolve(settings.model), FakeDevice(10 * MIB))


@pytest.mark.parametrize("whole_prompts", [False, True])
@pytest.mark.parametrize(("tokens", "sequences", "context"), [(64, 4, 1000), (64, 4, 20), (3, 8, 20), (500, 4, 20)])
def test_the_largest_steps_are_as_large_as_steps_may_be(
    tokens: int, sequences: int, context: int, whole_prompts: bool
) -> None:
    scheduler = SchedulerConfig(max_num_batched_tokens=tokens, max_num_seqs=sequences)
    prefill, decode, *small, last = rehearsal(scheduler, context, 16, draws=True, whole_prompts=whole_prompts)
    most = min(sequences, tokens)
    assert prefill.token_count == min(tokens, most * context)
    assert len(prefill.rows) == len(decode.rows) == decode.token_count == most
    for plan in (prefill, decode):
        assert all(row.start + len(row.token_ids) <= context for row in plan.rows)
        assert all(len(row.block_ids) * 16 >= row.start + len(row.token_ids) for row in plan.rows)
        assert all((row.start == 0) == whole_prompts or row.start + len(row.token_ids) == context for row in plan.rows)
        assert {spec.sequence_id for spec in plan.added} == {row.sequence_id for row in plan.rows}
    assert prefill.removed == []
    plans = [prefill, decode, *small, last]
    for before, after in pairwise(plans):
        assert after.removed == [row.sequence_id for row in before.rows]
    assert last.rows == []
    assert all(plan.token_count <= tokens and len(plan.rows) <= most for plan in small)
    assert all(spec.params.repetition_penalty == 1 for plan in small for spec in plan.added), "as most requests"
    lone = {plan.token_count for plan in small if len(plan.rows) == 1}
    assert {size for size in (2, 4, 8, 16, 32, 64, 128, 256) if size < min(tokens, context)} == lone
    assert {len(plan.rows) for plan in small} - {1} == {size for size in (2, 4) if size < most}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_worker_gives_the_cache_what_its_rehearsal_leaves(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"model_type": family, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 70, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps({**shape, **heads}))
    settings = config(
        model=str(tmp_path), load_format="dummy", dtype="float32", max_num_batched_tokens=64, max_num_seqs=4
    )
    checkpoint = resolve(settings.model)
    device = FakeDevice(10 * MIB)
    with caplog.at_level(logging.INFO, "octavo"):
        worker = Worker(settings, checkpoint, device)
    specs = worker._model.cache_specs
    assert worker.capacity.gpus == ["GPU-none"]
    if family == "llama":
        graphs = 3 * MIB  # of 1, 2 and 4 sequences
        room = int(10 * MIB * 0.92) - weight_bytes(worker._model) - graphs
        assert worker.capacity.num_blocks == room // bytes_per_block(specs, 16, torch.float32)
        assert worker.capacity.max_model_len == 128
    else:  # for a step, and for the one that is begun while it is under way
        assert worker.capacity.num_blocks == 2 * (64 // 16 + 4)
    assert "activations of the largest step" in caplog.text
    assert f"full contexts of {worker.capacity.max_model_len} at once" in caplog.text
