"""What a download says while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Bytes of everything that is fetched; `total` is 0 until it is known."""

    done: int
    total: int


#: Called from any thread, a few times a second or more. An exception that it raises ends the download.
Report = Callable[[Progress], None]
