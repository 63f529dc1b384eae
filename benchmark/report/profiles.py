"""Figures over tasks: scores with their cells as dots, performance profiles, the critical-difference diagram.

A figure that the number of tasks cannot carry is not drawn, and a line says why.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from contseg.benchmark.report.figures import DASHES, MARKERS, STYLE, file_name, save
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.over_tasks import (
    OverTasks,
    mean_ranks,
    no_interval,
    no_profile,
    no_ranks,
    over_tasks,
    profile,
    summary,
    wilcoxon_holm,
)
from contseg.benchmark.score.paired_test import LEVEL
from contseg.datasets.errors import UserError, need
from contseg.datasets.palette import COLOURS

Drawn: TypeAlias = Figure | str  # or why it is not drawn


def write_over_tasks(board: Leaderboard, folder: Path) -> tuple[list[Path], list[str]]:
    """Draw the comparisons over tasks; returns the files written, and a line for each figure that is refused."""
    written, refused = list[Path](), list[str]()
    for over in over_tasks(board):
        if not over.methods:
            refused += over.notes
            continue
        more, why = draw(over, folder / file_name(f"over-tasks-{over.blocks[0][3]}{over.kind}"))
        written, refused = written + more, refused + why
    return written, refused


def draw(over: OverTasks, place: Path) -> tuple[list[Path], list[str]]:
    """The figures of one comparison: the files written, and a line for each that is refused."""
    written, refused = list[Path](), list[str]()
    place.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure_of in FIGURES.items():
            drawn = figure_of(over)
            if isinstance(drawn, str):
                refused.append(drawn)
            else:
                written += save(drawn, place / name)
    return written, refused


def scores(over: OverTasks) -> Drawn:
    """The score of each method: a dot for each task and the mean; from five seeds on the iqm and its interval."""
    frame, cells = summary(over), over.cells
    whole = no_interval(len(over.seeds)) is None
    figure = Figure(figsize=(5.6, 1.1 + 0.34 * len(frame)), layout="constrained")
    ax = figure.subplots()
    for k, row in enumerate(frame.itertuples(index=False)):
        colour = COLOURS[k % len(COLOURS)]
        ax.scatter(cells[k], np.full(cells.shape[1], k), s=16, color=colour, alpha=0.7, lw=0, zorder=4)
        if whole:
            ax.errorbar(row.iqm, k, xerr=[[row.iqm - row.iqm_low], [row.iqm_high - row.iqm]], fmt="|", color="black",
                        markersize=13, markeredgewidth=2, capsize=4, zorder=3)  # fmt: skip
        else:
            ax.scatter(row.mean, k, marker="|", s=170, color="black", lw=2, zorder=3)
    about = "IQM and 95 % bootstrap interval" if whole else "mean"
    ax.set_yticks(range(len(frame)), over.names)
    ax.set(xlabel=f"{over.score}; dots: tasks, line: {about}, {len(over.seeds)} seeds", ylim=(len(frame) - 0.5, -0.5))
    ax.set_title(over.title)
    return figure


def profiles(over: OverTasks) -> Drawn:
    """The share of tasks whose score is above a threshold: a line for each method (Agarwal et al., NeurIPS 2021)."""
    cells = over.cells
    why = no_profile(cells.shape[1])
    if why:
        return why
    margin = 0.05 * (cells.max() - cells.min() or 1)
    thresholds = np.linspace(cells.min() - margin, cells.max() + margin, 400)
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    ax = figure.subplots()
    for k, (name, share) in enumerate(zip(over.names, profile(cells, thresholds), strict=True)):
        look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % len(DASHES)]}
        marker: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "markersize": 4, "markevery": (7 * k, 60)}
        ax.plot(thresholds, share, label=name, drawstyle="steps-post", **look, **marker)
    ax.set(xlabel=f"threshold of {over.score}", ylabel="share of tasks above it", ylim=(-0.02, 1.02), title=over.title)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


def critical_difference(over: OverTasks) -> Drawn:
    """Mean ranks over tasks; a bar joins methods without a significant difference (Demsar, JMLR 2006).

    The bars are those of Wilcoxon's test with Holm's correction, not of Nemenyi's distance.
    """
    why = no_ranks(len(over.blocks), len(over.methods))
    if why:
        return why
    try:
        need("scikit_posthocs", "the critical-difference diagram")
    except UserError as missing:
        return f"not drawn: {missing}"
    from scikit_posthocs import critical_difference_diagram

    names = over.names
    ranks = pd.Series(mean_ranks(over.cells), index=names)
    p = pd.DataFrame(wilcoxon_holm(over.cells), index=names, columns=names)
    figure = Figure(figsize=(6.4, 1.4 + 0.22 * len(names)), layout="constrained")
    ax = figure.subplots()
    ax.grid(False)
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    drawn = critical_difference_diagram(
        ranks, p, alpha=1 - LEVEL, ax=ax, color_palette=colours, text_h_margin=0.1,
        label_fmt_left="{label} ({rank:.1f}) ", label_fmt_right=" ({rank:.1f}) {label}",
    )  # fmt: skip
    for label in drawn["labels"]:
        label.set_color("black")
    ax.set_title(f"mean rank {over.title}\nbar: no significant difference (Wilcoxon, Holm)", fontsize=9, pad=16)
    return figure


FIGURES: dict[str, Callable[[OverTasks], Drawn]] = {
    "scores": scores,
    "profiles": profiles,
    "critical-difference": critical_difference,
}
