"""Which GPU this is and what runs on it: the head of every table."""

from __future__ import annotations

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from octavo import __version__

_PACKAGES = ("torch", "triton", "flashinfer-python", "flash-attn", "vllm", "transformers")


def describe(device: torch.device) -> dict[str, str]:
    """Date, GPU, driver and versions; of packages only those that are installed."""
    found = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "GPU": "none: a CPU", "driver": _driver()}
    if device.type != "cpu":
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 2**30
        found["GPU"] = f"{properties.name}, {memory:.1f} GiB, {properties.multi_processor_count} multiprocessors"
    found["CUDA or ROCm"] = torch.version.hip or torch.version.cuda or "none"
    found["octavo"] = f"{__version__}, commit {_commit()}"
    found["Python"] = platform.python_version()
    return found | {name: each for name in _PACKAGES if (each := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    module = Path("/sys/module/amdgpu/version")
    if module.exists():
        return f"amdgpu {module.read_text().strip()}"
    asked = "driver_version,power.limit,clocks.max.sm"
    return _said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0") or "unknown"


def _commit() -> str:
    return _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD") or "unknown"


def _said(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None
