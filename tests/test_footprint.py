"""What a process holds: its own and its children's, as the system counts them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from octavo.footprint import footprint

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")


def test_a_process_and_its_children() -> None:
    program = """
import subprocess, sys
held = bytearray(b"x" * 50_000_000)
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(b'x' * 50_000_000); print(1, flush=True); input()"])
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    found = footprint(process.pid)
    assert found is not None
    assert 100_000_000 < found.resident_bytes < 400_000_000
    assert 0.0 < found.cpu_seconds < 60.0
    process.communicate("\n\n")
    assert footprint(process.pid) is None


def test_this_process() -> None:
    found = footprint(os.getpid())
    assert found is not None
    times = os.times()
    assert found.cpu_seconds == pytest.approx(times.user + times.system, rel=0.05, abs=0.5)
