"""Rows, the targets of octavo beside its peers, and the table of medians and ratios. Knows nothing of measuring."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

OCTAVO, Q4, Q8, VLLM_BF16 = "octavo", "llama.cpp Q4_1", "llama.cpp Q8_0", "vLLM bf16"


@dataclass(frozen=True)
class Target:
    """octavo is to be `factor` times as good as the best of `peers`, or at most `limit`."""

    peers: tuple[str, ...] = (Q4, Q8, VLLM_BF16)
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


BEST_TWICE = (Target(factor=2.0),)
PREFILL = (Target((VLLM_BF16,), 1.8), Target((Q8,), 3.0))
ROWS = [
    Row("decode 1", "decode, 1 stream, tok/s", (Target((Q4,), 1.5),)),
    Row("decode 8", "decode, 8 streams, tok/s", (Target(factor=2.5),)),
    Row("decode 32", "decode, 32 streams, tok/s", (Target((VLLM_BF16,), 2.0), Target((Q8,), 3.5))),
    Row("prefill 512", "prefill of 512 tokens, tok/s", PREFILL),
    Row("prefill 1000", "prefill of 1,000 tokens, tok/s", PREFILL),
    Row("http 1", "HTTP, 1 stream, tok/s", BEST_TWICE),
    Row("http 8", "HTTP, 8 streams, tok/s", BEST_TWICE),
    Row("http 32", "HTTP, 32 streams, tok/s", BEST_TWICE),
    Row("ttft 1", "HTTP, 1 stream, time to first token, ms", less_is_better=True),
    Row("ttft 8", "HTTP, 8 streams, time to first token, ms", less_is_better=True),
    Row("ttft 32", "HTTP, 32 streams, time to first token, ms", less_is_better=True),
    Row("start", "process start to first token, s", (Target(limit=2.0),), less_is_better=True, digits=2),
    Row("memory first", "memory after the first token, GB", (Target(limit=0.6),), less_is_better=True, digits=2),
    Row("memory all", "memory after all streams, GB", (Target(limit=0.6),), less_is_better=True, digits=2),
]


@dataclass
class Figures:
    """Every figure: row, contestant, round."""

    all: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, name: str, number: int, figure: float) -> None:
        self.all.setdefault(row, {}).setdefault(name, {})[number] = figure

    def median(self, row: Row, name: str) -> float | None:
        figures = self.all.get(row.key, {}).get(name)
        return median(figures.values()) if figures else None

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


def cell(figure: float | None, digits: int) -> str:
    return "–" if figure is None else f"{figure:,.{digits}f}"


def table(figures: Figures, names: list[str]) -> str:
    """Markdown: medians, octavo's ratios with the lowest and highest round, and the targets."""
    peers = [name for name in names if name != OCTAVO] if OCTAVO in names else []
    head = ["", *names, *(f"octavo / {peer}" for peer in peers), "target", "reached"]
    lines = [head, ["---", *("--:" for _ in head[1:])]]
    for row in ROWS:
        if row.key not in figures.all:
            continue
        ratios = [figures.ratios(row, peer) for peer in peers]
        spreads = [f"{median(r):.2f} ({min(r):.2f}–{max(r):.2f})" if r else "–" for r in ratios]
        states = [figures.reached(row, target) for target in row.targets]
        reached = ["–" if state is None else f"{state[0]:.2f} {'yes' if state[1] else 'no'}" for state in states]
        medians = [cell(figures.median(row, name), row.digits) for name in names]
        lines.append([row.title, *medians, *spreads, "; ".join(map(str, row.targets)), "; ".join(reached)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
