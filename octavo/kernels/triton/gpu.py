"""What launchers must know of a GPU to choose their tiles."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

KiB = 1024


class Gpu(NamedTuple):
    arch: str  # "sm_90", "gfx942"
    multiprocessors: int
    shared_memory: int  # bytes a program may have
    warp_size: int

    @property
    def sums_share_registers(self) -> bool:
        """Whether NVIDIA's products keep sums where operands lie, as all do without those of a whole warp group."""
        return self.arch.startswith(("sm_7", "sm_8", "sm_12"))


#: Stands for the GPU where tensors lie on none: in the interpreter, and where kernels are compiled for another machine.
OTHERWISE = Gpu("sm_90", 132, 227 * KiB, 32)


def gpu(device: torch.device) -> Gpu:
    return _properties(device) if device.type == "cuda" else OTHERWISE


@cache
def _properties(device: torch.device) -> Gpu:
    found = torch.cuda.get_device_properties(device)
    arch = found.gcnArchName.split(":")[0] if torch.version.hip is not None else f"sm_{found.major}{found.minor}"
    shared_memory = getattr(
        found, "shared_memory_per_block_optin", found.shared_memory_per_block
    )  # NVIDIA's on request
    return Gpu(arch, found.multi_processor_count, shared_memory, found.warp_size)
