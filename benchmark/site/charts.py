"""Charts of the site alone: old against new with its Pareto line, losses, gradients, a confusion matrix. Inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from contseg.benchmark.report.svg import DASHES, MARKERS, N_COLOURS, legend

WIDTH, HEIGHT = 460, 320
LEFT, TOP, RIGHT, BOTTOM = 46, 12, 14, 40
LETTER = 7.4  # the width of a letter of a label, in the units of the drawing
LEVELS = 8  # of grey in a confusion matrix
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FAINT = 0.01  # shares below it stay white


@dataclass(frozen=True)
class Point:
    """A method in the plane of old and new mIoU (%), with standard deviations (NaN: not known).

    ``bound``: an upper bound (Joint), which is drawn and not ranked; ``kind``: only points of one are ranked together.
    """

    name: str
    old: float
    new: float
    old_std: float = float("nan")
    new_std: float = float("nan")
    bound: bool = False
    kind: int = 0


def pareto(points: Sequence[Point]) -> list[Point]:
    """The ranked points that no other ranked point beats in one number and equals in the other; by ascending old."""
    ranked = [p for p in points if not p.bound and not np.isnan(p.old + p.new)]

    def beaten(p: Point) -> bool:
        return any(q.old >= p.old and q.new >= p.new and (q.old > p.old or q.new > p.new) for q in ranked)

    return sorted((p for p in ranked if not beaten(p)), key=lambda p: (p.old, -p.new))


def scatter(points: Sequence[Point], label: str) -> str:
    """Old against new mIoU; a line joins the methods that no other one of their kind beats in both."""
    shown = [p for p in points if not np.isnan(p.old + p.new)]
    if not shown:
        return ""
    x = _Axis.over([p.old for p in shown], LEFT, WIDTH - RIGHT)
    y = _Axis.over([p.new for p in shown], HEIGHT - BOTTOM, TOP)
    parts = [_open(WIDTH, HEIGHT, label), *_grid(x, y), *_titles("old mIoU (%)", "new mIoU (%)")]
    for front in (pareto([p for p in shown if p.kind == kind]) for kind in sorted({p.kind for p in shown})):
        if len(front) < 2:
            continue
        line = " ".join(f"{x(p.old):.1f},{y(p.new):.1f}" for p in front)
        parts.append(f'<polyline class="pareto" points="{line}"><title>Pareto line</title></polyline>')
    for k, p in enumerate(shown):
        px, py, colour = x(p.old), y(p.new), f"var(--c{k % N_COLOURS})"
        for std, ends in (
            (p.old_std, (x(p.old - p.old_std), py, x(p.old + p.old_std), py)),
            (p.new_std, (px, y(p.new - p.new_std), px, y(p.new + p.new_std))),
        ):
            if std > 0:
                x1, y1, x2, y2 = ends
                parts.append(f'<line stroke="{colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        what = f"{escape(p.name)}: old {p.old:.1f}, new {p.new:.1f}" + (" (not ranked)" if p.bound else "")
        shape = MARKERS[k % len(MARKERS)]
        parts.append(
            f'<path transform="translate({px:.1f} {py:.1f})" fill="{colour}" d="{shape}"><title>{what}</title></path>'
        )
    parts += _labels([(p.name, x(p.old), y(p.new)) for p in shown])
    return "".join([*parts, "</svg>", legend([p.name for p in shown])])


def _labels(places: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names beside their points where they cover nothing; the legend has those that find no place."""
    taken = [(px - 4, py - 4, px + 4, py + 4) for _, px, py in places]
    parts = []
    for name, px, py in places:
        wide = LETTER * len(name)
        for anchor, at, base in (
            ("start", px + 9, py + 4),
            ("end", px - 9, py + 4),
            ("middle", px, py - 9),
            ("middle", px, py + 18),
        ):
            left = at - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (left, base - 11, left + wide, base + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(f'<text x="{at:.1f}" y="{base:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
                break
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def loss_chart(name: str, steps: Sequence[Sequence[float]]) -> str:
    """One term's value over a run: the recorded means of each step side by side, a line where a step begins.

    Small and large values are in units of a power of ten, which stands beside the axis.
    """
    size = max((abs(v) for values in steps for v in values if np.isfinite(v)), default=None)
    if size is None:
        return ""
    power = 0 if size == 0 or 0.1 <= size < 10_000 else int(np.floor(np.log10(size)))
    steps = [[v / 10.0**power for v in values] for values in steps]
    known = [v for values in steps for v in values if np.isfinite(v)]
    unit = f" ({_power(power)})" if power else ""
    y = _Axis.over([0.0, *known], HEIGHT - BOTTOM, TOP)
    parts = [_open(WIDTH, HEIGHT, f"loss {name} over the run"), *_ticks(y, vertical=True), *_steps(len(steps))]
    for values, (start, wide) in zip(steps, _columns(len(steps)), strict=True):
        places = [start + wide * (i + 0.5) / len(values) for i in range(len(values))]
        line = " ".join(f"{px:.1f},{y(v):.1f}" for px, v in zip(places, values, strict=True) if np.isfinite(v))
        parts.append(f'<polyline fill="none" stroke="var(--c0)" stroke-width="2" points="{line}"/>')
    return "".join([*parts, *_titles("step", f"mean over some updates{unit}"), "</svg>"])


def norm_chart(names: Sequence[str], steps: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """The gradient norm of every term over a run, on a logarithmic axis: steps side by side.

    ``steps``: by term, its norms at updates that are evenly spaced. A norm of 0 is not drawn.
    """
    known = [v for step in steps for values in step.values() for v in values if v > 0]
    if not known:
        return ""
    y = _Axis.decades(known, HEIGHT - BOTTOM, TOP)
    parts = [_open(WIDTH, HEIGHT, "gradient norm of every term over the run")]
    parts += [*_ticks(y, vertical=True, text=_power), *_steps(len(steps))]
    for step, (start, wide) in zip(steps, _columns(len(steps)), strict=True):
        for name, values in step.items():
            k = names.index(name)
            colour, dash = f"var(--c{k % N_COLOURS})", DASHES[k % len(DASHES)]
            places = [(start + wide * (i + 0.5) / len(values), v) for i, v in enumerate(values)]
            points = [(x, y(float(np.log10(v)))) for x, v in places if v > 0]
            if points:
                line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
                stroke = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"'
                parts.append(f'<polyline fill="none" {stroke} points="{line}"><title>{escape(name)}</title></polyline>')
                at, shape = "{:.1f} {:.1f}".format(*points[-1]), MARKERS[k % len(MARKERS)]
                parts.append(f'<path transform="translate({at})" fill="{colour}" d="{shape}"/>')
    return "".join([*parts, *_titles("step", "gradient norm"), "</svg>", legend(names)])


def _power(exponent: float) -> str:
    """10 to this whole number, as text."""
    return "10" + f"{exponent:.0f}".translate(RAISED)


def _columns(n: int) -> Iterator[tuple[float, float]]:
    """Where each of n steps begins, and its width."""
    wide = (WIDTH - LEFT - RIGHT) / n
    return ((LEFT + t * wide, wide) for t in range(n))


def _steps(n: int) -> list[str]:
    """A line where a step begins, and its number."""
    parts = []
    for t, (start, wide) in enumerate(_columns(n)):
        parts.append(f'<line class="grid" x1="{start:.1f}" x2="{start:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{start + wide / 2:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{t}</text>')
    return parts


def confusion(shares: Any, names: Sequence[str]) -> str:
    """A confusion matrix as shares of each row (C, C) in 0..1: rows are the truth, columns the prediction.

    One path for each level of grey, so that 151 classes stay small. NaN rows (no pixel) are empty.
    """
    n = len(names)
    left = 96 if n <= 32 else 20
    cell = (WIDTH - left - 8) / n
    size = 8 + cell * n + left
    known = np.nan_to_num(np.asarray(shares, dtype=float))
    level = np.where(known < FAINT, 0, np.ceil(known * LEVELS)).astype(int)
    parts = [_open(WIDTH, size, f"confusion matrix of {n} classes: rows are the truth, columns the prediction")]
    parts.append(f'<rect class="frame" x="{left}" y="8" width="{cell * n:.1f}" height="{cell * n:.1f}"/>')
    for step in range(1, LEVELS + 1):
        squares = "".join(
            f"M{left + cell * j:.1f} {8 + cell * i:.1f}h{cell:.1f}v{cell:.1f}h-{cell:.1f}z"
            for i, j in np.argwhere(level == step).tolist()
        )
        if squares:
            low = 100 * (step - 1) / LEVELS
            about = f"<title>{low:.0f} to {100 * step / LEVELS:.0f} % of a row</title>"
            parts.append(f'<path fill="var(--c0)" opacity="{step / LEVELS:.3f}" d="{squares}">{about}</path>')
    for i, name in enumerate(names if n <= 32 else ()):
        middle = cell * (i + 0.5)
        text = escape(name if len(name) <= 14 else f"{name[:13]}…")
        parts.append(f'<text x="{left - 5}" y="{12 + middle:.1f}" text-anchor="end">{text}</text>')
        parts.append(
            f'<text transform="translate({left + middle + 4:.1f} {14 + cell * n:.1f}) rotate(-90)" '
            f'text-anchor="end">{text}</text>'
        )
    return "".join([*parts, "</svg>"])


# --- axes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Values ``low``..``high`` on the pixels ``start``..``end``, with round ticks."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        spread = max(high - low, 0.02 * abs(high)) or 1.0
        rough = spread / 5
        unit = 10.0 ** np.floor(np.log10(rough))
        step = float(next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999))
        return cls(float(np.floor(low / step) * step), float(np.ceil(high / step) * step), step, start, end)

    @classmethod
    def decades(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        """Of the powers of ten: whole ones around the values, at most eight ticks."""
        low, high = float(np.floor(np.log10(min(values)))), float(np.ceil(np.log10(max(values))))
        step = float(max(1, np.ceil((high - low) / 7)))
        return cls(low, low + step * max(1, np.ceil((high - low) / step)), step, start, end)

    def __call__(self, value: float) -> float:
        width = self.high - self.low or 1.0
        return self.start + (self.end - self.start) * (value - self.low) / width

    def ticks(self) -> list[float]:
        return [self.low + self.step * i for i in range(round((self.high - self.low) / self.step) + 1)]


def _open(width: float, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}" class="chart">'


def _grid(x: _Axis, y: _Axis) -> list[str]:
    return [*_ticks(x, vertical=False), *_ticks(y, vertical=True)]


def _ticks(axis: _Axis, vertical: bool, text: Callable[[float], str] = lambda v: f"{v + 0.0:.6g}") -> list[str]:
    parts = []
    for tick in axis.ticks():
        at, label = axis(tick), text(tick)
        if vertical:
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
        else:
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>')
    return parts


def _titles(x: str, y: str) -> list[str]:
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    return [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x}</text>',
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{y}</text>',
    ]
