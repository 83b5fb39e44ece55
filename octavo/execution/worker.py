"""A worker owns one device: it loads the model there, sizes the KV cache, and runs its share of every step."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import time
from pathlib import Path

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import ConfigError, OctavoError
from octavo.execution.budget import Budget, measure
from octavo.execution.device import Device, choose_device, open_device
from octavo.execution.graphs import graph_sizes
from octavo.execution.kv_cache import (
    GIB,
    KVCache,
    bytes_per_block,
    fit_context,
    plan_blocks,
    plan_host_blocks,
    plan_kept_blocks,
)
from octavo.execution.model_runner import ModelRunner, cpu_runner, gpu_runner
from octavo.execution.rehearsal import rehearsal
from octavo.execution.stowed import Stowed, weight_bytes
from octavo.kernels import cpu
from octavo.layers.attention.backend import AttentionBackend
from octavo.layers.attention.choice import Demand, choose, refuse_without_gpu
from octavo.layers.attention.paged import fixed_splits
from octavo.layers.quantization import choice as quantization
from octavo.models.registry import Model, build
from octavo.models.weights.loader import dummy_weights, load_weights, pack_coded
from octavo.models.weights.sources import open_source
from octavo.plan import Capacity, Pending, StepPlan

logger = logging.getLogger(__name__)


class Worker:
    """Loads the model when made. Raises CheckpointError or ConfigError with what to do.

    accelerator: where to run instead of the configured device (for tests).
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, accelerator: Device | None = None) -> None:
        started = time.monotonic()
        self._config = config
        self._checkpoint = checkpoint
        self._accelerator = accelerator or open_device(choose_device(config.execution.device))
        self._device = torch.device("cpu") if self._accelerator is None else self._accelerator.torch
        if self._accelerator is None:
            refuse_without_gpu(config.execution.attention_backend)
            cpu.use_threads(config.execution.num_threads or available_cores())
        self._dtype = choose_dtype(config.model.dtype, checkpoint, self._device)
        self._cache_dtype = choose_cache_dtype(config.cache.kv_cache_dtype, self._dtype, self._accelerator)
        free = 0 if self._accelerator is None else self._accelerator.memory()[0]
        self._model: Model | None = self._load()
        room = available_memory() if self._accelerator is None else self._budget(self._accelerator, free).room(config)
        self.capacity = size_cache(config, checkpoint, self._model, self._cache_dtype, self._accelerator, room)
        self._stowed: Stowed | None = None
        self._runner: ModelRunner | None = self._make_runner(self.capacity.num_blocks, self.capacity.max_model_len)
        self._log(time.monotonic() - started)

    def submit(self, plan: StepPlan) -> Pending:
        """Begin a step, behind those begun before. Its result may be awaited in another thread."""
        assert self._runner is not None, "it sleeps"
        return self._runner.submit(plan)

    def sleep(self, level: int) -> None:
        """Give back all memory that can be made or read again. No step may be under way.

        level 1: a GPU's weights stay in the host's memory; 2, and on a CPU: they are read again by `wake`. Raises
        ConfigError if the host lacks memory for them, and then it stays awake.
        """
        assert self._runner is not None
        assert self._model is not None
        keeps = level == 1 and self._accelerator is not None
        if keeps and (needed := weight_bytes(self._model)) > (there := available_memory()):
            raise ConfigError(
                f"level 1 keeps the weights ({needed / GIB:.2f} GiB) in the machine's memory, of which only "
                f"{there / GIB:.2f} GiB are free; level 2 reads them again when it wakes"
            )
        self._runner = None
        if keeps:
            assert self._accelerator is not None
            self._stowed = Stowed(self._model, self._accelerator)
        else:
            self._model = None
        self._give_back()

    def wake(self) -> None:
        """As it was before it slept, but that nothing is in the KV cache.

        Raises ConfigError where memory is taken by others, CheckpointError where files are gone; then it sleeps on.
        """
        assert self._runner is None
        try:
            if self._stowed is None:
                self._model = self._load()
            else:
                self._stowed.restore()
            self._runner = self._make_runner(self.capacity.num_blocks, self.capacity.max_model_len)
        except (torch.OutOfMemoryError, OctavoError) as error:
            if self._stowed is None:
                self._model = None
            else:
                self._stowed.leave()
            self._give_back()
            if isinstance(error, OctavoError):
                raise
            raise ConfigError(f"there is no room to wake up: {self._room_left()}") from None
        self._stowed = None
        self._give_back()  # the weights' copy

    def _give_back(self) -> None:
        """What nobody refers to any more goes back to the system, too."""
        gc.collect()
        if self._accelerator is not None:
            self._accelerator.empty_cache()
        elif (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)

    def _room_left(self) -> str:
        if self._accelerator is None:
            return f"{available_memory() / GIB:.2f} GiB of the machine's memory are free"
        free, total = self._accelerator.memory()
        return f"other programs hold {(total - free) / GIB:.2f} GiB of the {total / GIB:.2f} GiB of {self._device}"

    def _load(self) -> Model:
        try:
            return _load(self._config, self._checkpoint, self._dtype, self._accelerator)
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"the weights of {self._checkpoint.name} find no room: {self._room_left()}. Free memory, "
                "name another GPU (--device cuda:N), or choose a smaller or quantized model"
            ) from None

    def _make_runner(self, num_blocks: int, context: int) -> ModelRunner:
        assert self._model is not None
        block_size = self._config.cache.block_size
        host = {} if self._accelerator is None else {"host_memory": self._accelerator.pinned}
        cache = KVCache(self._model.cache_specs, num_blocks, block_size, self._cache_dtype, self._device, **host)
        most_tokens, most_rows = self._config.scheduler.max_num_batched_tokens, self._config.scheduler.max_num_seqs
        if self._accelerator is None:
            return cpu_runner(self._model, cache, context, most_tokens)
        return gpu_runner(
            self._model,
            cache,
            self._accelerator,
            self._attention(self._model, self._accelerator, context),
            max_model_len=context,
            max_tokens=most_tokens,
            max_rows=most_rows,
            graph_sizes=self._graph_sizes(),
        )

    def _attention(self, model: Model, accelerator: Device, context: int) -> AttentionBackend:
        demand = Demand.of(
            model,
            dtype=self._dtype,
            cache_dtype=self._cache_dtype,
            block_size=self._config.cache.block_size,
            arch=_arch(accelerator),
            split_tokens=fixed_splits(context) if self._config.execution.deterministic else 0,
        )
        asked = self._config.execution.attention_backend
        return choose(asked, demand, accelerator.torch, accelerator.event, self._graph_sizes())

    def _graph_sizes(self) -> list[int]:
        assert self._model is not None
        execution = self._config.execution
        if execution.enforce_eager or self._model.ability.whole_prompts:  # an encoder's rows have many tokens
            return []
        return graph_sizes(self._config.scheduler.max_num_seqs, execution.cudagraph_capture_sizes)

    def _budget(self, accelerator: Device, free_before: int) -> Budget:
        assert self._model is not None
        budget = measure(accelerator, free_before, weight_bytes(self._model), self._rehearse, self._config)
        logger.info("memory of %s, %s: %s", self._device, accelerator.uuid, budget)
        return budget

    def _rehearse(self) -> int:
        assert self._model is not None
        ability = self._model.ability
        context = longest_text(self._config, self._checkpoint, self._model)
        runner = self._make_runner(1, context)
        draws, whole = "generate" in ability.tasks, ability.whole_prompts
        block_size = self._config.cache.block_size
        sizes = self._graph_sizes()
        decoding = {*sizes[-1:], *sizes[:1]}  # what the largest takes, and what one more does
        for plan in rehearsal(
            self._config.scheduler, context, block_size, draws=draws, whole_prompts=whole, decoding=sorted(decoding)
        ):
            runner.rehearse(plan)
        return runner.graphs_reserve()

    def _log(self, seconds: float) -> None:
        assert self._model is not None
        blocks, block_size, context = self.capacity.num_blocks, self.capacity.block_size, self.capacity.max_model_len
        bytes_ = blocks * bytes_per_block(self._model.cache_specs, block_size, self._cache_dtype)
        tokens = blocks * block_size
        logger.info(
            "%s in %s on %s after %.1f s; KV cache: %d tokens, %.2f GiB; at most %.1f full contexts of %d at once",
            self._checkpoint.name, str(self._dtype).removeprefix("torch."), self._device, seconds,
            tokens, bytes_ / GIB, tokens / context, context,
        )  # fmt: skip


def _load(config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype, gpu: Device | None) -> Model:
    device = torch.device("cpu") if gpu is None else gpu.torch
    model = build(checkpoint.config, dtype, device, choose_storage(config, checkpoint, dtype, gpu))
    if checkpoint.format == "dummy":
        dummy_weights(model, config.model.seed)
    else:
        load_weights(model, open_source(checkpoint, keeps_few_bits(config, device)))
    if device.type == "cpu" and cpu.available():
        pack_coded(model, dtype)
    return model.eval()


def choose_storage(
    config: EngineConfig, checkpoint: Checkpoint, dtype: torch.dtype, gpu: Device | None
) -> quantization.Storage:
    """Of the model's matrices. Raises ConfigError for what the machine or the checkpoint cannot do."""
    asked = config.model.quantization
    if checkpoint.format == "gguf" and asked not in ("auto", "none"):
        raise ConfigError(f"--quantization {asked}: the weights of a GGUF file are quantized already; leave it out")
    arch = None if gpu is None else _arch(gpu)
    return quantization.choose(asked, dtype, arch, config.execution.deterministic)


def keeps_few_bits(config: EngineConfig, device: torch.device) -> bool:
    """Whether quantized weights are multiplied as they are. Asked for float32, every value is computed as float32."""
    wanted = config.model.dtype != "float32" and config.model.quantization == "auto"
    return device.type == "cpu" and cpu.available() and wanted


def size_cache(
    config: EngineConfig, checkpoint: Checkpoint, model: Model, cache_dtype: torch.dtype, gpu: Device | None, free: int
) -> Capacity:
    """What a worker can take on, with `free` bytes left beside the model. Raises ConfigError if that is nothing."""
    block_size = config.cache.block_size
    block_bytes = bytes_per_block(model.cache_specs, block_size, cache_dtype)
    asked = config.model.max_model_len
    limit = longest_text(config, checkpoint, model)
    longest = limit if asked in (None, -1) else min(asked or 1, limit)
    host_blocks = plan_host_blocks(config.cache, block_bytes, available_memory(), gpu is not None)
    blocks = plan_blocks(config.cache, block_bytes, free, longest, gpu is not None)
    steps_ahead = int(gpu is not None and config.scheduler.async_scheduling)
    if model.ability.whole_prompts:  # nothing stays when a step is over
        of_a_step = config.scheduler.max_num_batched_tokens // block_size + config.scheduler.max_num_seqs
        blocks = min(blocks, (1 + steps_ahead) * of_a_step)
        host_blocks = 0
    return Capacity(
        num_blocks=blocks,
        block_size=block_size,
        max_model_len=fit_context(asked, limit, blocks, block_size),
        vocab_size=model.vocab_size,
        host_blocks=host_blocks,
        kept_blocks=None if gpu is not None else plan_kept_blocks(config.cache, block_bytes),
        ability=model.ability,
        steps_ahead=steps_ahead,
        gpus=[] if gpu is None else [gpu.uuid],
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


def _arch(accelerator: Device) -> str:
    from octavo.kernels.triton.gpu import gpu

    return gpu(accelerator.torch).arch


def choose_cache_dtype(asked: str, dtype: torch.dtype, gpu: Device | None) -> torch.dtype:
    """Of keys and values. Raises ConfigError where a machine does not have the type that is asked for."""
    if asked == "auto":
        return dtype
    if gpu is None:
        raise ConfigError(f"--kv-cache-dtype {asked} needs a GPU; on a CPU the cache has the data type of the model")
    arch = _arch(gpu)
    if asked == "fp8_e5m2":
        return torch.float8_e5m2fnuz if arch.startswith("gfx94") else torch.float8_e5m2
    if not gpu.fp8:
        raise ConfigError(f"--kv-cache-dtype {asked}: {arch} has no such numbers; it has --kv-cache-dtype fp8_e5m2")
    return torch.float8_e4m3fnuz if arch.startswith("gfx94") else torch.float8_e4m3fn


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of memory that the machine has, whoever uses them; of a container, its limit."""
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
