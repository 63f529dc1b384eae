"""What a scenario's page says, its comparison of two methods class by class, and the front page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from contseg.benchmark.report.caption import caption
from contseg.benchmark.report.html import curve, literature, sortable
from contseg.benchmark.report.svg import line_chart
from contseg.benchmark.report.tables import TITLES, cell_text, foot, number
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.metrics import mean, part_name
from contseg.benchmark.score.scores import COST, one_order
from contseg.benchmark.site import catalogue as pages
from contseg.benchmark.site.catalogue import SETUPS, Catalogue, Place, Row
from contseg.benchmark.site.charts import Point, scatter

MAIN = ("method", "old", "new", "all")  # the columns that a phone shows at first
COLUMNS = [{"name": c, "title": t, "wide": c not in MAIN} for c, t in TITLES.items()]


def about(place: Place, catalogue: Catalogue) -> dict[str, Any]:
    """A scenario: its question, what is learned when, and one table for each protocol."""
    tables = catalogue.scenarios[place]
    groups = pages.groups_of(tables[0][0])
    names = pages.class_names(tables[0][0])
    contests = [_contest(rows) for rows in tables]
    boards = {id(rows[0].board): rows[0].board for rows in tables}.values()
    return {
        "title": " · ".join(place),
        "question": pages.question(place, groups),
        "setup": SETUPS.get(place[2], ""),
        "seed": tables[0][0].runs[0].run.seed if _own_orders(tables) else None,  # whose steps are shown
        "steps": [[part_name(k, names) for k in group] for group in groups],
        "contests": contests,
        "protocols": [c["protocol"] for c in contests],
        "published": any(c["published"] for c in contests),
        "columns": COLUMNS,
        "compare_page": pages.compare_page(place),
        "feet": [(board.protocol.name, _foot(board, place, catalogue)) for board in boards],
    }


def _foot(board: Leaderboard, place: Place, catalogue: Catalogue) -> list[str]:
    """The notes of a board without those that begin with another scenario or another data set."""
    others = {"/".join(other) for other in catalogue.scenarios if other != place}
    others |= {other[0] for other in catalogue.scenarios if other[0] != place[0]}
    starts = tuple(f"{other}{mark}" for other in others for mark in (":", ", "))  # ", tuned on ...": of some rows
    return [line for line in foot(board) if not line.startswith(starts)]


def _contest(rows: list[Row]) -> dict[str, Any]:
    board, key = rows[0].board, rows[0].key
    lines = [curve(row.short, row.runs, "all") for row in rows]
    points = [_point(row, kind) for kind, (like, _) in enumerate(pages.alike(rows)) for row in like]
    return {
        "protocol": key[3],
        "caption": caption(board, key),
        "rows": [_line(row) for row in rows],
        "published": _published(rows),
        "curves": Markup(line_chart(lines, f"mIoU of all classes over steps, {' · '.join(key)}", 460, 320)),
        "scatter": Markup(scatter(points, f"old against new mIoU, {' · '.join(key)}")),
        "seeds": max(len(row.runs) for row in rows),
        "board": board.protocol.name,
    }


def _line(row: Row) -> dict[str, Any]:
    cells = [
        {
            "text": row.short if c == "method" else cell_text(row.cell, c),
            "value": row.cell[c] if c == "method" else sortable(row.cell[c]),
            "bold": row.leads(c),
            "wide": c not in MAIN,
        }
        for c in TITLES
    ]
    return {
        "name": row.cell["method"],
        "page": pages.method_page(row.plain),
        "cells": cells,
        "runs": runs_of(row),
        "unscored": bool(row.unscored),
    }


def runs_of(row: Row) -> list[tuple[int, str, bool]]:
    """Seed and page of every run of a row, and whether it was not scored again."""
    return [(s.run.seed, pages.run_page(s.run), s.run.seed in row.unscored) for s in row.runs]


def _published(rows: list[Row]) -> list[dict[str, Any]]:
    """The literature's numbers of a contest, each with the source of that number."""
    short = {row.cell["method"]: row.short for row in rows}
    return [
        {
            "name": short[p["method"]],
            **{c: number(p[f"published_{c}"]) for c in ("old", "new", "all")},
            "difference": "-" if np.isnan(p["difference"]) else f"{p['difference']:+z.1f}",
            "citation": p["citation"],
        }
        for p in literature(rows[0].board, rows[0].key)
    ]


def _point(row: Row, kind: int) -> Point:
    cell = row.cell
    return Point(row.short, cell["old"], cell["new"], cell["old_std"], cell["new_std"], row.plain == "Joint", kind)


# --- class by class -------------------------------------------------------------------------------------------------


def compared(place: Place, tables: Sequence[list[Row]]) -> dict[str, Any]:
    """Every method's IoU of every class after the last step: as a table, and by seed for the comparison."""
    contests, own_orders = list[dict[str, Any]](), _own_orders(tables)
    for rows in tables:
        parts: list[tuple[str, int | None, Any]] = [*pages.parts_shown(rows[0].runs[0])]
        if own_orders:  # no class has one step
            parts = [(name, None, k) for name, _, k in sorted(parts, key=lambda p: (isinstance(p[2], int), p[2]))]
        finals = [{s.run.seed: [s.score.steps[-1].of(k) for _, _, k in parts] for s in row.runs} for row in rows]
        methods = [
            {"name": row.short, "seeds": {seed: [_rounded(v) for v in values] for seed, values in by_seed.items()}}
            for row, by_seed in zip(rows, finals, strict=True)
        ]
        means = [[number(mean(values)) for values in zip(*by_seed.values(), strict=True)] for by_seed in finals]
        lines = [(name, step, [column[i] for column in means]) for i, (name, step, _) in enumerate(parts)]
        contests.append(
            {"protocol": rows[0].key[3], "methods": methods, "lines": lines, "names": [r.short for r in rows]}
        )
    data = {c["protocol"]: {"classes": [[n, s] for n, s, _ in c["lines"]], "methods": c["methods"]} for c in contests}
    said: dict[str, Any] = {"title": " · ".join(place), "contests": contests, "data": data}
    return {**said, "scenario_page": pages.scenario_page(place), "own_orders": own_orders}


def _own_orders(tables: Sequence[list[Row]]) -> bool:
    """Whether the runs of a scenario have orders of their own."""
    return not one_order(s for rows in tables for row in rows for s in row.runs)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


# --- the front page -------------------------------------------------------------------------------------------------


def front(catalogue: Catalogue) -> dict[str, Any]:
    """Questions with what the tables answer, and the matrix of data sets x tasks."""
    questions, cells = [], dict[tuple[str, str], list[dict[str, Any]]]()
    for place, tables in catalogue.scenarios.items():
        entry: dict[str, Any] = {"page": pages.scenario_page(place), "title": " · ".join(place), "setup": place[2]}
        entry |= {"methods": len({row.plain for row in tables[0]}), "seeds": max(len(row.runs) for row in tables[0])}
        entry["best"] = [best for rows, kind in pages.alike(tables[0]) for best in _best(rows, kind)]
        entry["protocol"] = tables[0][0].key[3]
        asked = pages.question(place, pages.groups_of(tables[0][0]))
        questions.append({**entry, "question": asked, "about": SETUPS.get(place[2], ""), "place": place})
        cells.setdefault((place[0], place[1]), []).append(entry)
    datasets, tasks = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    runs = [shown[0][1].run for shown in catalogue.runs.values()]
    return {
        "questions": questions,
        "matrix": [(d, [(t, cells.get((d, t), [])) for t in tasks]) for d in datasets],
        "tasks": tasks,
        "datasets": datasets,
        "setups": list(dict.fromkeys(place[2] for place in catalogue.scenarios)),
        "n_runs": len(runs),
        "n_methods": len(catalogue.methods),
        "latest": max((str(run.last["provenance"].get("time", "")) for run in runs), default="")[:10],
        "versions": sorted({str(run.last["versions"]["contseg"]) for run in runs}),
    }


def _best(rows: Sequence[Row], kind: str) -> list[dict[str, Any]]:
    """The highest 'all' of rows that may be ranked together, whose ``kind`` is said; none if no number is known."""
    known = [row for row in rows if row.plain != "Joint" and not np.isnan(row.cell["all"])]
    best = max(known, key=lambda row: row.cell["all"], default=None)
    if best is None:
        return []
    said = {"name": best.short, "all": cell_text(best.cell, "all"), "kind": kind}
    return [{**said, "leads": best.leads("all"), "unscored": bool(best.unscored)}]


def results(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every result of a method, for its page."""
    shown = ("old", "new", "all", "to_joint", "forgetting", *COST)
    return [
        {
            "scenario": " · ".join(row.place),
            "page": pages.scenario_page(row.place),
            "protocol": row.key[3],
            "name": row.cell["method"],
            "cells": [
                {"text": cell_text(row.cell, c), "bold": row.leads(c), "value": sortable(row.cell[c])} for c in shown
            ],
            "runs": runs_of(row),
            "unscored": bool(row.unscored),
        }
        for row in rows
    ]
