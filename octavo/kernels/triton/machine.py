"""The GPU that a launch is for, as far as tiles and splits depend on it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


class Machine(NamedTuple):
    """`generation`: 8 Ampere, 9 Hopper, 10 and 12 Blackwell; of AMD's the number that begins their name (gfx942: 9)."""

    amd: bool
    generation: int
    multiprocessors: int
    shared_memory: int  # bytes that a program may have


_INTERPRETER = Machine(amd=False, generation=9, multiprocessors=4, shared_memory=2**30)  # few: each program takes long


@cache
def of(device: torch.device) -> Machine:
    if device.type != "cuda":
        return _INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Machine(
        amd=torch.version.hip is not None,
        generation=properties.major,
        multiprocessors=properties.multi_processor_count,
        shared_memory=65536 if torch.version.hip is not None else properties.shared_memory_per_block_optin,
    )
