"""Figures of a leaderboard as PNG and PDF: one folder for each contest.

Colours are those of ``datasets/palette.py``; lines differ in marker and dash too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from contseg.benchmark.plan.protocol import Protocol
from contseg.benchmark.report.tables import short_names, shortened, term_name, title
from contseg.benchmark.score.leaderboard import Contest, Leaderboard
from contseg.benchmark.score.metrics import mean, part_name, scored_counts
from contseg.benchmark.score.records import Record
from contseg.benchmark.score.scores import CONTEST, Scored, one_order
from contseg.datasets.palette import COLOURS

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
NAMED = 6  # methods that a line names
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
    "image.cmap": "viridis",
}
Lines: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]  # name of a term -> updates and values
Rows: TypeAlias = list[tuple[str, list[Scored]]]  # name of a method in tables, and its runs by seed


def write_figures(board: Leaderboard, folder: Path) -> list[Path]:
    """Draw every figure of every contest; returns the files written."""
    written: list[Path] = []
    for key, rows in contest_rows(board):
        place = folder / file_name("-".join(key))
        place.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            for name, draw in FIGURES.items():
                figure = draw(board, key, rows)
                if figure is not None:
                    written += save(figure, place / name)
            for method, runs in rows:
                written += save(confusion(method, runs, board), place / f"confusion-{file_name(method)}")
                written += save(terms(method, runs), place / f"terms-{file_name(method)}")
    return written


def unwatched(board: Leaderboard) -> list[str]:
    """A line for the methods whose records have no gradient norms, if there are some."""
    named = {method: None for _, rows in contest_rows(board) for method, runs in rows if not _watched(runs)}
    if not named:
        return []
    who = ", ".join(named) if len(named) <= NAMED else f"{len(named)} rows"
    return [f"no gradient norms of {who}: terms-*.png has losses alone (set run.gradient_norms=50 and train)"]


def contest_rows(board: Leaderboard) -> Iterator[tuple[Contest, Rows]]:
    """Every contest with its methods, named as in tables, and their runs."""
    for key, part in board.contests():
        short = short_names(board, key[0])
        yield key, [(short[m], board.of((*key, m))) for m in part["method"]]


def file_name(text: str) -> str:
    """The text with only characters that every file system accepts; the tasks [1-2|3] and [1|2-3] stay two, and so do
    long texts of one beginning."""
    return shortened(re.sub(r"[^\w.@=+-]+", "-", text.replace("|", "_")), text)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save as PNG and PDF, without dates: the same numbers give the same bytes."""
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")]
    figure.savefig(paths[0], bbox_inches="tight", metadata={"Software": None})
    figure.savefig(paths[1], bbox_inches="tight", metadata={"CreationDate": None})
    return paths


def _look(k: int, line: bool = True) -> dict[str, Any]:
    look = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
    return {**look, "linestyle": DASHES[k % len(DASHES)], "markersize": 4} if line else look


def _by_step(runs: Sequence[Scored], which: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (t,) and values (seeds, t) of ``old``, ``new`` or ``all``; Joint has one value, at the last step."""
    values = np.array([[getattr(s.score, which)(t) for t in range(len(s.score.steps))] for s in runs])
    n = len(runs[0].score.groups)
    return np.arange(n - values.shape[1], n), values


def curves(board: Leaderboard, key: Contest, rows: Rows) -> Figure:
    """Old, new and all mIoU over steps, a line for each method; the band is the range of the seeds."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, which in zip(axes, ("old", "new", "all"), strict=True):
        for k, (method, runs) in enumerate(rows):
            steps, values = _by_step(runs, which)
            ax.plot(steps, values.mean(0), label=method, clip_on=False, **_look(k))
            if len(values) > 1:
                ax.fill_between(steps, values.min(0), values.max(0), color=COLOURS[k % len(COLOURS)], alpha=0.15, lw=0)
        ax.set(title=f"{which} classes", xlabel="step", xticks=range(len(rows[0][1][0].score.groups)))
    axes[0].set(ylabel="mIoU (%)", ylim=(0, 100))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(title(key))
    return figure


def classes(board: Leaderboard, key: Contest, rows: Rows) -> Figure | None:
    """IoU of every class after every step, a panel for each method: shows which classes are forgotten.

    Of seeds with orders of their own the first is shown.
    """
    shown = [(method, runs) for method, runs in rows if runs[0].score.incremental]
    if not shown:
        return None
    first, said = shown[0][1][0], ""
    if not one_order(s for _, runs in shown for s in runs):
        alike = [(method, [s for s in runs if s.score.groups == first.score.groups]) for method, runs in shown]
        shown = [(method, runs) for method, runs in alike if runs]
        said = f", seed {first.run.seed}: each seed has an order of its own"
    order = [k for group in first.score.groups for k in group]
    names = [part_name(k, first.run.last["class_names"]) for k in order]
    n = len(first.score.groups)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    size = (1.2 + columns * max(1.2, 0.3 * n), lines * (0.6 + 0.16 * max(len(order), 6)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (method, runs) in zip(axes, shown, strict=False):
        image = np.array([[mean([s.score.steps[t].of(k) for s in runs]) for t in range(n)] for k in order])
        drawn = ax.imshow(image, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        ax.set(title=method, xlabel="step", xticks=range(0, n, -(-n // 10)))
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.grid(False)
    for ax in axes[len(shown) :]:
        ax.axis("off")
    figure.colorbar(drawn, ax=list(axes), label="IoU (%)", shrink=0.8)
    figure.suptitle(f"{title(key)}{said}")
    return figure


def old_new(board: Leaderboard, key: Contest, rows: Rows) -> Figure | None:
    """Old against new mIoU after the last step: stability against plasticity; a point for each seed."""
    points = {m: [(s.score.old(), s.score.new()) for s in runs] for m, runs in rows}
    return _scatter(title(key), points, "old mIoU (%)", "new mIoU (%)")


def cost(board: Leaderboard, key: Contest, rows: Rows) -> Figure | None:
    """Training time against mIoU of all classes; a point for each seed."""

    def minutes(s: Scored) -> float:
        return float(sum(r["cost"].get("seconds", 0.0) for r in s.run.records)) / 60

    points = {m: [(minutes(s), s.score.all()) for s in runs] for m, runs in rows}
    return _scatter(title(key), points, "training time (min)", "all mIoU (%)")


def _scatter(about: str, points: dict[str, list[tuple[float, float]]], xlabel: str, ylabel: str) -> Figure | None:
    """``points``: method -> (x, y) of each seed; ``None`` where no value is a number."""
    if np.isnan([v for runs in points.values() for pair in runs for v in pair]).all():
        return None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = figure.subplots()
    for k, (method, runs) in enumerate(points.items()):
        xs, ys = zip(*runs, strict=True)
        ax.scatter(xs, ys, label=method, s=36, clip_on=False, **_look(k, line=False))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=about)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


def published(board: Leaderboard, key: Contest, rows: Rows) -> Figure | None:
    """All mIoU, measured and published, a pair of bars for each method."""
    if board.literature.empty:
        return None
    here = board.literature[(board.literature[CONTEST] == list(key)).all(axis=1)]
    if here.empty:
        return None
    figure = Figure(figsize=(1.5 + 0.8 * len(here), 3.2), layout="constrained")
    ax = figure.subplots()
    x = np.arange(len(here))
    ax.bar(x - 0.2, here["all"], 0.4, label="measured", color=COLOURS[0])
    ax.bar(x + 0.2, here["published_all"], 0.4, label="published", color="white", edgecolor=COLOURS[1], hatch="///")
    short = short_names(board, key[0])
    ax.set_xticks(x, [short[m] for m in here["method"]], rotation=30, ha="right")
    ax.set(ylabel="all mIoU (%)", title=title(key))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def confusion(method: str, runs: Sequence[Scored], board: Leaderboard) -> Figure:
    """Confusion matrix after the last step in % of the true class's pixels, summed over seeds."""
    last = runs[-1].run.last
    counts = np.sum([_counts(s.run.last, last["channels"], board.protocol) for s in runs], axis=0)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [last["class_names"][k] for k in last["channels"]]
    side = 1.8 + 0.22 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax: Axes = figure.subplots()
    drawn = ax.imshow(share, vmin=0, vmax=100, interpolation="nearest")
    size = 7 if len(names) < 40 else 4
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class", title=f"{method}, {title(runs[0].cell[:4])}")
    ax.title.set_fontsize(8)
    ax.grid(False)
    figure.colorbar(drawn, ax=ax, label="pixels of the true class (%)", shrink=0.8)
    return figure


def _counts(record: Record, labels: Sequence[int], protocol: Protocol) -> np.ndarray:
    """The scored matrix of a record in this order of the labels: seeds of ``@random`` have orders of their own."""
    places = [record["channels"].index(label) for label in labels]
    return scored_counts(record, protocol)[np.ix_(places, places)]


def terms(method: str, runs: Sequence[Scored]) -> Figure:
    """Value and gradient norm of every weighted term over the updates: a column for each step, a line for each seed.

    Both axes are logarithmic, so a value of 0 or less is not drawn. Without gradient norms there is one line of panels.
    """
    records = {r["step"]: [s.run.records[i] for s in runs] for i, r in enumerate(runs[0].run.records)}
    every = [r for of in records.values() for r in of]
    names = list(dict.fromkeys(n for r in every for n in (*r.get("losses", {}), *_norms_over_updates(r))))
    parts = {"loss": _losses_over_updates} | ({"gradient norm": _norms_over_updates} if _watched(runs) else {})
    size = (1.6 + len(records) * (2.4 if len(records) < 5 else 1.6), 0.9 + 2.1 * len(parts))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(parts), len(records), sharex="col", sharey="row", squeeze=False)
    drawn: dict[str, Any] = {}
    for line, (what, over_updates) in zip(axes, parts.items(), strict=True):
        for ax, (step, of) in zip(line, records.items(), strict=True):
            for record in of:
                for name, (x, y) in over_updates(record).items():
                    look = _look(names.index(name)) | {"markevery": max(1, len(y) // 5), "linewidth": 1.2}
                    (drawn[name],) = ax.plot(x, np.where(y > 0, y, np.nan), **look)
            ax.set(yscale="log", xlim=(0, None), xlabel="update")
            ax.set_title(f"step {step}" if any(r.get("losses") for r in of) else f"step {step}: no update", fontsize=9)
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.tick_params(labelleft=True, labelbottom=True)
        low, high = np.log10(line[0].get_ylim())
        line[0].set(ylabel=what, ylim=(10.0 ** np.floor(low), 10.0 ** np.ceil(high)))  # whole decades: ticks for each
    shown = [n for n in names if n in drawn]
    figure.legend([drawn[n] for n in shown], [_term(n, runs) for n in shown], loc="outside right upper")
    figure.suptitle(f"{method}, {title(runs[0].cell[:4])}", fontsize=9)
    return figure


def _watched(runs: Sequence[Scored]) -> bool:
    return any(r.get("gradient_norms") for s in runs for r in s.run.records)


def _losses_over_updates(record: Record) -> Lines:
    """The mean over each window of updates, at its middle."""
    updates = record["cost"].get("updates", 0)
    found = {n: np.array(v, dtype=float) for n, v in record.get("losses", {}).items()}
    return {n: ((np.arange(len(v)) + 0.5) * updates / max(1, len(v)), v) for n, v in found.items()}


def _norms_over_updates(record: Record) -> Lines:
    found = record.get("gradient_norms") or {"updates": [], "norms": {}}
    return {n: (np.array(found["updates"]), np.array(v, dtype=float)) for n, v in found["norms"].items()}


def _term(name: str, runs: Sequence[Scored]) -> str:
    """The name of a term with its weight, if the records say it."""
    weights = [r["gradient_norms"]["weights"] for s in runs for r in s.run.records if r.get("gradient_norms")]
    return term_name(name, next((w[name] for w in reversed(weights) if name in w), 1.0))


FIGURES: dict[str, Callable[[Leaderboard, Contest, Rows], Figure | None]] = {
    "curves": curves,
    "classes": classes,
    "old-new": old_new,
    "cost": cost,
    "published": published,
}
