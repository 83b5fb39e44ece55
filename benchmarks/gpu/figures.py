"""A figure, as the parts yield it and as it is printed, and what is aimed at. Knows nothing of measuring.

Rows are what is measured, contestants who did it. The best that the roofline allows stands beside each figure where
there is a formula for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

OCTAVO, EAGER = "octavo", "octavo, no graphs"

Unit = Literal["µs", "ms", "tok/s", "TFLOP/s", "GB/s", "of what is allowed"]
_TIMES = ("µs", "ms")


@dataclass(frozen=True, kw_only=True)
class Figure:
    part: str
    row: str
    contestant: str
    value: float
    unit: Unit
    roof: float | None = None  # in the same unit

    @property
    def fraction(self) -> float | None:
        """Of the roof; 1 is all that can be had."""
        if self.roof is None or not self.value:
            return None
        return self.roof / self.value if self.unit in _TIMES else self.value / self.roof

    def __str__(self) -> str:
        shown = f"{self.value:,.3g}" if self.value < 1000 else f"{self.value:,.0f}"
        return shown if self.unit == "of what is allowed" else f"{shown} {self.unit}"

    def better_than(self, other: Figure) -> float:
        """How many times as good."""
        return other.value / self.value if self.unit in _TIMES else self.value / other.value


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended: "done", "not here" (something that it needs is not installed or not there), "failed"."""

    part: str
    state: Literal["done", "not here", "failed", "out of time"]
    why: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Of the rows that are named: octavo reaches this share of the roof, or of the best of the peers."""

    title: str
    part: str
    rows: tuple[str, ...]
    share: float
    peers: tuple[str, ...] = ()
    best_public: str = ""

    def reached(self, figures: Sequence[Figure]) -> float | None:
        """The lowest share of the rows; None where one of them is missing."""
        shares = [self._share(row, figures) for row in self.rows]
        known = [share for share in shares if share is not None]
        return min(known) if known and len(known) == len(shares) else None

    def _share(self, row: str, figures: Sequence[Figure]) -> float | None:
        here = {each.contestant: each for each in figures if (each.part, each.row) == (self.part, row)}
        ours = here.get(OCTAVO)
        if ours is None or not self.peers:
            return None if ours is None else ours.fraction
        peers = [here[name] for name in self.peers if name in here]
        return min((ours.better_than(each) for each in peers), default=None)

    def aim(self) -> str:
        return f"≥ {self.share:.0%}" + (f" of {' and '.join(self.peers)}" if self.peers else " of the roof")


def target_table(targets: Iterable[Target], figures: Sequence[Figure]) -> Iterator[str]:
    yield "| target | aim | reached | | best public |"
    yield "|---|--:|--:|---|---|"
    for target in targets:
        share = target.reached(figures)
        state = "not measured" if share is None else "met" if share >= target.share else "missed"
        reached = "–" if share is None else f"{share:.0%}"
        yield f"| {target.title} | {target.aim()} | {reached} | {state} | {target.best_public} |"


def part_table(part: str, figures: Sequence[Figure]) -> Iterator[str]:
    """Rows down, contestants across; behind each figure how much of the roof it is."""
    here = [each for each in figures if each.part == part]
    contestants = list(dict.fromkeys(each.contestant for each in here))
    roofs = any(each.roof is not None for each in here)
    head = ["", *(["roof"] if roofs else []), *contestants]
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|--:" * (len(head) - 1) + "|"
    for row in dict.fromkeys(each.row for each in here):
        cells = {each.contestant: each for each in here if each.row == row}
        roof = next((each for each in cells.values() if each.roof is not None), None)
        shown = [] if not roofs else ["–" if roof is None else str(_at_roof(roof))]
        shown += [_cell(cells.get(name)) for name in contestants]
        yield "| " + " | ".join([row, *shown]) + " |"


def _at_roof(figure: Figure) -> Figure:
    assert figure.roof is not None
    return Figure(part="", row="", contestant="", value=figure.roof, unit=figure.unit)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return str(figure) if figure.fraction is None else f"{figure} ({figure.fraction:.0%})"
