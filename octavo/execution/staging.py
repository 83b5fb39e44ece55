"""Arrays of the host travel to the device in one copy that nobody waits for.

The copy reads pinned memory while the host prepares the next one, so there are two such buffers, each guarded by an
event: the host comes back to one only after the device has read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octavo.execution.device import Device

_ALIGNMENT = 16  # bytes; kernels are compiled for pointers that are multiples of it


class _Buffer:
    """Pinned memory, and when it may be written."""

    def __init__(self, device: Device, size: int) -> None:
        self.pinned = device.pinned((size,), torch.uint8)
        self.free = device.event()


class Staging:
    """`size`: bytes to begin with; more are found when they are needed."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self._buffers = [_Buffer(device, size) for _ in range(2)]
        self._landing = torch.empty(size, dtype=torch.uint8, device=device.torch)

    def put(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The arrays on the device, for whatever is enqueued before the next call."""
        places = [0]
        for array in arrays:
            places.append(-(-(places[-1] + array.nbytes) // _ALIGNMENT) * _ALIGNMENT)
        buffer = self._next(places[-1])
        bytes_ = buffer.pinned.numpy()
        for array, place in zip(arrays, places[:-1], strict=True):
            bytes_[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._landing[: places[-1]].copy_(buffer.pinned[: places[-1]], non_blocking=True)
        buffer.free.record()
        return [
            self._landing[place : place + array.nbytes].view(_DTYPES[array.dtype.type]).view(array.shape)
            for array, place in zip(arrays, places[:-1], strict=True)
        ]

    def _next(self, size: int) -> _Buffer:
        self._buffers.reverse()
        buffer = self._buffers[0]
        buffer.free.synchronize()
        if size > self._landing.size(0):  # first, as the device may have no memory
            size = max(size, 2 * self._landing.size(0))
            self._landing = torch.empty(size, dtype=torch.uint8, device=self._device.torch)
        if size > buffer.pinned.size(0):
            buffer.pinned = self._device.pinned((self._landing.size(0),), torch.uint8)
        return buffer


_DTYPES: dict[type, torch.dtype] = {np.int32: torch.int32, np.int64: torch.int64, np.float32: torch.float32}
