"""A model's weights while it sleeps: in the host's memory, and nowhere on the device.

What shares memory there shares it again afterwards, but elsewhere: whoever holds an address of a weight, as a captured
graph does, has to be made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, UntypedStorage, nn

from octavo.execution.device import Device

_CHUNK = 2**28  # bytes; torch makes pinned memory of powers of two, whatever is asked for


class Stowed:
    """Made: the weights have moved out."""

    def __init__(self, model: nn.Module, device: Device) -> None:
        self._device = device
        self._storages = [(each, each.nbytes()) for each in _storages(model)]
        left = sum(size for _, size in self._storages)
        self._chunks: list[Tensor] = []
        while left > 0:
            self._chunks.append(device.pinned((min(left, _CHUNK),), torch.uint8))
            left -= _CHUNK
        for there, here in self._pieces():
            here.copy_(there, non_blocking=True)
        self.leave()

    def leave(self) -> None:
        """Off the device, again if need be."""
        self._device.synchronize()
        for storage, _ in self._storages:
            storage.resize_(0)
        self._device.empty_cache()

    def restore(self) -> None:
        """Back to the device; what is here stays. Raises torch.OutOfMemoryError, and then nothing is there."""
        try:
            for storage, size in self._storages:
                storage.resize_(size)
        except torch.OutOfMemoryError:
            self.leave()
            raise
        for there, here in self._pieces():
            there.copy_(here, non_blocking=True)
        self._device.synchronize()

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes on the device, and the same bytes here: one storage after the other fills one chunk after the other."""
        offset = 0
        for storage, size in self._storages:
            there = torch.empty(0, dtype=torch.uint8, device=self._device.torch).set_(storage)
            begin = 0
            while begin < size:
                number, place = divmod(offset, _CHUNK)
                count = min(size - begin, _CHUNK - place)
                yield there[begin : begin + count], self._chunks[number][place : place + count]
                begin += count
                offset += count


def weight_bytes(model: nn.Module) -> int:
    """What its weights take on the device."""
    return sum(storage.nbytes() for storage in _storages(model))


def _storages(model: nn.Module) -> Iterator[UntypedStorage]:
    """Each once, however many tensors lie in it."""
    found = (tensor.untyped_storage() for tensor in chain(model.parameters(), model.buffers()))
    return iter({storage.data_ptr(): storage for storage in found}.values())
