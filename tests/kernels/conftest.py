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


@pytest.fixture(params=ISAS or [pytest.param("none", marks=pytest.mark.skip("no compiled kernels"))])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert _native.use_isa(request.param)
    yield request.param
    _native.use_isa(ISAS[0])


@pytest.fixture
def uncached() -> Iterator[None]:
    """Lets a test ask anew whether compiled kernels are available."""
    cpu.available.cache_clear()
    yield
    cpu.available.cache_clear()
