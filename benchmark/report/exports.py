"""A leaderboard for papers and programs: LaTeX, JSON, and the metadata of a Hugging Face model card."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from contseg.benchmark.report.caption import caption
from contseg.benchmark.report.tables import cell_text, foot, literature_rows, over_rows, short_names, title
from contseg.benchmark.score.leaderboard import Leaderboard, paired_differences
from contseg.benchmark.score.over_tasks import OverTasks, over_tasks, said, summary
from contseg.benchmark.score.scores import CONTEST, METRICS, plain_name

LATEX_COLUMNS = {
    "method": "Method",
    "seeds": "$n$",
    "old": "Old",
    "new": "New",
    "all": "All",
    "avg": "Avg",
    "forgetting": "Forgetting",
    "to_joint": r"$\Delta$ Joint",
}
LITERATURE_HEAD = ["Method", "Old", "New", "All", "Old", "New", "All", r"$\Delta$ All", "Source"]
LITERATURE_SPANS = (
    r" & \multicolumn{3}{c}{measured} & \multicolumn{3}{c}{published} & & \\"
    "\n"
    r"\cmidrule(lr){2-4} \cmidrule(lr){5-7}"
)
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    '"': "''",
}
PREAMBLE = r"""\documentclass{article}
\usepackage[margin=20mm]{geometry}
\usepackage{booktabs}
\begin{document}"""


def escape(text: str) -> str:
    """The text with LaTeX's special characters escaped."""
    return "".join(ESCAPES.get(c, c) for c in text)


def as_latex(board: Leaderboard) -> str:
    """A document with one booktabs table for each contest; a table can be copied out, it needs booktabs only."""
    tables = []
    for key, part in board.contests():
        short = short_names(board, key[0])
        rows = []
        for i, row in zip(part.index.tolist(), part.to_dict("records"), strict=True):
            texts = {c: latex_number(cell_text(row, c)) for c in LATEX_COLUMNS}
            texts["method"] = escape(short[row["method"]])
            cells = [rf"\textbf{{{text}}}" if (i, c) in board.leaders else text for c, text in texts.items()]
            rows.append(" & ".join(cells) + r" \\")
        if plain_name(str(part["method"].iloc[-1])) == "Joint" and len(rows) > 1:
            rows.insert(-1, r"\midrule")
        tables.append(_table(f"{title(key)}. {caption(board, key)}", list(LATEX_COLUMNS.values()), rows))
        beside = literature_rows(board, key)
        if beside:
            lines = [" & ".join([*map(latex_number, r[:-1]), escape(r[-1])]) + r" \\" for r in beside]
            tables.append(_table(f"{title(key)}: measured and published", LITERATURE_HEAD, lines, LITERATURE_SPANS))
    lines_below = list[str]()
    for over in over_tasks(board):
        if over.methods:
            head, printed = over_rows(over)
            body = [" & ".join(map(latex_number, row)) + r" \\" for row in printed]
            tables.append(_table(over.title, [h[0].upper() + h[1:] for h in map(escape, head)], body))
        lines_below += said(over)
    lines_below += foot(board)
    notes = "\n\n".join(escape(line).replace(",", r",\allowbreak{}") for line in lines_below)  # long method names
    return (
        f"{PREAMBLE}\n"
        + "\n\n".join([*tables, f"{{\\footnotesize\\raggedright\\parindent=0pt\n{notes}\n\n}}", r"\end{document}"])
        + "\n"
    )


def latex_number(text: str) -> str:
    """A printed cell: a leading sign in math mode, ``-`` alone as a dash."""
    if text == "-":
        return "--"
    return f"${text.replace('±', chr(92) + 'pm')}$" if text[:1] in "+-" else escape(text)


def _table(caption: str, head: list[str], rows: list[str], spans: str = "") -> str:
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        f"\\caption{{{escape(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        *filter(None, [spans]),
        " & ".join(head) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """A value that JSON can hold: Python numbers; ``None`` for NaN and infinity."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain values for JSON."""
    rows: list[dict[str, Any]] = plain(frame.to_dict("records"))
    return rows


def as_json(board: Leaderboard) -> str:
    """All data of the tables: cells, runs, paired differences in ``all``, the comparison over tasks, published numbers,
    notes. The schema is ``docs/schemas/leaderboard.schema.json``."""
    value = {
        "protocol": board.protocol.as_dict(),
        "cells": records_of(board.frame),
        "significantly_best": sorted([i, c] for i, c in board.leaders),
        "runs": records_of(board.runs),
        "paired_differences": records_of(paired_differences(board)),
        "over_tasks": [over_as_dict(over) for over in over_tasks(board)],
        "published": records_of(board.literature),
        "notes": list(board.notes),
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def over_as_dict(over: OverTasks) -> dict[str, Any]:
    """A comparison over tasks as plain values: the score of each run, a summary of each method, and what was said."""
    places = [dict(zip(CONTEST, block, strict=True)) for block in over.blocks]
    scores = [
        {"method": method, **place, "seed": seed, "value": over.values[m, s, b]}
        for m, method in enumerate(over.methods)
        for b, place in enumerate(places)
        for s, seed in enumerate(over.seeds)
    ]
    return plain({"score": over.score, "summary": records_of(summary(over)), "scores": scores, "notes": said(over)})


def as_model_index(board: Leaderboard) -> str:
    """The ``model-index`` of a Hugging Face model card, as YAML front matter.

    One entry for each method, one result for each cell.
    """
    import yaml  # type: ignore[import-untyped]  # installed with accelerate

    models: dict[str, list[dict[str, Any]]] = {}
    for row in records_of(board.frame):
        metrics = [
            {"type": "mean_iou", "name": f"{name} mIoU (%)", "value": round(row[name], 2)}
            for name in METRICS[:4]
            if row[name] is not None
        ]
        where = "/".join(row[k] for k in ("dataset", "task", "setup"))
        about = {"protocol": row["protocol"], "seeds": row["seeds"]}
        models.setdefault(row["method"], []).append(
            {
                "task": {"type": "image-segmentation", "name": "Class-incremental semantic segmentation"},
                "dataset": {
                    "type": row["dataset"],
                    "name": where,
                    "config": row["task"],
                    "split": "validation",
                    "args": about,
                },
                "metrics": metrics,
            }
        )
    index = [{"name": name, "results": results} for name, results in models.items()]
    return (
        "---\n" + str(yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)) + "---\n"
    )
