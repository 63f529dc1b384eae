"""A leaderboard as text: plain for the terminal, Markdown for people, CSV for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from contseg.benchmark.report.caption import caption
from contseg.benchmark.score.leaderboard import Contest, Leaderboard
from contseg.benchmark.score.metrics import mean
from contseg.benchmark.score.over_tasks import OverTasks, over_tasks, said, summary
from contseg.benchmark.score.scores import (
    ALIKE,
    CONTEST,
    COST,
    METRICS,
    TUNED,
    WITH_STD,
    marked_name,
    plain_name,
    unmarked,
)
from contseg.benchmark.store.files import digest
from contseg.datasets.atomic import replacing

LONGEST = 200  # bytes of a file name; file systems take 255
# column -> title; mIoU in per cent
TITLES = {
    "method": "method",
    "seeds": "n",
    "old": "old",
    "old_foreground": "old no bg",
    "new": "new",
    "all": "all",
    "avg": "avg",
    "forgetting": "forgetting",
    "step0": "step 0",
    "to_ft": "Δ FT",
    "to_joint": "Δ Joint",
    "images": "images",
    "updates": "updates",
    "seconds": "time",
    "peak_memory_mb": "memory",
}


def number(value: float, std: float = float("nan")) -> str:
    """``61.2 ± 0.4``; without ± if there is no standard deviation, ``-`` if there is no number."""
    if pd.isna(value):
        return "-"
    return f"{value:z.1f}" if pd.isna(std) else f"{value:z.1f} ± {std:.1f}"


def cost(column: str, value: float) -> str:
    """A cost in a readable unit: seconds, minutes or hours; MB or GB; thousands with spaces."""
    if pd.isna(value):
        return "-"
    if column == "seconds":
        return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"
    if column == "peak_memory_mb":
        return "-" if value <= 0 else f"{value:.0f} MB" if value < 10_000 else f"{value / 1024:.1f} GB"
    if column == "parameters":
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}".replace(",", " ")


def cell_text(row: Any, column: str) -> str:
    """The text of one cell of a row of the frame."""
    value = row[column]
    if column in COST:
        return cost(column, value)
    if column == "seeds":
        return f"{value:.0f}"
    if column in ("to_ft", "to_joint"):
        return "-" if pd.isna(value) else f"{value:+z.1f}"
    if column in METRICS:
        return number(value, row[f"{column}_std"] if column in WITH_STD else float("nan"))
    return str(value)


def term_name(name: str, weight: float) -> str:
    """A loss term as figures name it: with its weight, if that is not 1."""
    return name if weight == 1 else f"{weight:g} {name}"


def title(key: Sequence[str]) -> str:
    """The heading of a table: ``voc · 15-1 · overlapped · sdr``."""
    return " · ".join(str(k) for k in key)


def short_names(board: Leaderboard, dataset: str) -> dict[str, str]:
    """Method -> its unique name in a table. Parameters are left out unless two methods of this data set, tuned alike,
    differ only in them; the mark of a configuration stays, and the foot explains it. Behind the name stand the codes of
    external data (not ``in1k`` or ``unknown``, if all rows have it) and the search that chose the row."""
    full = board.frame[["method", *ALIKE]][board.frame["dataset"] == dataset].drop_duplicates("method")
    alike: dict[tuple[str, str], set[str]] = {}
    for method, tuned_on, _ in full.itertuples(index=False):
        alike.setdefault((plain_name(method), tuned_on), set()).add(unmarked(method))
    marks = _search_marks(board, dataset)
    common = set[str].intersection(*(set(codes.split()) for codes in full["external"])) if len(full) else set[str]()
    usual = {"none", *(common & {"in1k", "unknown"})}
    names = {}
    for method, tuned_on, external in full.itertuples(index=False):
        own, mark = method.partition(TUNED)[0], marks.get(tuned_on, "")
        alone = len(alike[plain_name(method), tuned_on]) == 1
        short = own.replace(unmarked(own), plain_name(own), 1) if mark else marked_name(own)
        more = [code for code in external.split() if code not in usual]
        names[method] = ", ".join([short if alone else own, *more]) + mark
    return names


def _search_marks(board: Leaderboard, dataset: str) -> dict[str, str]:
    """``tuned_on`` -> what stands behind a name: ``, tuned on first, 16 trials``; the scenario only if it must."""
    searches = dict.fromkeys(s.search for s in board.scored if s.search and s.run.dataset == dataset)
    short = [s.short for s in searches]
    return {str(s): TUNED + (s.short if short.count(s.short) == 1 else str(s)) for s in searches}


def contest_rows(board: Leaderboard, part: pd.DataFrame, bold: Callable[[str], str] = str) -> list[list[str]]:
    """The printed cells of one contest; ``bold`` marks the significantly best numbers."""
    rows = part.assign(method=part["method"].map(short_names(board, part["dataset"].iloc[0]))).to_dict("records")
    return [
        [bold(text) if (i, c) in board.leaders else text for c in TITLES for text in (cell_text(row, c),)]
        for i, row in zip(part.index.tolist(), rows, strict=True)
    ]


def literature_rows(board: Leaderboard, key: Contest) -> list[list[str]]:
    """Measured and published numbers of one contest side by side, in the columns of ``LITERATURE``."""
    if board.literature.empty:
        return []
    here = board.literature[(board.literature[CONTEST] == list(key)).all(axis=1)]
    short = short_names(board, key[0])
    return [
        [
            short[row["method"]],
            *(number(row[c]) for c in ("old", "new", "all")),
            *(number(row[f"published_{c}"]) for c in ("old", "new", "all")),
            "-" if pd.isna(row["difference"]) else f"{row['difference']:+z.1f}",
            f"{row['source']}, {row['provenance']} [{row['foot']}]",
        ]
        for row in here.to_dict("records")
    ]


def domain_rows(board: Leaderboard, key: Contest, part: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """mIoU of each step's domains after the last step, with the change since that step; and the titles of the columns.

    Nothing where steps bring classes.
    """
    rows, head, short = list[list[str]](), list[str](), short_names(board, key[0])
    for method in part["method"]:
        runs = [s for s in board.of((*key, method)) if s.run.last.get("domains")]
        if not runs:
            return [], []
        head = ["method", *(_domains(group) for group in runs[0].score.groups)]
        final = [mean([s.score.steps[-1].miou(group) for s in runs]) for group in runs[0].score.groups]
        texts = [number(v) for v in final]
        if runs[0].score.incremental:
            learned = [mean([s.score.by_group[g][g] for s in runs]) for g in range(len(final) - 1)]
            changes = [f" ({after - before:+z.1f})" for before, after in zip(learned, final, strict=False)]
            texts = [text + change for text, change in zip(texts, [*changes, ""], strict=True)]
        rows.append([short[method], *texts])
    return rows, head


def _domains(group: Sequence[Any]) -> str:
    return f"{group[0]}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")


LITERATURE = ["method", "old", "new", "all", "published old", "new", "all", "Δ all", "source"]


OVER = {
    "method": "method",
    "mean": "mean",
    "iqm": "IQM",
    "interval": "95 % interval",
    "lowest": "lowest",
    "highest": "highest",
    "rank": "mean rank",
}


def over_rows(over: OverTasks) -> tuple[list[str], list[list[str]]]:
    """Head and printed cells of the comparison over tasks; interval and rank only where there are any."""
    frame = summary(over).assign(method=over.names)
    interval, rank = frame["iqm_low"].notna().any(), frame["rank"].notna().any()
    shown = [c for c in OVER if (c != "interval" or interval) and (c != "rank" or rank)]

    def text(row: dict[str, Any], column: str) -> str:
        if column == "method":
            return str(row[column])
        if column == "interval":
            return f"{row['iqm_low']:.3f} to {row['iqm_high']:.3f}"
        return f"{row[column]:.1f}" if column == "rank" else f"{row[column]:.3f}"

    return [OVER[c] for c in shown], [[text(row, c) for c in shown] for row in frame.to_dict("records")]


def foot(board: Leaderboard) -> list[str]:
    """The lines below every table: what the numbers are, the full protocol, and the notes."""
    bg = "with" if board.protocol.background_in_mean == "yes" else "without"
    return [
        f"mIoU in % after the last step; old: classes of step 0 ({bg} background), new: all later ones; "
        "avg: mean of 'all' over the steps; Δ: 'all' minus that of FT, of Joint; "
        "mean ± sample standard deviation over n seeds",
        *_domain_notes(board),
        board.protocol.note(),
        *(
            f"{dataset}: {short} is {full}"
            for dataset in board.frame["dataset"].drop_duplicates()
            for full, short in short_names(board, dataset).items()
            if unmarked(full) not in short
        ),
        *board.notes,
    ]


def _domain_notes(board: Leaderboard) -> list[str]:
    """What the columns mean where steps bring domains, and which test images were trained on."""
    by_domain = [s for s in board.scored if s.run.last.get("domains")]
    leaks = {}
    for s in by_domain:
        tested = s.run.last.get("test") or {}
        if tested.get("trained_on"):
            share = f"{tested['trained_on']} of the {tested['images']} test images of the last step"
            percent = f"{tested['trained_on'] / tested['images']:.0%}"
            leaks["/".join(s.cell[:3])] = f"{'/'.join(s.cell[:3])}: {share} ({percent}) were trained on, as released"
    means = (
        "by domain, old: domains of step 0, new: all later ones, both over all classes; in brackets the change since "
        "the step that brought the domain"
    )
    return [means, *leaks.values()] if by_domain else []


def as_text(board: Leaderboard) -> str:
    """A table for the terminal."""
    return _document(board, "{}", "simple", "{}")


def as_markdown(board: Leaderboard) -> str:
    """Markdown: a heading for every contest, significantly best numbers in bold."""
    return _document(board, "## {}", "github", "- {}", lambda text: f"**{text}**")


def _document(board: Leaderboard, heading: str, form: str, foot_line: str, bold: Callable[[str], str] = str) -> str:
    def table(rows: list[list[str]], head: list[str]) -> str:
        align = ["left", *["right"] * (len(head) - 1)]
        if form == "github":  # a bar would end the cell, and explicit tasks have bars: [1-4|5-8]
            rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        return str(tabulate(rows, head, tablefmt=form, colalign=align, disable_numparse=True))

    parts = []
    for key, part in board.contests():
        parts += [
            heading.format(title(key)),
            caption(board, key),
            table(contest_rows(board, part, bold), list(TITLES.values())),
        ]
        by_domain, head = domain_rows(board, key, part)
        parts += ["By domain, after the last step:", table(by_domain, head)] if by_domain else []
        beside = literature_rows(board, key)
        parts += ["Measured and published:", table(beside, LITERATURE)] if beside else []
    parts = parts or ["no complete run yet"]
    for over in over_tasks(board):
        if over.methods:
            head, rows = over_rows(over)
            parts += [heading.format(over.title), table(rows, head)]
        parts.append("\n".join(foot_line.format(line) for line in said(over)))
    return "\n\n".join([*parts, "\n".join(foot_line.format(line) for line in foot(board))]) + "\n"


def as_csv(board: Leaderboard) -> str:
    """One row for each cell, with the frame's columns; four decimals, empty if there is no number."""
    return str(board.frame.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def shortened(name: str, text: str) -> str:
    """A file name made of a text; a long one is its beginning and eight digits of the text's hash."""
    return name if len(name.encode()) <= LONGEST else f"{name[:60]}-{digest(text)[:8]}"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
