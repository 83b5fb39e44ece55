"""Which way a GPU computes attention: what each library can do, in one table. A library is loaded when it is chosen.

octavo's own kernels can do everything and are what `auto` means; the libraries are for those who want them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from octavo.errors import ConfigError
from octavo.layers.attention.backend import AttentionBackend, Event
from octavo.layers.attention.layer import Attention
from octavo.layers.attention.paged import PagedAttention

_HALVES = (torch.bfloat16, torch.float16)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a model, its cache and its GPU ask of attention."""

    head_sizes: frozenset[int]
    sinks: bool
    dtype: torch.dtype
    cache_dtype: torch.dtype
    block_size: int
    arch: str  # "sm_90", "gfx942"
    split_tokens: int = 0  # not 0: equal bits in every batch and chunk

    @classmethod
    def of(cls, model: nn.Module, **rest: Any) -> Demand:
        layers = [each for each in model.modules() if isinstance(each, Attention)]
        return cls(
            head_sizes=frozenset(layer.head_size for layer in layers),
            sinks=any(layer.spec.sinks is not None for layer in layers),
            **rest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A module that computes attention. Windows, caps of scores and whole texts are nothing that any of them lacks."""

    backend: str  # as users name it
    module: str
    package: str  # what to install
    archs: tuple[str, ...]
    head_sizes: Container[int]
    sinks: bool = False
    cache_dtypes: tuple[torch.dtype, ...] = ()  # beside the model's own
    block_multiple: int = 1

    def lacks(self, demand: Demand) -> str | None:
        """Why it cannot do what is demanded, to follow "cannot be used: "."""
        sizes = sorted(size for size in demand.head_sizes if size not in self.head_sizes)
        if not demand.arch.startswith(self.archs):
            return f"{self.package} does not run on {demand.arch}"
        if demand.dtype not in _HALVES:
            return f"{self.package} computes in 16 bits only, not in {_name(demand.dtype)}"
        if demand.cache_dtype not in (demand.dtype, *self.cache_dtypes):
            return f"{self.package} reads no KV cache of {_name(demand.cache_dtype)} beside {_name(demand.dtype)}"
        if sizes:
            return f"{self.package} has no kernels for heads of {sizes[0]}"
        if demand.sinks and not self.sinks:
            return f"{self.package} knows no attention sinks, which this model has"
        if demand.block_size % self.block_multiple:
            return f"{self.package} needs --block-size {self.block_multiple} or a multiple"
        if demand.split_tokens:
            return f"{self.package} does not promise equal results in every batch, as --deterministic does"
        return None


# The first that is installed and lacks nothing is taken.
LIBRARIES = (
    Library(backend="flash_attn", module="vllm.vllm_flash_attn", package="vllm (with FlashAttention 3)",
            archs=("sm_90",), head_sizes=range(8, 257, 8), sinks=True),
    Library(backend="flash_attn", module="vllm_flash_attn", package="vllm-flash-attn (with FlashAttention 3)",
            archs=("sm_90",), head_sizes=range(8, 257, 8)),
    Library(backend="flash_attn", module="flash_attn_interface", package="FlashAttention 3",
            archs=("sm_90",), head_sizes=range(8, 257, 8)),
    Library(backend="flash_attn", module="flash_attn", package="flash-attn",
            archs=("sm_",), head_sizes=range(8, 257, 8), block_multiple=256),
    Library(backend="flashinfer", module="flashinfer", package="flashinfer-python",
            archs=("sm_",), head_sizes=(64, 128, 256), cache_dtypes=_FLOAT8),
)  # fmt: skip


def choose(
    asked: str, demand: Demand, device: torch.device, event: Callable[[], Event], graph_sizes: Sequence[int] = ()
) -> AttentionBackend:
    """The backend that a user asked for. event: makes one.

    Raises ConfigError where it is not installed or lacks something.
    """
    if asked in ("auto", "triton"):
        return PagedAttention(demand.split_tokens)
    obstacles = []
    for library in LIBRARIES:
        if library.backend != asked:
            continue
        obstacle = library.lacks(demand)
        try:
            module = importlib.import_module(library.module) if obstacle is None else None
        except (ImportError, OSError) as error:  # OSError: shared libraries that are not there
            obstacle = f"{library.package} is not installed ({error})"
        if obstacle is None:
            return _adapted(library, module, device, event, graph_sizes)
        obstacles.append(obstacle)
    raise ConfigError(
        f"--attention-backend {asked} cannot be used: {'; '.join(obstacles)}. "
        "Leave it out: octavo's own kernels (triton) can do all of it"
    )


def refuse_without_gpu(asked: str) -> None:
    """Raises ConfigError for a backend that a CPU does not have."""
    if asked != "auto":
        raise ConfigError(f"--attention-backend {asked} needs a GPU; a CPU has octavo's own kernels only: leave it out")


def _adapted(
    library: Library, module: Any, device: torch.device, event: Callable[[], Event], graph_sizes: Sequence[int]
) -> AttentionBackend:
    if library.backend == "flashinfer":
        from octavo.layers.attention.flashinfer import FlashInfer

        return FlashInfer(module, device, graph_sizes, event())
    from octavo.layers.attention.flash_attn import CALLS, FlashAttention

    return FlashAttention(CALLS[library.module](module))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
