"""What a model will take and give before any of it is loaded: memory by kind, and bytes that a step reads.

Built from the same parts as a worker: the model on torch's device meta, filled by the loader from a source whose
data is never read, and the worker's own sizing of the KV cache. What cannot be known from headers (libraries, scratch
memory) is estimated from measurements and named so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.budget import Budget
from octavo.execution.device import choose_device, open_device
from octavo.execution.kv_cache import bytes_per_block
from octavo.execution.worker import (
    available_memory,
    choose_cache_dtype,
    choose_dtype,
    choose_storage,
    keeps_few_bits,
    size_cache,
    total_memory,
)
from octavo.layers.attention.choice import refuse_without_gpu
from octavo.layers.embedding import TiedHead
from octavo.layers.linear import Linear
from octavo.layers.quantization.packed import QuantizedRows, bytes_when_packed
from octavo.layers.quantization.scheme import PackedSpec, Scheme
from octavo.models.decoder import Decoder
from octavo.models.registry import Model, outline
from octavo.models.weights.loader import load_weights
from octavo.models.weights.sources import open_source
from octavo.plan import Capacity

MIB = 2**20

# Measured with a server on Linux (x86-64, torch 2.13): what its processes keep to themselves beside the weights.
_ENGINE = 150 * MIB  # the process that computes
_PACKING = 22 * MIB  # what packing leaves to the allocator
_SERVER = 32 * MIB  # the process that speaks HTTP
_PER_TOKENIZER_ENTRY = 520  # bytes
_LIBRARIES = 90 * MIB  # files in memory, where the system does not tell how many of their pages others share
_SCRATCH = 32 * MIB  # of matrix products
_COPIES_OF_LOGITS = 2  # on a GPU, where all are drawn from at once: themselves, and as probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes, where nothing else is said."""

    device: torch.device
    dtype: torch.dtype
    generates: bool  # else it only turns texts into vectors
    parameters: int
    weights: int  # as they will lie in memory, packed where they will be; tables of positions included
    step_reads: int  # of weights, by a step of however few tokens
    kv_token: int  # of the KV cache for one token
    workspace: int  # activations of the largest step; at most about
    runtime: int  # libraries, tokenizer; about
    total: int  # of the device
    free: int  # of it, now
    capacity: Capacity | None  # as the worker will find it, if nothing else takes memory meanwhile
    obstacle: str | None  # why there is no capacity

    @property
    def at_rest(self) -> int:
        """What a loaded model takes before its first request."""
        return self.weights + self.runtime


def footprint(config: EngineConfig, checkpoint: Checkpoint) -> Footprint:
    """Raises CheckpointError or ConfigError where loading would, but for memory that is too small: that is told."""
    device = choose_device(config.execution.device)
    dtype = choose_dtype(config.model.dtype, checkpoint, device)
    gpu = open_device(device)
    if gpu is None:
        refuse_without_gpu(config.execution.attention_backend)
    model = outline(checkpoint.config, dtype, choose_storage(config, checkpoint, dtype, gpu))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    packs = checkpoint.format == "gguf" and keeps_few_bits(config, device)
    if packs:
        load_weights(model, open_source(checkpoint, True), _weigh)
    weights = _bytes(model) + sum(buffer.nbytes for buffer in model.buffers())
    runtime = _ENGINE + _SERVER + packs * _PACKING + _PER_TOKENIZER_ENTRY * model.vocab_size + _libraries()
    cache_dtype = choose_cache_dtype(config.cache.kv_cache_dtype, dtype, gpu)
    workspace = _SCRATCH + config.scheduler.max_num_batched_tokens * _activations(model) * dtype.itemsize
    if gpu is None:
        free, total = available_memory(), total_memory()
        room = max(free - weights - runtime, 0)
    else:
        free, total = gpu.memory()
        workspace += _COPIES_OF_LOGITS * config.scheduler.max_num_seqs * model.vocab_size * 4
    try:
        if gpu is not None:  # as the worker has it, with what is known before: its libraries and graphs come on top
            budget = Budget(
                total=total, free=free - weights, weights=weights, libraries=0, activations=workspace, graphs=0
            )
            room = budget.room(config)
        capacity, obstacle = size_cache(config, checkpoint, model, cache_dtype, gpu, room), None
    except ConfigError as error:
        capacity, obstacle = None, error.message
    return Footprint(
        device=device,
        dtype=dtype,
        generates="generate" in model.ability.tasks,
        parameters=parameters,
        weights=weights,
        step_reads=_step_reads(model),
        kv_token=bytes_per_block(model.cache_specs, 1, cache_dtype),
        workspace=workspace,
        runtime=runtime,
        total=total,
        free=free,
        capacity=capacity,
        obstacle=obstacle,
    )


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Stands for a packed matrix of so many bytes; there is nothing to multiply with."""

    nbytes: int

    def tensors(self, in_features: int, out_features: int) -> dict[str, PackedSpec]:  # noqa: ARG002
        return {}

    def store(self, weight_NK: Tensor) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def apply(self, x_TK: Tensor, tensors: Mapping[str, Tensor | None], full_precision: bool) -> Tensor:
        raise NotImplementedError

    def rows(self, ids_T: Tensor, tensors: Mapping[str, Tensor | None]) -> Tensor:
        raise NotImplementedError


def _weigh(matrices: Sequence[Sequence[QuantizedRows]], dtypes: Sequence[torch.dtype]) -> Sequence[Scheme]:  # noqa: ARG001
    return [_Weighed(bytes_when_packed(parts)) for parts in matrices]


def _libraries() -> int:
    """What the files take that a process as this one has in memory; pages that others use too count in part."""
    try:
        found = re.search(r"^Pss_File:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _LIBRARIES


def _bytes(module: nn.Module) -> int:
    schemes = (each.scheme for each in module.modules() if isinstance(each, Linear))
    packed = sum(scheme.nbytes for scheme in schemes if isinstance(scheme, _Weighed))
    return packed + sum(parameter.nbytes for parameter in module.parameters())


def _step_reads(model: Model) -> int:
    """All but embeddings, of which a token reads one row; a head that shares its matrix reads it whole."""
    tied = isinstance(model, Decoder) and isinstance(model.head, TiedHead)
    return _bytes(model) - _bytes(model.embedding) + (_bytes(model.embedding.matrix) if tied else 0)


def _activations(model: Model) -> int:
    """Numbers that one token of a step has in memory at once: the residual stream and a layer's widest product."""
    linears = [each for each in model.layers[0].modules() if isinstance(each, Linear)]
    width = model.embedding.matrix.in_features
    return (
        2 * width
        + max(each.in_features for each in linears)
        + max(each.in_features + each.out_features for each in linears)
    )
