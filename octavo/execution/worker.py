"""A worker owns one device: it loads the model there, sizes the KV cache, and runs its share of every step."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.kv_cache import GIB, KVCache, bytes_per_block, fit_context, plan_blocks, plan_kept_blocks
from octavo.execution.model_runner import ModelRunner
from octavo.kernels import cpu
from octavo.models.registry import Model, build
from octavo.models.weights.loader import dummy_weights, load_weights
from octavo.models.weights.sources import open_source
from octavo.plan import Capacity, Computed, Pending, StepPlan

logger = logging.getLogger(__name__)


class Worker:
    """Loads the model when made. Raises CheckpointError or ConfigError with what to do."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        device = choose_device(config.execution.device)
        if device.type == "cpu":
            cpu.use_threads(config.execution.num_threads or available_cores())
        dtype = choose_dtype(config.model.dtype, checkpoint, device)
        started = time.monotonic()
        model = _load(config, checkpoint, dtype, device)
        free = free_memory(device, config.cache.gpu_memory_utilization)
        self.capacity = size_cache(config, checkpoint, model, dtype, device, free)
        blocks, block_size, context = self.capacity.num_blocks, config.cache.block_size, self.capacity.max_model_len
        block_bytes = bytes_per_block(model.cache_specs, block_size, dtype)
        cache = KVCache(model.cache_specs, blocks, block_size, dtype, device)
        self._runner = ModelRunner(model, cache, context, config.scheduler.max_num_batched_tokens, device)
        logger.info(
            "%s in %s on %s after %.1f s; KV cache: %d blocks of %d tokens, %.2f GiB; context %d",
            checkpoint.name, str(dtype).removeprefix("torch."), device, time.monotonic() - started,
            blocks, block_size, blocks * block_bytes / GIB, context,
        )  # fmt: skip

    def submit(self, plan: StepPlan) -> Pending:
        """Begin a step, behind those begun before. Its result may be awaited in another thread."""
        return Computed(self._runner.run(plan))


def _load(config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Model:
    model = build(checkpoint.config, dtype, device)
    if checkpoint.format == "dummy":
        dummy_weights(model, config.model.seed)
    else:
        load_weights(model, open_source(checkpoint, keeps_few_bits(config, device)))
    return model.eval()


def keeps_few_bits(config: EngineConfig, device: torch.device) -> bool:
    """Whether quantized weights are multiplied as they are. Asked for float32, every value is computed as float32."""
    return device.type == "cpu" and cpu.available() and config.model.dtype != "float32"


def size_cache(
    config: EngineConfig, checkpoint: Checkpoint, model: Model, dtype: torch.dtype, device: torch.device, free: int
) -> Capacity:
    """What a worker can take on, with `free` bytes left beside the model. Raises ConfigError if that is nothing."""
    block_size = config.cache.block_size
    block_bytes = bytes_per_block(model.cache_specs, block_size, dtype)
    asked = config.model.max_model_len
    limit = longest_text(config, checkpoint, model)
    longest = limit if asked in (None, -1) else min(asked or 1, limit)
    blocks = plan_blocks(config.cache, block_bytes, free, longest, device)
    if model.ability.whole_prompts:  # nothing stays from one step to the next
        blocks = min(blocks, config.scheduler.max_num_batched_tokens // block_size + config.scheduler.max_num_seqs)
    return Capacity(
        num_blocks=blocks,
        block_size=block_size,
        max_model_len=fit_context(asked, limit, blocks, block_size),
        vocab_size=model.vocab_size,
        kept_blocks=plan_kept_blocks(config.cache, block_bytes, device),
        ability=model.ability,
        gpus=[f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else [],
    )


def longest_text(config: EngineConfig, checkpoint: Checkpoint, model: Model) -> int:
    """Tokens that the model can take: as many as its files advise unless others are asked for.

    Raises ConfigError where so many are asked for that no step has room for them.
    """
    asked, limit = config.model.max_model_len, model.max_position
    if asked in (None, -1):
        limit = min(limit, checkpoint.pooling.longest or limit)
    if not model.ability.whole_prompts:
        return limit
    room = config.scheduler.max_num_batched_tokens
    if room < min(asked or 0, limit):
        raise ConfigError(
            f"this model computes a text in one step: --max-num-batched-tokens {room} must be at least "
            f"--max-model-len {asked}"
        )
    return min(limit, room)


def choose_device(name: str) -> torch.device:
    """auto: the first GPU if there is one, else the CPU. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(asked: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """auto: a GPU's float16 checkpoints stay so, all else is bfloat16; float32 where a CPU cannot multiply that."""
    if asked != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[asked]
    stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if device.type == "cpu":
        onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        able = onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if able else torch.float32
    return torch.float16 if stored == "float16" else torch.bfloat16


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device, utilization: float) -> int:
    """Bytes that the KV cache may take: what the machine has free, or a GPU's share less what is in use there."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(int(total * utilization) - (total - free), 0)
    return available_memory()


def total_memory(device: torch.device) -> int:
    """Bytes that the device has, whoever uses them; of a container, its limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(present, _kernel_figure("/sys/fs/cgroup/memory.max", r"^(\d+)$") or present)


def available_memory() -> int:
    """Bytes that this process could still use: what the system can give, within a container's limit."""
    available = _kernel_figure("/proc/meminfo", r"^MemAvailable:\s+(\d+) kB", 1024)
    if available is None:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _kernel_figure("/sys/fs/cgroup/memory.max", r"^(\d+)$")
    used = _kernel_figure("/sys/fs/cgroup/memory.current", r"^(\d+)$")
    return available if limit is None or used is None else min(available, max(limit - used, 0))


def _kernel_figure(path: str, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * unit if found else None
