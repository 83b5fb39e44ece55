"""How verbs show things: tables, sizes, ages, colour, progress. Plain text wherever it does not go to a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

_SIZES = ("B", "kB", "MB", "GB", "TB")
_LABEL = 20  # characters: the rest of a line belongs to the numbers
_AGES = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO | None = None) -> str:
    """Columns as wide as their widest entry. A narrow terminal shows the first ones: names stay whole, to be copied."""
    out = stream or sys.stdout
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    if out.isatty():
        room = shutil.get_terminal_size().columns
        while len(widths) > 2 and sum(widths) + 2 * (len(widths) - 1) > room:
            widths.pop()
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in (heads, *rows)
    ]
    return "\n".join([dim(lines[0], out), *lines[1:]])


def size(count: float) -> str:
    """Bytes, in units of a thousand: 98 MB, 1.2 GB."""
    place = 0
    while count >= 999.5 and place < len(_SIZES) - 1:
        count, place = count / 1000, place + 1
    return f"{count:.1f} {_SIZES[place]}" if place and count < 9.95 else f"{count:.0f} {_SIZES[place]}"


def amount(count: float) -> str:
    """A number of parameters or tokens: 135M, 1.2B."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * scale:
            return f"{count / scale:.1f}{letter}" if count < 9.95 * scale else f"{count / scale:.0f}{letter}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Roughly: 3 minutes, 2 days."""
    for unit, name in _AGES:
        if seconds >= unit:
            count = int(seconds / unit)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return "0 seconds"


def ago(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def colourful(stream: TextIO) -> bool:
    """NO_COLOR (any text) turns colour off, as terminals that know none do."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    return f"\x1b[2m{text}\x1b[0m" if colourful(stream) else text


class Bar:
    """Bytes, speed and the time left, on a terminal's standard error; elsewhere nothing."""

    def __init__(self, label: str) -> None:
        from tqdm.std import tqdm

        self._bar = tqdm(
            total=0,
            unit="B",
            unit_scale=True,
            desc=label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…",
            bar_format="{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {rate_fmt} {remaining} left",
            disable=None,
            dynamic_ncols=True,
            miniters=1,
            leave=False,
            ascii=None if (sys.stderr.encoding or "").lower().startswith("utf") else True,
        )

    def report(self, progress: tuple[int, int]) -> None:
        """Done and total, from any thread."""
        done, total = progress
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.close()
