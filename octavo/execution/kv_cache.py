"""The paged KV cache: one tensor for all layers of a kind; sized once from a memory budget.

Block b of layer l is `caches[l].k[b]` and `.v[b]`, each [num_kv_heads, block_size, head_size]: views of the tensor
that layers with equal specs share, so that a block is copied in all of them at once. Knows no sequences: which block
holds what is the scheduler's business. Beside it there may be room for blocks in the machine's memory.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from octavo.config import CacheConfig
from octavo.errors import ConfigError
from octavo.layers.attention.backend import CacheSpec, LayerCache

logger = logging.getLogger(__name__)

HostMemory = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]

GIB = 2**30
_HOST_CHUNK = 2**28  # bytes
_SWAP_DEFAULT = 4 * GIB
_CPU_DEFAULT = GIB  # address space; pages are only backed by memory once a block is used
_CPU_KEPT = GIB // 4


class KVCache:
    """num_blocks blocks of block_size tokens for every layer, on one device.

    host_memory: makes what blocks are swapped out to.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        host_memory: HostMemory = lambda shape, dtype: torch.empty(shape, dtype=dtype),
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        groups = {
            spec: _zeros((layers, 2, num_blocks, spec.num_kv_heads, block_size, spec.head_size), dtype, device)
            for spec, layers in Counter(specs).items()
        }
        self._groups = list(groups.values())
        self._host = [HostBlocks(group, host_memory) for group in self._groups]
        layers = {spec: iter(group) for spec, group in groups.items()}
        self.caches = [LayerCache(*next(layers[spec])) for spec in specs]

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination) in order, in every layer."""
        for source, destination in copies:
            for group in self._groups:
                group[:, :, destination].copy_(group[:, :, source])

    def swap_out(self, swaps: Sequence[tuple[int, int]]) -> None:
        """Copy (block, host block), in order; nothing waits for it."""
        for block, host_block in swaps:
            for group, host in zip(self._groups, self._host, strict=True):
                host[host_block].copy_(group[:, :, block], non_blocking=True)

    def swap_in(self, swaps: Sequence[tuple[int, int]]) -> None:
        """The other way; what was swapped out before is there."""
        for block, host_block in swaps:
            for group, host in zip(self._groups, self._host, strict=True):
                group[:, :, block].copy_(host[host_block], non_blocking=True)


class HostBlocks:
    """Blocks of one group in the machine's memory, which is taken as they are first used, some at a time."""

    def __init__(self, group: torch.Tensor, make: HostMemory) -> None:
        self._shape = (*group.shape[:2], *group.shape[3:])
        self._dtype = group.dtype
        self._make = make
        self._per_chunk = max(_HOST_CHUNK // (math.prod(self._shape) * group.itemsize), 1)
        self._chunks: dict[int, torch.Tensor] = {}

    def __getitem__(self, block: int) -> torch.Tensor:
        number, place = divmod(block, self._per_chunk)
        if number not in self._chunks:
            self._chunks[number] = self._chunk()
        return self._chunks[number][place]

    def _chunk(self) -> torch.Tensor:
        shape = (self._per_chunk, *self._shape)
        try:
            return self._make(shape, self._dtype)
        except RuntimeError as error:  # torch has no narrower one
            logger.warning("no pinned memory for swapped blocks, so that steps wait for their copies: %s", error)
            return torch.empty(shape, dtype=self._dtype)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU the pages come from the system as they are first written: an unused cache costs no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def bytes_per_block(specs: Sequence[CacheSpec], block_size: int, dtype: torch.dtype) -> int:
    return sum(2 * block_size * spec.num_kv_heads * spec.head_size * dtype.itemsize for spec in specs)


def plan_blocks(config: CacheConfig, block_bytes: int, free_bytes: int, max_model_len: int, on_gpu: bool) -> int:
    """How many blocks to allocate. free_bytes: what the device can still give (GPU: within its utilization).

    A CPU gets 1 GiB, or what one full context needs, and never more than half of the free memory.
    Raises ConfigError when not even one block fits.
    """
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    budget = config.kv_cache_memory
    if budget is None and not on_gpu:
        context = -(-max_model_len // config.block_size) * block_bytes
        budget = min(max(_CPU_DEFAULT, context), free_bytes // 2)
    elif budget is None:
        budget = free_bytes
    elif budget > free_bytes:
        raise ConfigError(
            f"--kv-cache-memory asks for {budget / GIB:.2f} GiB, but only {free_bytes / GIB:.2f} GiB are free"
        )
    blocks = budget // block_bytes
    if blocks < 1:
        raise ConfigError(
            f"no room for the KV cache: one block needs {block_bytes} bytes, {budget} are available; "
            "raise --kv-cache-memory, free memory, or choose a smaller model"
        )
    return int(blocks)


def plan_kept_blocks(config: CacheConfig, block_bytes: int) -> int | None:
    """How many blocks of a CPU may take memory only because finished requests left content in them; None: all.

    256 MiB where the cache was not sized by its user: memory that nothing runs in is better left to others, and memory
    used before is quicker than memory that the system has to clear.
    """
    sized = config.kv_cache_memory is not None or config.num_gpu_blocks_override is not None
    return None if sized else max(_CPU_KEPT // block_bytes, 1)


def plan_host_blocks(config: CacheConfig, block_bytes: int, free_bytes: int, on_gpu: bool) -> int:
    """How many blocks may be swapped out. free_bytes: of the machine's memory.

    Raises ConfigError when more memory was asked for than is free.
    """
    space = config.swap_space
    if space is None:
        space = min(_SWAP_DEFAULT, free_bytes // 4) if on_gpu else 0
    elif space > free_bytes:
        raise ConfigError(
            f"--swap-space asks for {space / GIB:.2f} GiB of the machine's memory, of which {free_bytes / GIB:.2f} GiB "
            "are free"
        )
    return space // block_bytes


def fit_context(asked: int | None, model_limit: int, num_blocks: int, block_size: int) -> int:
    """The longest context to serve: what was asked, else the model's limit cut to what the cache holds.

    Raises ConfigError if a length was asked for that the model or the cache cannot hold.
    """
    capacity = num_blocks * block_size
    if asked is None or asked == -1:
        return min(model_limit, capacity)
    if asked > model_limit:
        raise ConfigError(f"--max-model-len {asked} is beyond the model's own limit of {model_limit} tokens")
    if asked > capacity:
        raise ConfigError(
            f"--max-model-len {asked} does not fit: the KV cache holds {capacity} tokens; lower --max-model-len, or "
            "raise --kv-cache-memory or, on a GPU, --gpu-memory-utilization"
        )
    return max(asked, 1)
