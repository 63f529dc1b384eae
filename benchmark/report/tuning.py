"""A tuning written down: every trial as CSV, the chosen methods as a grid, what trials buy, and a figure."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tabulate import tabulate

from contseg.benchmark.plan.search import Tuning
from contseg.benchmark.plan.toml import as_toml
from contseg.benchmark.report.figures import STYLE, save
from contseg.benchmark.report.tables import write_text
from contseg.benchmark.score.tuning import COLUMNS
from contseg.datasets.palette import COLOURS


def write_tuning(folder: Path, frame: pd.DataFrame, tuning: Tuning) -> list[Path]:
    """``trials.csv``, ``tuned.toml`` (the grid with the chosen methods), ``tuning.md`` and the figure; these files."""
    csv, toml, table = folder / "trials.csv", folder / "tuned.toml", folder / "tuning.md"
    trials = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(csv, trials)
    tuned = tuning.chosen(list(frame[frame["chosen"]]["name"]), hashlib.sha256(trials.encode()).hexdigest())
    write_text(toml, f"# {tuning.said}\n{as_toml(tuned)}")
    write_text(table, f"{budget_table(frame, 'github')}\n\n- {tuning.said}\n- {BUDGET}\n")
    with mpl.rc_context(STYLE):
        return [csv, toml, table, *save(search_figure(frame, tuning.said), folder / "search")]


BUDGET = (
    "best of k: 'all' of the first k trials' best, what a smaller search would have chosen; the first is the default; "
    "old, new: of the chosen trial; mIoU in %"
)


def budget_table(frame: pd.DataFrame, form: str = "simple") -> str:
    """What more trials buy: 'all' mIoU of the best of the first 1, 4, 16 ... trials of every method, and the chosen.

    Old and new of the chosen one say what it was chosen for: where no trial learns the new classes, one wins that
    trains as little as it may.
    """
    number = frame.groupby("method", sort=False).cumcount() + 1
    total = int(number.max())
    sizes = sorted({*(4**k for k in range(total) if 4**k <= total), total})
    rows = []
    for method, own in frame.groupby("method", sort=False):
        best = dict(zip(number[own.index], own["best_so_far"], strict=True))
        ((old, new, name),) = own[own["chosen"]][["old", "new", "name"]].values.tolist() or [(None, None, "-")]
        rows.append([method, *(_per_cent(best.get(k)) for k in sizes), _per_cent(old), _per_cent(new), name])
    head = ["method", *(f"best of {k}" for k in sizes), "old", "new", "chosen"]
    align = ["left", *["right"] * (len(sizes) + 2), "left"]
    return str(tabulate(rows, head, tablefmt=form, colalign=align, disable_numparse=True))


def _per_cent(value: float | None) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.1f}"


def search_figure(frame: pd.DataFrame, said: str) -> Figure:
    """'all' mIoU of every trial over each value that was drawn: a row a method, a panel a value."""
    methods = [*dict.fromkeys(frame["method"])]
    drawn = frame.drop(columns=COLUMNS)
    axes_of = {m: [c for c in drawn if drawn[c][frame["method"] == m].notna().any()] for m in methods}
    columns = max(1, *map(len, axes_of.values()))
    figure = Figure(figsize=(1 + 2.3 * columns, 0.8 + 2 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), columns, squeeze=False, sharey="row")
    for row, method in zip(panels, methods, strict=True):
        rows = frame[frame["method"] == method]
        for ax, column in zip(row, axes_of[method], strict=False):
            _points(ax, rows, column)
        for ax in row[len(axes_of[method]) :]:
            ax.axis("off")
        row[0].set(ylabel=f"{method}\nall mIoU (%)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(said, fontsize=8)
    return figure


def _points(ax: Any, rows: pd.DataFrame, column: str) -> None:
    kinds = {
        "trial": (rows[(rows["trial"] > 0) & ~rows["chosen"]], "o"),
        "default": (rows[rows["trial"] == 0], "s"),
        "chosen": (rows[rows["chosen"]], "*"),
    }
    for k, (label, (those, marker)) in enumerate(kinds.items()):
        size = 90 if marker == "*" else 24
        ax.scatter(those[column], those["all"], label=label, marker=marker, s=size, color=COLOURS[k], zorder=2 + k)
    low, high = rows[column].min(), rows[column].max()
    ax.set(xlabel=column, xscale="log" if 0 < low < high / 10 else "linear")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.get_major_formatter().set_useOffset(False)
