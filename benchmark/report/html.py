"""The leaderboard as one HTML page: no network, no library, opens from disk.

All rows are in the HTML; the script only sorts, filters and opens them. So the page is complete without scripts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from contseg.benchmark.report.caption import caption
from contseg.benchmark.report.svg import Series, bar_chart, line_chart
from contseg.benchmark.report.tables import TITLES, cell_text, cost, foot, number, short_names, title
from contseg.benchmark.score.leaderboard import Contest, Leaderboard
from contseg.benchmark.score.metrics import mean, part_name
from contseg.benchmark.score.records import Run, flat_config
from contseg.benchmark.score.scores import CONTEST, COST, METRICS, Scored, one_order

TEMPLATES = Path(__file__).resolve().parent / "templates"
PHONE = ("method", "old", "new", "all")  # the columns shown on a phone
OWN_ORDERS = "each seed has an order of its own"
ABOUT = {
    "step0": "mIoU after step 0",
    "backward_transfer": "backward transfer",
    "plasticity": "plasticity",
    "harmonic": "harmonic mean of old and new",
    "accuracy": "pixel accuracy",
    "old_foreground": "old without background",
    "all_foreground": "all without background",
    "images": "training images seen",
    "updates": "optimiser updates",
    "seconds": "training time",
    "peak_memory_mb": "peak memory",
    "parameters": "parameters",
}


def as_html(*boards: Leaderboard) -> str:
    """One page with one or several leaderboards (the same records under several protocols)."""
    contests = [_contest(board, key) for board in boards for key, _ in board.contests()]
    choices = {name: list(dict.fromkeys(c["key"][i] for c in contests)) for i, name in enumerate(CONTEST)}
    feet = [(board.protocol.name, foot(board)) for board in boards]
    columns = [{"name": c, "title": t, "width": _width(c)} for c, t in TITLES.items()]
    published = any(not board.literature.empty for board in boards)
    return _template().render(contests=contests, choices=choices, feet=feet, columns=columns, published=published)


@cache
def _template() -> Template:
    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(
        "leaderboard.html.j2"
    )


def _contest(board: Leaderboard, key: Contest) -> dict[str, Any]:
    part = board.frame[(board.frame[CONTEST] == list(key)).all(axis=1)]
    short = short_names(board, key[0])
    rows = []
    for i, cell in zip(part.index.tolist(), part.to_dict("records"), strict=True):
        runs = board.of((*key, cell["method"]))
        cells = [
            {
                "text": short[cell["method"]] if c == "method" else cell_text(cell, c),
                "value": cell[c] if c == "method" else sortable(cell[c]),
                "bold": (i, c) in board.leaders,
                "width": _width(c),
            }
            for c in TITLES
        ]
        rows.append({"kind": "measured", "name": cell["method"], "cells": cells, "detail": _detail(cell, runs)})
    rows += [_published(row, short[row["method"]]) for row in literature(board, key)]
    lines = [curve(short[m], board.of((*key, m)), "all") for m in part["method"]]
    chart = Markup(line_chart(lines, f"mIoU of all classes over steps, {title(key)}", 640, 260))
    return {"key": key, "title": title(key), "caption": caption(board, key), "rows": rows, "chart": chart}


def _width(column: str) -> str:
    """The CSS class of a column; narrow screens hide some columns until a row is opened."""
    return "" if column in PHONE else "cost wide" if column in COST else "wide"


def sortable(value: float) -> str:
    """The value by which a cell is sorted; empty if there is no number."""
    return "" if value is None or np.isnan(value) else repr(float(value))


def literature(board: Leaderboard, key: Contest) -> list[dict[str, Any]]:
    """The published rows of a contest, each with its citation."""
    if board.literature.empty:
        return []
    rows = board.literature[(board.literature[CONTEST] == list(key)).all(axis=1)].to_dict("records")
    feet = {note.split("] ")[0]: note.split("] ", 1)[1] for note in board.notes if note.startswith("[")}
    return [{**row, "citation": feet[f"[{row['foot']}"]} for row in rows]


def _published(row: dict[str, Any], name: str) -> dict[str, Any]:
    cells = list[dict[str, Any]]()
    for c in TITLES:
        value = row[f"published_{c}"] if c in ("old", "new", "all") else float("nan")
        text = name if c == "method" else number(value) if c in ("old", "new", "all") else ""
        order = name if c == "method" else sortable(value)
        cells.append({"text": text, "value": order, "bold": False, "width": _width(c)})
    detail = {"citation": row["citation"], "provenance": row["provenance"], "difference": number(row["difference"])}
    return {"kind": "published", "name": name, "cells": cells, "detail": detail}


# --- the details of a row -------------------------------------------------------------------------------------------


def _detail(cell: dict[str, Any], runs: Sequence[Scored]) -> dict[str, Any]:
    last = runs[-1].run.last
    curves = [curve(which, runs, which) for which in ("old", "new", "all")]
    more = {ABOUT[m]: number(cell[m]) for m in METRICS if m in ABOUT} | {ABOUT[c]: cost(c, cell[c]) for c in COST}
    seeds = [(s.run.seed, *(number(getattr(s.score, w)()) for w in ("old", "new", "all"))) for s in runs]
    made = {
        "device": f"{last['provenance'].get('device', '')}, {last['provenance'].get('processes', 1)} process(es)",
        "versions": ", ".join(f"{k} {v}" for k, v in last["versions"].items()),
        "commit": last["provenance"].get("commit", "") or "not known",
        "time": last["provenance"].get("time", ""),
    }
    return {
        "method": cell["method"],
        "curves": Markup(line_chart(curves, f"old, new and all mIoU of {cell['method']} over steps")),
        "classes": Markup(bar_chart(_bars(runs), f"{_bars_show(runs)}, {cell['method']}, after the last step")),
        "colours": "blue: learned at step 0; orange: later" if one_order(runs) else OWN_ORDERS,
        "more": more,
        "seeds": seeds,
        "made": made,
        "commands": list(dict.fromkeys(s.run.last["provenance"].get("command", "") for s in runs)),
        "config": config_text(runs[-1].run),
    }


def curve(name: str, runs: Sequence[Scored], which: str) -> Series:
    """Mean over seeds and their range, by step. Joint has one value, after the last step of the scenario."""
    n = len(runs[0].score.groups)
    table = [[getattr(s.score, which)(t) for t in range(len(s.score.steps))] for s in runs]
    by_step = [[row[t - n + len(row)] for row in table if t - n + len(row) >= 0] for t in range(n)]
    values = [none_of(mean(v)) for v in by_step]
    if len(runs) == 1:
        return Series(name, values)
    low, high = ([none_of(end(v, default=np.nan)) for v in by_step] for end in (min, max))
    return Series(name, values, low, high)


def none_of(value: float) -> float | None:
    """A number for a chart: ``None`` in place of NaN."""
    return None if np.isnan(value) else float(value)


def _bars_show(runs: Sequence[Scored]) -> str:
    return "mIoU of every domain" if runs[-1].run.last.get("domains") else "IoU of every class"


def _bars(runs: Sequence[Scored]) -> list[tuple[str, float | None, int | None]]:
    """In the order of learning; of seeds with orders of their own by label, and without steps."""
    score, names = runs[-1].score, runs[-1].run.last["class_names"]
    finals = [s.score.steps[-1] for s in runs]
    learned = [(k, step) for step, group in enumerate(score.groups) for k in group]
    parts = learned if one_order(runs) else [(k, None) for k, _ in sorted(learned)]
    return [(part_name(k, names), none_of(mean([f.of(k) for f in finals])), step) for k, step in parts]


def config_text(run: Run) -> str:
    """A run's configuration: step 0 in full; of later steps only what changes."""
    lines = ["# step 0", *(f"{k} = {json.dumps(v)}" for k, v in flat_config(run.records[0]).items())]
    for before, record in zip(run.records, run.records[1:], strict=False):
        known = flat_config(before)
        changed = {k: v for k, v in flat_config(record).items() if known.get(k) != v}
        if changed:
            lines += [f"# from step {record['step']} on", *(f"{k} = {json.dumps(v)}" for k, v in changed.items())]
    return "\n".join(lines)
