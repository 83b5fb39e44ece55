"""How long operations take on a device, without what Python needs to start them.

Runs take turns over different memory, so that what they read comes from memory and not from a cache. On a GPU the
turns are captured as one graph and its replays are timed by events: an engine's steps run so, too. What cannot be
captured is timed op by op, each after a write that clears the cache. Knows nothing of what it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Protocol

import torch

Run = Callable[[], object]
_MANY = 64  # turns are enough
_REPLAYS = 9
_RUNS = 20  # op by op


class Stopwatch(Protocol):
    device: torch.device

    def seconds(self, turns: Sequence[Run]) -> float:
        """Median time of one of these, which do the same on different memory."""
        ...

    def copies(self, bytes_: int) -> int:
        """How many different memories of so many bytes, read in turn, no cache holds."""
        ...

    def wait(self) -> None:
        """For all that was enqueued."""


class HostStopwatch:
    """For the machine without a GPU: everything runs a little, and figures mean nothing."""

    device = torch.device("cpu")

    def seconds(self, turns: Sequence[Run]) -> float:
        found = []
        for run in turns:
            start = perf_counter()
            run()
            found.append(perf_counter() - start)
        return median(found)

    def copies(self, bytes_: int) -> int:
        return 1 if bytes_ > 1 << 16 else 2

    def wait(self) -> None:
        pass


class CudaStopwatch:
    """NVIDIA's and AMD's alike, as torch hides the difference."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
        self._cleaner = torch.empty(3 * self._cache, dtype=torch.uint8, device=device)

    def copies(self, bytes_: int) -> int:
        return min(max(-(-3 * self._cache // max(bytes_, 1)), 2), _MANY)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self, turns: Sequence[Run]) -> float:
        for run in turns:  # compiles, and takes memory
            run()
        self.wait()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for run in turns:
                    run()
        except RuntimeError:  # torch has no narrower one
            self.wait()
            return self._op_by_op(turns)
        graph.replay()
        return median(self._between(graph.replay) for _ in range(_REPLAYS)) / len(turns)

    def _op_by_op(self, turns: Sequence[Run]) -> float:
        found = []
        for number in range(_RUNS):
            self._cleaner.zero_()
            found.append(self._between(turns[number % len(turns)]))
        return median(found)

    def _between(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        self.wait()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3


def stopwatch(device: torch.device) -> Stopwatch:
    return HostStopwatch() if device.type == "cpu" else CudaStopwatch(device)
