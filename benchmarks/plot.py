"""Bars as SVG, written by hand so that no plotting library is needed. Knows nothing of what the bars stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, MARGIN, BAR, GAP, LABEL = 760, 16, 16, 22, 130
LONGEST = WIDTH - 2 * MARGIN - LABEL - 90
COLOURS = ("#2f6f4f", "#c58b2a", "#dbb36a", "#5b7fa8", "#8d6a9f")


@dataclass(frozen=True)
class Bars:
    """One group with a scale of its own: (name, value, the value as text) each."""

    title: str
    bars: Sequence[tuple[str, float, str]]


def svg(title: str, groups: Sequence[Bars]) -> str:
    """All groups below each other; a name has the same colour in all of them."""
    names = list(dict.fromkeys(name for group in groups for name, _, _ in group.bars))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    y = MARGIN + BAR
    parts = [_text(MARGIN, y, title, "bold")]
    for group in groups:
        y += GAP + BAR
        parts.append(_text(MARGIN, y, group.title, "bold"))
        scale = LONGEST / max([value for _, value, _ in group.bars if value > 0], default=1.0)
        for name, value, shown in group.bars:
            y += BAR + 4
            length = max(1.0, value * scale)
            x = MARGIN + LABEL
            parts.append(_text(MARGIN, y, name))
            parts.append(f'<rect x="{x}" y="{y - 12}" width="{length:.1f}" height="{BAR - 2}" fill="{colours[name]}"/>')
            parts.append(_text(x + length + 6, y, shown))
    height = y + MARGIN + BAR
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="13">', '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""]
    )


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'
