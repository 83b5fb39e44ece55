"""Vectors as they travel: float32, little-endian, one after another. No numpy: a server's front process has none."""

from __future__ import annotations

import sys
from array import array
from operator import mul


def floats(packed: bytes) -> list[float]:
    values = array("f", packed)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def cosine(one: bytes, other: bytes) -> float:
    """From -1 to 1; 0 where one of them is zero."""
    a, b = floats(one), floats(other)
    lengths = sum(map(mul, a, a)) * sum(map(mul, b, b))
    return max(-1.0, min(1.0, sum(map(mul, a, b)) / lengths**0.5)) if lengths else 0.0
