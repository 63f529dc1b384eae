"""What the page over tasks says: methods by the normalised score of all tasks, and what the numbers do not carry."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from contseg.benchmark.report.tables import over_rows
from contseg.benchmark.score.over_tasks import OverTasks, no_interval, no_ranks, over_tasks, said, summary
from contseg.benchmark.score.scores import plain_name
from contseg.benchmark.site import catalogue as pages
from contseg.benchmark.site.catalogue import Catalogue


def about(catalogue: Catalogue) -> list[dict[str, Any]]:
    """A comparison for each kind of rows that may be ranked together, of every protocol; none without two tasks.

    One that has no score has no rows, and its lines say why.
    """
    marked = {(*row.key, row.cell["method"]) for row in catalogue.rows if row.unscored}
    return [_comparison(over, marked) for board in catalogue.boards for over in over_tasks(board)]


def _comparison(over: OverTasks, marked: Collection[tuple[str, ...]]) -> dict[str, Any]:
    """``marked``: the rows, as contest and method, with runs that were not scored again."""
    if not over.methods:
        return {"title": over.title, "rows": [], "best": None, "refused": [], "unscored": False, "lines": said(over)}
    head, rows = over_rows(over)
    methods = [pages.method_page(plain_name(m)) for m in over.methods]
    unscored = [any((*block, m) in marked for block in over.blocks) for m in over.methods]
    best = summary(over)["iqm"].argmax()
    refused = [no_interval(len(over.seeds)), no_ranks(len(over.blocks), len(over.methods))]
    return {
        "title": over.title,
        "columns": head,
        "rows": [
            {"page": page, "cells": cells, "unscored": mark}
            for page, cells, mark in zip(methods, rows, unscored, strict=True)
        ],
        "best": {"name": over.names[best], "iqm": rows[best][head.index("IQM")]},
        "refused": [line for line in refused if line],
        "unscored": any(unscored),
        "tasks": [("/".join(b[:3]), pages.scenario_page((b[0], b[1], b[2]))) for b in over.blocks],
        "by_task": [
            {"page": page, "name": name, "cells": [f"{v:.3f}" for v in cells]}
            for page, name, cells in zip(methods, over.names, over.cells, strict=True)
        ],
        "lines": said(over),
    }
