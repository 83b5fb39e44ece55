"""Every test of compiled kernels runs once for each instruction set this CPU has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo.kernels import cpu

try:
    from octavo.kernels import _native

    ISAS = _native.available_isas()
except ImportError:
    ISAS = []

NO_KERNELS = [pytest.param("none", marks=pytest.mark.skip("no compiled kernels"))]
FOR_QUANTIZED = ("avx512vnni", "avxvnni")  # in all else the same as another one


def use(isa: str) -> Iterator[str]:
    assert _native.use_isa(isa)
    yield isa
    _native.use_isa(ISAS[0])


@pytest.fixture(params=[isa for isa in ISAS if isa not in FOR_QUANTIZED] or NO_KERNELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from use(request.param)


@pytest.fixture(params=ISAS or NO_KERNELS)
def quantized_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from use(request.param)


@pytest.fixture
def uncached() -> Iterator[None]:
    """Lets a test ask anew whether compiled kernels are available."""
    cpu.available.cache_clear()
    yield
    cpu.available.cache_clear()
