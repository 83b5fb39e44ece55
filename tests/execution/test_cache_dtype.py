"""Which types a cache may have on which machine."""

from __future__ import annotations

import pytest
import torch
from fake_device import FakeDevice

from octavo.errors import ConfigError
from octavo.execution import worker
from octavo.execution.worker import choose_cache_dtype


def gpu(monkeypatch: pytest.MonkeyPatch, arch: str) -> FakeDevice:
    monkeypatch.setattr(worker, "_arch", lambda device: arch)
    device = FakeDevice()
    device.fp8 = arch != "sm_80"
    return device


@pytest.mark.parametrize(
    ("arch", "asked", "expected"),
    [
        ("sm_90", "auto", torch.bfloat16),
        ("sm_90", "fp8", torch.float8_e4m3fn),
        ("sm_90", "fp8_e4m3", torch.float8_e4m3fn),
        ("sm_90", "fp8_e5m2", torch.float8_e5m2),
        ("sm_80", "fp8_e5m2", torch.float8_e5m2),
        ("gfx942", "fp8", torch.float8_e4m3fnuz),
        ("gfx942", "fp8_e5m2", torch.float8_e5m2fnuz),
        ("gfx950", "fp8", torch.float8_e4m3fn),
    ],
)
def test_types_that_a_gpu_has(monkeypatch: pytest.MonkeyPatch, arch: str, asked: str, expected: torch.dtype) -> None:
    assert choose_cache_dtype(asked, torch.bfloat16, gpu(monkeypatch, arch)) is expected


def test_types_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="sm_80 has no such numbers; it has --kv-cache-dtype fp8_e5m2"):
        choose_cache_dtype("fp8", torch.bfloat16, gpu(monkeypatch, "sm_80"))


def test_a_cpu_has_none_of_8_bits() -> None:
    assert choose_cache_dtype("auto", torch.float32, None) is torch.float32
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_cache_dtype("fp8", torch.float32, None)
