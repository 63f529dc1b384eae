"""A tuning written down: every trial as CSV, the chosen methods as a grid, and a figure of the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from contseg.benchmark.plan.config import Config
from contseg.benchmark.plan.toml import as_toml
from contseg.benchmark.report.figures import STYLE, save
from contseg.benchmark.report.tables import write_text
from contseg.benchmark.score.tuning import COLUMNS
from contseg.datasets.palette import COLOURS


def write_tuning(folder: Path, frame: pd.DataFrame, tuned: Config, said: str) -> list[Path]:
    """``trials.csv``, ``tuned.toml`` and the figure; the files written.

    ``tuned``: the grid with the chosen methods. ``said``: how they were chosen, in a line.
    """
    csv, toml = folder / "trials.csv", folder / "tuned.toml"
    write_text(csv, frame.to_csv(index=False, float_format="%.6g"))
    write_text(toml, f"# {said}\n{as_toml(tuned)}")
    with mpl.rc_context(STYLE):
        return [csv, toml, *save(search_figure(frame, said), folder / "search")]


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
