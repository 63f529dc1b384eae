"""Small charts as inline SVG, without scripts, with the page's light or dark colours.

Colours are the page's variables ``--c0`` ... ``--c6``. Lines also differ in dash and marker, for readers who cannot
tell the colours apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

N_COLOURS = 7
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MARKERS = (  # disk, square, triangle, diamond
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
    "M-3 -3h6v6h-6z",
    "M0 -4l4 7h-8z",
    "M0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
)
LEFT, TOP, RIGHT, BOTTOM = 40, 10, 10, 34


@dataclass(frozen=True)
class Series:
    """One line: a value for each step (``None`` if missing), and the range of its seeds if there are several."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def line_chart(series: Sequence[Series], label: str, width: int = 380, height: int = 220) -> str:
    """mIoU in % (0..100) over steps."""
    n = max((len(s.values) for s in series), default=0)

    def x(step: int) -> float:
        return LEFT + (width - LEFT - RIGHT) * (step / (n - 1) if n > 1 else 0.5)

    def y(value: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (1 - value / 100)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    for tick in range(0, 101, 20):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    every = max(1, -(-n // 12))
    for step in range(0, n, every):
        parts.append(f'<text x="{x(step):.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">step</text>')
    middle = TOP + (height - TOP - BOTTOM) / 2
    parts.append(f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">mIoU (%)</text>')
    for k, s in enumerate(series):
        parts += _line(s, k, x, y)
    return "".join([*parts, "</svg>", legend([s.name for s in series])])


def _line(s: Series, k: int, x: Any, y: Any) -> list[str]:
    colour, dash = f"var(--c{k % N_COLOURS})", DASHES[k % len(DASHES)]
    points = [(x(t), y(v)) for t, v in enumerate(s.values) if v is not None]
    upper = [(x(t), y(v)) for t, v in enumerate(s.high) if v is not None]
    lower = [(x(t), y(v)) for t, v in enumerate(s.low) if v is not None]
    parts = []
    if upper:
        parts.append(f'<polygon fill="{colour}" opacity="0.18" points="{_points(upper + lower[::-1])}"/>')
    name = escape(s.name)
    stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    parts.append(f'<polyline {stroke} points="{_points(points)}"/>')
    shown = [v for v in s.values if v is not None]
    for (px, py), v in zip(points, shown, strict=True):
        parts.append(f"{_marker(k, px, py, colour)}<title>{name}: {v:.1f}</title></path>")
    return parts


def _marker(k: int, px: float, py: float, colour: str) -> str:
    shape = MARKERS[k % len(MARKERS)]
    return f'<path transform="translate({px:.1f} {py:.1f})" fill="{colour}" d="{shape}">'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)


def legend(names: Sequence[str]) -> str:
    """The legend of a chart: each name with its line and marker."""
    items = []
    for k, name in enumerate(names):
        colour = f"var(--c{k % N_COLOURS})"
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{DASHES[k % len(DASHES)]}"'
        sample = f'<svg viewBox="0 0 30 12" width="30" height="12"><line x1="0" x2="30" y1="6" y2="6" {stroke}/>'
        items.append(f"<li>{sample}{_marker(k, 15, 6, colour)}</path></svg>{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def bar_chart(bars: Sequence[tuple[str, float | None, int | None]], label: str, width: int = 380) -> str:
    """IoU in % by class, as horizontal bars: (class, value, step at which it is learned, if it is one)."""
    row, left, right = 17, 112, 40
    height = row * len(bars) + 4
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    for k, (name, value, step) in enumerate(bars):
        top = 2 + row * k
        length = (width - left - right) * (value or 0) / 100
        bar = f'x="{left}" y="{top + 2}" height="{row - 5}"'
        short = name if len(name) <= 16 else name[:15] + "…"
        shown = "-" if value is None else f"{value:.1f}"
        learned = "" if step is None else f", learned at step {step}"
        parts.append(
            f"<g><title>{escape(name)}{learned}: {shown}</title>"
            f'<text x="{left - 6}" y="{top + 12}" text-anchor="end">{escape(short)}</text>'
            f'<rect class="rail" {bar} width="{width - left - right}"/>'
            f'<rect fill="var(--c{1 if step else 0})" {bar} width="{length:.1f}"/>'
            f'<text x="{left + length + 4:.1f}" y="{top + 12}">{shown}</text></g>'
        )
    return "".join([*parts, "</svg>"])
