"""The energy that this machine has used, where it says so: RAPL for processors, NVML for NVIDIA GPUs.

What is read counts everything that runs on them, not only octavo. Neither is a dependency: without the files, the right
to read them or the library there is simply no figure.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_POWERCAP = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"

#: Joules since some moment in the past; the difference of two readings is what was used between them.
Meter = Callable[[], float]


def find_meter(gpus: Iterable[str] = (), *, powercap: Path = _POWERCAP, nvml: str = _NVML) -> Meter | None:
    """What reads the processors and these GPUs (their UUIDs) together; None where nothing can be read."""
    meters = [*_processors(powercap), *_gpus(gpus, nvml)]
    return (lambda: sum(read() for read in meters)) if meters else None


def _processors(folder: Path) -> list[Meter]:
    """Packages and their memory; not `psys`, which holds both once more, nor a package's parts."""
    found: list[Meter] = []
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's are named so too
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                found.append(_Counter(zone))
        except (OSError, ValueError):  # only root may read it, say
            continue
    return found


class _Counter:
    """A counter of microjoules that begins again at 0 after its largest value."""

    def __init__(self, zone: Path) -> None:
        """Raises OSError or ValueError where it cannot be read."""
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._file = os.open(zone / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        self._last = self._read()
        self._total = 0

    def _read(self) -> int:
        return int(os.pread(self._file, 64, 0))

    def __call__(self) -> float:
        now = self._read()
        self._total += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._total / 1e6


def _gpus(uuids: Iterable[str], name: str) -> list[Meter]:
    wanted = list(uuids)
    if not wanted:
        return []
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    meters = [_gpu(library, uuid) for uuid in wanted]
    return [meter for meter in meters if meter is not None]


def _gpu(library: Any, uuid: str) -> Meter | None:
    device = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) != 0:
        return None
    millijoules = ctypes.c_ulonglong()

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))  # a failure: as it was
        return millijoules.value / 1e3

    works = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)) == 0
    return read if works else None
