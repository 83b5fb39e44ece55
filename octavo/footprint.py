"""What a process and its children hold and have used, read from /proc; nothing where there is no /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Footprint(NamedTuple):
    resident_bytes: int
    cpu_seconds: float


def footprint(pid: int) -> Footprint | None:
    """Of the process and those that it started; None if it is gone."""
    pages, ticks = 0, 0
    for each in _family(pid):
        try:
            # After the name in brackets, which may hold anything: field 3 and on.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            if each == pid:
                return None
            continue  # a child that has just ended
        ticks += int(fields[11]) + int(fields[12])
        pages += int(fields[21])
    return Footprint(pages * os.sysconf("SC_PAGESIZE"), ticks / os.sysconf("SC_CLK_TCK"))


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))
