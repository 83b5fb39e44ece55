"""Records a model's operations into a native `Program`: the step as one call.

A model runs once, as it always does, on tensors of the largest step. They are of a type that `ops` hands to a
`Recorder`, which writes the calls down instead of making them. Outputs live in an arena that stays with the program;
memory is shared between tensors that are never alive together, exactly as in the run that was recorded. Rows are
independent in every operation, so a program recorded for many tokens is right for fewer.
"""

from __future__ import annotations

import math
import mmap
import platform
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.kernels import _native
from octavo.kernels.cpu import Compiled, most_rows

_ALIGNMENT = 64
#: MAP_NORESERVE, which Python has no name for yet.
_NO_RESERVE = 0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0
_ARENA = 2**34  # bytes of address space; only what a step writes becomes memory

#: Torch functions that look at a tensor or take a view of it. Any other computes, and a program could not replay it.
_VIEWS: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.view,
        Tensor.split_with_sizes,
        Tensor.size,
        Tensor.stride,
        Tensor.data_ptr,
        Tensor.is_contiguous,
        Tensor.shape.__get__,  # type: ignore[attr-defined]
        Tensor.dtype.__get__,  # type: ignore[attr-defined]
    }
)


class NotRecordable(Exception):
    """Why steps cannot be a program."""


def _address_space(size: int) -> mmap.mmap:
    """More than the machine may have memory; from a page's beginning, where allocators begin 16 bytes later."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except (OSError, MemoryError, OverflowError) as error:  # a limit on address space, or no overcommitting
        raise NotRecordable(f"no address space of {size} bytes ({error})") from None


class RecordedTensor(Tensor):
    """A tensor whose operations are written down by `kernels`, set in a subclass for each recording."""

    kernels: Recorder

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _VIEWS:
            raise NotRecordable(f"the model calls {getattr(func, '__name__', str(func))} outside the kernels")
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


class Recorder(Compiled):
    """Writes calls into `program`. `most_tokens`: steps larger than this are better run otherwise."""

    def __init__(self) -> None:
        self.program = _native.Program()
        self.most_tokens = 2**31
        self._tensor: type[RecordedTensor] = type("RecordedTensor", (RecordedTensor,), {"kernels": self})
        self._arena = np.frombuffer(_address_space(_ARENA), dtype=np.uint8)
        self._free = [(0, _ARENA)]  # (begin, end), in order
        super().__init__(self.program, self.empty)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the arena, whose memory is used again once nothing refers to it."""
        size = -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        place = next(number for number, (begin, end) in enumerate(self._free) if end - begin >= size)
        begin, end = self._free[place]
        self._free[place] = (begin + size, end)
        memory = self._arena[begin : begin + size]
        weakref.finalize(memory, self._release, begin, begin + size).atexit = False
        whole = torch.from_numpy(memory)[: math.prod(shape) * dtype.itemsize]
        return whole.view(dtype).view(shape).as_subclass(self._tensor)

    def _release(self, begin: int, end: int) -> None:
        spans = sorted([*self._free, (begin, end)])
        self._free = []
        for span in spans:
            if self._free and self._free[-1][1] == span[0]:
                self._free[-1] = (self._free[-1][0], span[1])
            else:
                self._free.append(span)

    def _most_rows(self, dtype: torch.dtype) -> int:
        self.most_tokens = min(self.most_tokens, most_rows(dtype))
        return 2**31  # recorded whatever the size
