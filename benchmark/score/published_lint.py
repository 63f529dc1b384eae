"""An arithmetic check of printed triples: does ``all`` follow from ``old`` and ``new``?

There are a old and b new classes, without background. If background is left out, all = (a old + b new) / (a + b); if
it is an old class, all = ((a + 1) old + b new) / (a + b + 1). Each number is rounded by at most half a unit of its
last digit and the weights sum to one. So a formula fits if it is off by at most one unit of the last digit of ``all``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

CLASSES = {"voc": 20, "ade": 150}
BACKGROUND_IOU = (80.0, 97.0)  # the range of background's IoU on VOC, for the third case


def class_counts(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Numbers of old and new classes without background, from the task, else from the printed ranges; or ``None``."""
    base = re.match(r"(\d+)-\d", row["task"])
    if row["dataset"] in CLASSES and base:
        return int(base[1]), CLASSES[row["dataset"]] - int(base[1])
    old, new = (_size(row.get(c, "")) for c in ("old_classes", "new_classes"))
    return (old, new) if old and new else None


def _size(text: str) -> int:
    """``1-15`` or ``0-15`` -> 15, ``20`` -> 1; 0 for other text."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+))?\s*", text)
    if match is None:
        return 0
    first, last = max(int(match[1]), 1), int(match[2] or match[1])
    return last - first + 1


def unit(printed: str) -> float:
    """One unit of the last printed digit. Trailing zeros may be lost; at least one decimal is assumed."""
    return float(10 ** -max(1, len(printed.partition(".")[2].rstrip("0"))))


def verdict(row: Mapping[str, Any]) -> str:
    """Is background in the mean: ``yes``, ``no``, ``both`` fit, or a text why neither fits; empty without a triple."""
    counts = class_counts(row)
    if counts is None or any(pd.isna(row[c]) for c in ("old", "new", "all")):
        return ""
    a, b = counts
    old, new, printed = row["old"], row["new"], row["all"]
    within = unit(row["all_printed"]) + 1e-6
    off = {
        "yes": printed - ((a + 1) * old + b * new) / (a + b + 1),
        "no": printed - (a * old + b * new) / (a + b),
    }
    fits = [reading for reading, error in off.items() if abs(error) <= within]
    if fits:
        return fits[0] if len(fits) == 1 else "both"
    implied = (a + b + 1) * printed - a * old - b * new
    if BACKGROUND_IOU[0] <= implied <= BACKGROUND_IOU[1]:
        return f"fits only if background (implied IoU {implied:.0f}) is in all but not in old"
    return f"does not add up: off by {off['yes']:+.2f} with, {off['no']:+.2f} without background"


def lint(table: pd.DataFrame) -> list[str]:
    """One line for each triple that fits neither formula, or not the one that the table states; then the counts."""
    lines, checked = [], 0
    for row in table.to_dict("records"):
        found = verdict(row)
        checked += bool(found)
        where = f"{row['source']}: {row['method']} {row['dataset']}/{row['task']}/{row['setup']} " + "/".join(
            f"{row[c]:g}" for c in ("old", "new", "all")
        )
        if " " in found:
            lines.append(f"{where}: {found}")
        elif found in ("yes", "no") and row["includes_background"] not in ("unknown", found):
            lines.append(f"{where}: listed with background {row['includes_background']}, the numbers fit only {found}")
    return [*lines, f"{len(table)} printed results, {checked} complete triples, {len(lines)} that do not fit"]
