"""What the GPU can do at most, through torch: bytes copied, and large products in 16 and 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .figures import Figure
from .stopwatch import Stopwatch

PART = "ceilings"
Multiply = Callable[[Tensor, Tensor], object]
_FP8 = torch.float8_e4m3fn


def copy_bandwidth(watch: Stopwatch, bytes_: int) -> float:
    """Bytes read and written a second."""
    source, target = (torch.empty(bytes_, dtype=torch.uint8, device=watch.device) for _ in range(2))
    return 2 * bytes_ / watch.seconds([lambda: target.copy_(source)] * 4)


def product_rate(
    watch: Stopwatch, size: int, multiply: Callable[[Tensor, Tensor], object], dtype: torch.dtype
) -> float:
    """Operations a second of square matrices, the second of which lies column by column.

    Random numbers: a GPU that multiplies zeros draws less power, and so runs quicker than it ever will.
    """
    pairs = []
    for _ in range(2):
        x, y = (torch.randn(size, size, device=watch.device) for _ in range(2))
        if dtype is torch.int8:
            x, y = x * 30, y * 30
        pairs.append((x.to(dtype), y.to(dtype).t()))
    return 2 * size**3 / watch.seconds([lambda pair=pair: multiply(*pair) for pair in pairs * 2])  # type: ignore[misc]


def scaled(x: Tensor, y: Tensor) -> Tensor:
    one = torch.ones((), device=x.device)
    return torch._scaled_mm(x, y, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def measure(watch: Stopwatch, size: int, bytes_: int) -> Iterator[Figure]:
    """What the hardware or this build of torch cannot do is left out."""
    bandwidth = copy_bandwidth(watch, bytes_) / 1e9
    yield Figure(part=PART, row="copy", contestant="torch", value=bandwidth, unit="GB/s")
    products: dict[str, tuple[Multiply, torch.dtype]] = {
        "bf16": (torch.mm, torch.bfloat16),
        "fp8": (scaled, _FP8),
        "int8": (torch._int_mm, torch.int8),
    }
    for name, (multiply, dtype) in products.items():
        try:
            rate = product_rate(watch, size, multiply, dtype) / 1e12
        except (RuntimeError, NotImplementedError):
            continue
        yield Figure(part=PART, row=f"{name} product of {size}", contestant="torch", value=rate, unit="TFLOP/s")
