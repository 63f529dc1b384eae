"""What a run's page says: scores in every table, curves, losses, gradients, classes, confusion, cost, origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from contseg.benchmark.report.html import config_text, curve, none_of
from contseg.benchmark.report.svg import line_chart
from contseg.benchmark.report.tables import cost, number, term_name
from contseg.benchmark.score.metrics import scored_counts
from contseg.benchmark.score.records import Record, Run
from contseg.benchmark.score.scores import COST, Scored
from contseg.benchmark.site.catalogue import (
    Row,
    class_names,
    compare_page,
    method_page,
    parts_shown,
    run_id,
    scenario_page,
)
from contseg.benchmark.site.charts import confusion, loss_chart, norm_chart

CONFUSED = 12  # pairs of classes listed below a confusion matrix
COSTS = {
    "images": "training images seen",
    "updates": "optimiser updates",
    "seconds": "training time",
    "peak_memory_mb": "peak memory",
    "parameters": "parameters",
}


def about(shown: Sequence[tuple[Row, Scored]]) -> dict[str, Any]:
    """A run, first under the protocol of its own record. ``shown``: the rows that it is part of."""
    row, scored = shown[0]
    run, numbers = scored.run, scored.row()
    wholes = [curve(which, [scored], which) for which in ("old", "new", "all")]
    table = []
    for other, s in shown:
        values = [number(getattr(s.score, which)()) for which in ("old", "new", "all")]
        place = {"title": " · ".join(other.key), "page": scenario_page(other.place), "row": other.short}
        table.append({**place, "values": [*values, number(s.score.summary()["avg"])]})
    return {
        "title": f"{run.method}, seed {run.seed}",
        "method": run.method,
        "plain": row.plain,
        "method_page": method_page(row.plain),
        "scenario": " · ".join(row.key[:3]),
        "scenario_page": scenario_page(row.place),
        "compare_page": compare_page(row.place),
        "run": run.last["run"],
        "seed": run.seed,
        "table": table,
        "unscored": run.seed in row.unscored,
        "siblings": [(s.run.seed, run_id(s.run)) for s in row.runs],
        "curves": Markup(line_chart(wholes, f"old, new and all mIoU of {run.method} over steps", 460, 320)),
        "losses": [(name, Markup(chart)) for name, chart in _losses(run)],
        "norms": Markup(_norms(run)),
        "steps": [r["step"] for r in run.records],
        "classes": _classes(scored),
        "confusion": _confusion(row, scored),
        "cost": {COSTS[c]: cost(c, numbers[c]) for c in COST},
        "config": config_text(run),
        "command": run.last["provenance"].get("command", ""),
        "made": _made(run),
        "records": [_record(run, r) for r in run.records],
        "protocol": row.board.protocol.note() if row.key[3] == row.board.protocol.name else row.key[3],
    }


def record_file(run: Run, record: Record) -> str:
    """Where the site keeps a copy of a record."""
    return f"records/{run_id(run)}/step{record['step']}.json"


def _record(run: Run, record: Record) -> dict[str, Any]:
    return {"step": record["step"], "file": record_file(run, record), "key": record["key"]}


def _losses(run: Run) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(name for r in run.records for name in r.get("losses", {})))
    return [
        (name, chart)
        for name in names
        if (chart := loss_chart(name, [_floats(r.get("losses", {}).get(name, ())) for r in run.records]))
    ]


def _norms(run: Run) -> str:
    """The gradient norms of all terms, named with their weights; "" if no record has some."""
    found = [r.get("gradient_norms") or {"weights": {}, "norms": {}} for r in run.records]
    weights = {name: weight for f in found for name, weight in f["weights"].items()}
    shown = {name: term_name(name, weight) for name, weight in weights.items()}
    return norm_chart(list(shown.values()), [{shown[n]: v for n, v in f["norms"].items()} for f in found])


def _floats(values: Any) -> list[float]:
    return [float("nan") if v is None else float(v) for v in values]


def _classes(scored: Scored) -> list[dict[str, Any]]:
    """One line a class, in the order of learning: its IoU after every step. By domain, the domains come first."""
    lines = []
    for name, step, k in parts_shown(scored):
        values = [none_of(s.of(k)) for s in scored.score.steps]
        cells = [
            {"text": "" if v is None else f"{v:.1f}", "share": 0 if v is None else round(v / 100, 2)} for v in values
        ]
        lines.append({"name": name, "step": step, "cells": cells})
    return lines


def _confusion(row: Row, scored: Scored) -> dict[str, Any]:
    """The matrix of the last step, and what is most often taken for what."""
    last = scored.run.last
    counts = scored_counts(last, row.board.protocol).astype(float)
    names = [class_names(row)[k] for k in last["channels"]]
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    off = np.nan_to_num(shares.copy())
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSED]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    listed = [(names[i], names[j], f"{100 * off[i, j]:.1f}") for i, j in pairs if off[i, j] >= 0.0005]
    return {"chart": Markup(confusion(shares, names)), "pairs": listed}


def _made(run: Run) -> dict[str, str]:
    """How the run was made: only what its record says."""
    last, origin = run.last, run.last["provenance"]
    found = {
        "device": f"{origin.get('device', '')}, {origin.get('processes', 1)} process(es)",
        "versions": ", ".join(f"{k} {v}" for k, v in last["versions"].items()),
        "commit": origin.get("commit", ""),
        "finished": origin.get("time", ""),
        "plugins": ", ".join(map(str, origin.get("plugins") or ())),
        "training images, by step": ", ".join(str(r.get("sees", {}).get("images", "-")) for r in run.records),
    }
    return {k: v for k, v in found.items() if v}
