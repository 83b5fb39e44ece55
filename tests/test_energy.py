"""What a machine says of its energy: which counters are read, how they wrap, and that none is no error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from octavo.energy import find_meter


def zone(folder: Path, number: str, name: str, microjoules: int, largest: int = 1_000_000) -> Path:
    made = folder / f"intel-rapl:{number}"
    made.mkdir()
    for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", largest)):
        (made / file).write_text(f"{content}\n")
    return made / "energy_uj"


def test_packages_and_their_memory_are_added_up(tmp_path: Path) -> None:
    first = zone(tmp_path, "0", "package-0", 500_000)
    zone(tmp_path, "0:0", "core", 400_000)  # a part of the package
    memory = zone(tmp_path, "0:1", "dram", 0)
    second = zone(tmp_path, "1", "package-1", 999_000)
    zone(tmp_path, "2", "psys", 0)  # holds all the others
    meter = find_meter(powercap=tmp_path)
    assert meter is not None
    before = meter()
    first.write_text("750000\n")
    memory.write_text("100000\n")
    second.write_text("4000\n")  # it began again after a million
    assert meter() - before == pytest.approx(0.25 + 0.1 + 0.005)


def test_a_machine_that_says_nothing_has_no_meter(tmp_path: Path) -> None:
    assert find_meter(powercap=tmp_path) is None
    assert find_meter(["GPU-x"], powercap=tmp_path / "nowhere", nvml="libnowhere.so") is None
    (zone(tmp_path, "0", "package-0", 1)).write_text("no number\n")
    assert find_meter(powercap=tmp_path) is None


NVML = r"""
#include <string.h>
static unsigned long long energy = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = &energy; return strcmp(uuid, "GPU-1") != 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) {
    *out = *(unsigned long long *)device += 2500;
    return 0;
}
"""


def test_gpus_are_read_through_their_library(tmp_path: Path) -> None:
    try:
        (tmp_path / "nvml.c").write_text(NVML)
        command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "nvml.so"), str(tmp_path / "nvml.c")]
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    meter = find_meter(["GPU-1", "GPU-unknown"], powercap=tmp_path / "none", nvml=str(tmp_path / "nvml.so"))
    assert meter is not None
    assert meter() - meter() == -2.5
