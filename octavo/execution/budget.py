"""What an accelerator has left for the KV cache: measured, before there is one, while the largest steps are rehearsed.

Beside the cache lie the weights and what libraries keep for themselves, what a step has in memory at a time, and the
graphs that will be captured. What other programs hold counts against the device, not against this engine's share of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.device import Device

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of a device with the model loaded and no KV cache."""

    total: int
    free: int  # now, whoever holds the rest
    weights: int
    libraries: int  # what this engine has taken beside: kernels, workspaces
    activations: int  # most that a step has at a time
    graphs: int  # that will be captured

    def room(self, config: EngineConfig) -> int:
        """For the KV cache. Raises ConfigError where there is none.

        All of this engine stays within its share of the device, unless the cache's size was asked for.
        """
        share = 1.0 if config.cache.kv_cache_memory is not None else config.cache.gpu_memory_utilization
        left = min(int(self.total * share) - self.weights - self.libraries, self.free)
        room = left - self.activations - self.graphs
        if room <= 0:
            raise ConfigError(
                f"no room for the KV cache: of {_gib(self.total)} this engine may use {_gib(int(self.total * share))} "
                f"and {_gib(self.free)} are free now, its weights ({_gib(self.weights)}) and libraries "
                f"({_gib(self.libraries)}) already loaded; the largest step needs {_gib(self.activations)} and graphs "
                f"{_gib(self.graphs)}. {_advice(config)}"
            )
        return room

    def __str__(self) -> str:
        return (
            f"weights {_gib(self.weights)}, libraries {_gib(self.libraries)}, "
            f"activations of the largest step {_gib(self.activations)}, graphs {_gib(self.graphs)}"
        )


def measure(
    device: Device, free_before: int, weights: int, rehearse: Callable[[], int], config: EngineConfig
) -> Budget:
    """free_before: bytes, when nothing of the model was there. weights: bytes that it takes. rehearse: computes the
    largest steps and forgets them; the bytes that graphs will take. Raises ConfigError where the steps find no room.
    """
    device.synchronize()
    device.empty_cache()
    device.reset_peak()
    held = device.peak()  # the weights, and what else this process has there
    try:
        graphs = rehearse()
        device.synchronize()
    except torch.OutOfMemoryError:
        free, total = device.memory()
        raise ConfigError(
            f"a step as large as --max-num-batched-tokens and --max-num-seqs allow finds no room beside the weights "
            f"({_gib(weights)}) in {_gib(total)}, of which {_gib(free)} are free. {_advice(config)}"
        ) from None
    activations = device.peak() - held
    device.empty_cache()
    free, total = device.memory()
    return Budget(
        total=total,
        free=free,
        weights=weights,
        libraries=max(free_before - free - weights, 0),
        activations=activations,
        graphs=graphs,
    )


def _advice(config: EngineConfig) -> str:
    scheduler, cache = config.scheduler, config.cache
    share = (
        "" if cache.kv_cache_memory is not None or cache.gpu_memory_utilization >= 0.95
        else f"raise --gpu-memory-utilization {cache.gpu_memory_utilization}, "
    )  # fmt: skip
    return (
        f"Lower --max-num-batched-tokens {scheduler.max_num_batched_tokens} or --max-num-seqs "
        f"{scheduler.max_num_seqs}, {share}free memory that other programs hold, "
        "or choose a smaller or quantized model"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
