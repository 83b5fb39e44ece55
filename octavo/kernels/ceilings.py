"""What this machine's processors can do at most, measured in moments: the figures that speeds are held against."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

_READ_BYTES = 2**29
_ROWS, _INNER, _COLUMNS = 1024, 2048, 2048


def best_seconds(operation: Callable[[], object], patience_s: float) -> float:
    """The quickest of as many runs as fit into `patience_s`, at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < patience_s:
        start = perf_counter()
        operation()
        times.append(perf_counter() - start)
    return min(times[1:])


def read_bandwidth(patience_s: float) -> float:
    """Bytes a second that all threads together read from memory."""
    memory = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    return _READ_BYTES / best_seconds(memory.sum, patience_s)


def product_rate(dtype: torch.dtype, patience_s: float) -> float:
    """Multiplications and additions a second in a product of matrices."""
    if dtype is torch.int8:
        left, right = (torch.randint(-128, 128, x, dtype=dtype) for x in ((_ROWS, _INNER), (_INNER, _COLUMNS)))
        multiply: Callable[[], object] = lambda: torch._int_mm(left, right)  # noqa: E731
    else:
        left, right = torch.randn(_ROWS, _INNER).to(dtype), torch.randn(_INNER, _COLUMNS).to(dtype)
        multiply = lambda: left @ right  # noqa: E731
    return 2 * _ROWS * _INNER * _COLUMNS / best_seconds(multiply, patience_s)
