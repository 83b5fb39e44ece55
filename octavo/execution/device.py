"""The seam to an accelerator: what the workshop asks of it beside torch's own operations, and how CUDA and HIP do it.

Everything is enqueued on one stream, the current one: what was enqueued earlier has happened before what is enqueued
later, so that steps need no locks, and a buffer on the device may be written again as soon as its readers are enqueued.
Only the host has to wait, by an event, before it reads what a copy brought or writes to what a copy still reads.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor, dtype

from octavo.errors import ConfigError
from octavo.layers.attention.backend import Event

_OLDEST = (8, 0)  # compute capability of NVIDIA's first GPUs that multiply bfloat16


class Graph(Protocol):
    def replay(self) -> None:
        """Enqueue again what was captured: the same operations on the same memory."""


class GraphPool(Protocol):
    """Memory that graphs share. Once all that were captured into it are gone, nothing more can be."""

    def capture(self, run: Callable[[], None]) -> Graph:
        """What `run` enqueues, without executing it. It must have run once before, and may neither wait nor look at
        a value; of its results only those that it copied to memory from outside outlive the next replay of any graph
        of the pool. Raises RuntimeError; then what is enqueued next runs as if this had not been tried."""
        ...


class Device(Protocol):
    torch: torch.device
    uuid: str  # as the driver's tools know it
    multiprocessors: int
    fp8: bool  # whether it multiplies 8-bit floats

    def use(self) -> None:
        """Make it the one that the calling thread enqueues to."""

    def pinned(self, shape: tuple[int, ...], type_: dtype) -> Tensor:
        """Host memory that `copy_(…, non_blocking=True)` reaches without waiting. Its content is undefined."""
        ...

    def event(self) -> Event: ...

    def graph_pool(self) -> GraphPool: ...

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all, whoever uses the rest."""
        ...

    def peak(self) -> int:
        """Most bytes of tensors at a time since `reset_peak`."""
        ...

    def reset_peak(self) -> None: ...

    def empty_cache(self) -> None:
        """Give back what torch keeps for tensors to come, on the device and of pinned memory."""

    def synchronize(self) -> None:
        """Wait for everything enqueued."""


class CudaDevice:
    """Raises ConfigError for a GPU that cannot be used, with what to do about it."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        if find_spec("triton") is None:
            raise ConfigError(
                "a GPU needs triton, which torch's builds for CUDA and ROCm bring along: install such a build of torch "
                "or triton alone; --device cpu runs without it"
            )
        self.torch = torch.device("cuda", device.index or 0)
        try:
            self.use()
            torch.ones(1, device=self.torch).add_(1).cpu()  # starts the driver, and tries a kernel
            properties = torch.cuda.get_device_properties(self.torch)
        except RuntimeError as error:  # torch has no narrower one
            raise ConfigError(_unusable(self.torch, str(error))) from None
        capability = (properties.major, properties.minor)
        amd = torch.version.hip is not None
        if not amd and capability < _OLDEST:
            raise ConfigError(
                f"{properties.name} has compute capability {capability[0]}.{capability[1]}; octavo needs 8.0 or newer "
                "(Ampere and later). Use another GPU, or --device cpu"
            )
        self.uuid = f"GPU-{properties.uuid}"
        self.multiprocessors = properties.multi_processor_count
        self.fp8 = capability >= (8, 9) if not amd else (9, 4) <= capability < (10, 0) or capability >= (12, 0)

    def use(self) -> None:
        torch.cuda.set_device(self.torch)

    def pinned(self, shape: tuple[int, ...], type_: dtype) -> Tensor:
        return torch.empty(shape, dtype=type_, pin_memory=True)

    def event(self) -> Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def graph_pool(self) -> GraphPool:
        return _CudaGraphPool(self.torch)

    def memory(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self.torch)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.torch)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)


class _CudaGraphPool:
    """With a stream of its own to capture on: what libraries keep for that stream lies in the pool and goes with it."""

    def __init__(self, device: torch.device) -> None:
        self._handle = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(self, run: Callable[[], None]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # torch.cuda.graph stays on it where a capture fails
            torch.cuda.graph(graph, pool=self._handle, stream=self._stream, capture_error_mode="thread_local"),
        ):
            run()
        return graph


def choose_device(name: str) -> torch.device:
    """auto: the first GPU if there is one, else the CPU. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: {_absent(torch.cuda.device_count())}")
    return device


def open_device(device: torch.device) -> Device | None:
    """None: a CPU needs no seam. Raises ConfigError for a GPU that cannot be used."""
    return None if device.type == "cpu" else CudaDevice(device)


def _absent(count: int) -> str:
    if count:
        return f"torch sees {count} GPUs here; cuda:0 is the first"
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"the installed torch ({torch.__version__}) is built for CPUs only; install one for CUDA or ROCm "
            "(pytorch.org says how)"
        )
    return "torch sees no GPU here; see whether `nvidia-smi` or `rocm-smi` lists one"


def _unusable(device: torch.device, reason: str) -> str:
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    if "no kernel image" in reason:
        advice = f"torch {torch.__version__} was built for other GPUs; install a build of torch for this one"
    elif "driver" in reason.lower():
        advice = "install or update the GPU's driver"
    elif "out of memory" in reason:
        advice = "free its memory, or choose another with --device cuda:N"
    else:
        advice = (
            "see whether the GPU works for other programs, such as `python -c 'import torch; torch.ones(1).cuda()'`"
        )
    return f"{device} cannot be used ({first}): {advice}; --device cpu runs without it"
