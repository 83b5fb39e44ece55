"""Rows, their targets, and the table of medians and of octavo's ratios to others. Knows nothing of measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

OCTAVO = "octavo"


@dataclass(frozen=True)
class Target:
    """octavo is to be `factor` times as good as the best of `peers`, or at most `limit`."""

    peers: tuple[str, ...] = ()
    factor: float = 0.0
    limit: float = 0.0

    def __str__(self) -> str:
        if self.limit:
            return f"≤ {self.limit:g}"
        return f"≥ {self.factor:g}× {self.peers[0] if len(self.peers) == 1 else 'the best'}"


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    targets: tuple[Target, ...] = ()
    less_is_better: bool = False
    digits: int = 0


@dataclass
class Figures:
    """Every figure: row, contestant, round; and who failed at what."""

    all: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, row: str, name: str, number: int, figure: float) -> None:
        self.all.setdefault(row, {}).setdefault(name, {})[number] = figure

    def fail(self, name: str, part: str, why: object) -> None:
        self.failures[name, part] = str(why)

    def median(self, row: Row, name: str) -> float | None:
        figures = self.all.get(row.key, {}).get(name)
        return median(figures.values()) if figures else None

    def cell(self, row: Row, name: str) -> str:
        """The median as text."""
        figure = self.median(row, name)
        if figure is None:
            return "failed" if any(name == failed for failed, _ in self.failures) else "–"
        return f"{figure:,.{row.digits}f}"

    def ratios(self, row: Row, peer: str) -> list[float]:
        """How many times better octavo was, in each round that both came through."""
        ours, theirs = (self.all.get(row.key, {}).get(name, {}) for name in (OCTAVO, peer))
        pairs = [(ours[number], theirs[number]) for number in sorted(ours.keys() & theirs.keys())]
        return [them / us if row.less_is_better else us / them for us, them in pairs]

    def reached(self, row: Row, target: Target) -> tuple[float, bool] | None:
        """The value that the target speaks of and whether it holds; None where something was not measured."""
        ours = self.median(row, OCTAVO)
        if target.limit:
            return None if ours is None else (ours, ours <= target.limit)
        ratios = [median(ratios) for peer in target.peers if (ratios := self.ratios(row, peer))]
        return (min(ratios), min(ratios) >= target.factor) if len(ratios) == len(target.peers) else None


def table(figures: Figures, rows: Sequence[Row], names: Sequence[str]) -> str:
    """Markdown: medians, octavo's ratios with the lowest and highest round, and the targets if there are any."""
    peers = [name for name in names if name != OCTAVO] if OCTAVO in names else []
    targets = ["target", "reached"] if any(row.targets for row in rows) else []
    head = ["", *names, *(f"octavo / {peer}" for peer in peers), *targets]
    lines = [head, ["---", *("--:" for _ in head[1:])]]
    for row in rows:
        if row.key not in figures.all:
            continue
        ratios = [figures.ratios(row, peer) for peer in peers]
        spreads = [f"{median(r):.2f} ({min(r):.2f}–{max(r):.2f})" if r else "–" for r in ratios]
        line = [row.title, *(figures.cell(row, name) for name in names), *spreads]
        if targets:
            states = [figures.reached(row, target) for target in row.targets]
            reached = ["–" if state is None else f"{state[0]:.2f} {'yes' if state[1] else 'no'}" for state in states]
            line += ["; ".join(map(str, row.targets)), "; ".join(reached)]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
