"""What machine this is, what runs on it, and how quiet it is. Knows nothing of what is measured."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from processes import family

from octavo import __version__

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
QUIET_SHARE = 0.1  # of the cores busy with something else: more is worth a warning
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")


def describe(**more: str) -> dict[str, str]:
    """The machine and the versions on it, with what the caller adds."""
    cpu, flags = platform.processor() or platform.machine(), ""
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = (line.partition(":") for line in information.read_text().splitlines())
        known = {key.strip(): value.strip() for key, _, value in lines}
        cpu, flags = known.get("model name", cpu), known.get("flags", known.get("Features", ""))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": cpu,
        "cores": str(len(CORES)),
        "instructions": " ".join(sorted(set(INSTRUCTIONS) & set(flags.split()), key=INSTRUCTIONS.index)),
        "memory": f"{memory:.1f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "octavo": __version__,
        **more,
    }


class Others:
    """How busy other processes kept the cores since the last look, or since this was made: 0 … 1."""

    def __init__(self) -> None:
        self._last = self._look()

    def share(self) -> float:
        """0 where /proc does not tell."""
        before, self._last = self._last, self._look()
        return max(0, self._last[1] - before[1]) / max(1, self._last[0] - before[0])

    @staticmethod
    def _look() -> tuple[int, int]:
        """Ticks of all cores, and those spent neither idle nor on us and our descendants, dead or alive."""
        if not Path("/proc/stat").exists():
            return 0, 0
        ours = 0
        for member in family(os.getpid()):
            with suppress(FileNotFoundError, ProcessLookupError):
                ours += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:15]))
        ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4] - ours
