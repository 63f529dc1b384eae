"""Runs -> one row a run -> one row a cell.

A *cell* is (data set, task, setup, protocol, method); its row gives mean and standard deviation over seeds. Cells are
compared only within one *contest*: the same data set, task, setup, and protocol in every part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import pandas as pd

from benchmark.metrics import score_run
from benchmark.protocol import Protocol, from_record, scored_as
from benchmark.records import Run, flat_config

CONTEST = ["dataset", "task", "setup", "protocol"]
CELL = [*CONTEST, "method"]
WITH_STD = ["old", "new", "all", "avg", "forgetting"]
METRICS = [
    *WITH_STD,
    "step0",
    "backward_transfer",
    "plasticity",
    "harmonic",
    "accuracy",
    "old_foreground",
    "all_foreground",
    "to_ft",
    "to_joint",
]
COST = ["images", "updates", "seconds", "peak_memory_mb", "parameters"]
COLUMNS = [
    *CELL,
    "seeds",
    *(name for metric in WITH_STD for name in (metric, f"{metric}_std")),
    *METRICS[len(WITH_STD) :],
    *COST,
]
# the order of rows where no grid gives one: the literature's, FT first; what is not named comes after, Joint last
ORDER = [
    *("FT", "EWC", "PI", "RW", "LwF", "LwF-MC", "ILT", "CIL", "MiB"),
    *("SDR", "PLOP", "UCD", "RCIL", "REMINDER", "SSUL", "DKD", "EWF"),
]
# what all methods of a contest share (step 0), or what only repeats another column, has no winner
RANKED = [m for m in METRICS if m not in ("step0", "to_ft", "to_joint")]
LOWER_IS_BETTER = {"forgetting", *COST}

Groups: TypeAlias = tuple[tuple[int, ...], ...]
Place: TypeAlias = tuple[str, str]  # task and setup


def run_frame(runs: Sequence[Run], names: dict[int, str], protocol: Protocol) -> pd.DataFrame:
    """One row a complete run, and for Joint one in every table that shows it; ``names`` by ``id`` of the run."""
    rows = [_row(run, groups, protocol, place, names[id(run)]) for run, place, groups in _placed(runs)]
    frame = pd.DataFrame(rows, columns=[*CELL, "seed", *METRICS[:-2], *COST])
    return _with_differences(frame.drop_duplicates([*CELL, "seed"], keep="last", ignore_index=True))


def _placed(runs: Sequence[Run]) -> Iterable[tuple[Run, tuple[str, str], Groups]]:
    """Every run with the tables it is shown in: its own task, or for Joint every task of its data set."""
    tasks: dict[str, dict[Place, Groups]] = defaultdict(dict)
    for run in runs:
        if not run.is_joint:
            tasks[run.dataset][run.task, run.setup] = run.groups
    for run in runs:
        if not run.is_joint or not tasks[run.dataset]:
            yield run, (run.task, run.setup), run.groups
    for dataset, places in tasks.items():
        offline = [r for r in runs if r.is_joint and r.dataset == dataset]
        for place, groups in places.items():
            own_setup = [r for r in offline if r.setup == place[1]] or offline
            for run in {(r.method, r.seed, r.last["key"]): r for r in own_setup}.values():
                yield run, place, groups


def _row(run: Run, groups: Groups, asked: Protocol, place: Place, name: str) -> dict[str, Any]:
    label = scored_as(from_record(run.last["protocol"]), asked)
    if run.last.get("split", "val") == "tune":
        label += ", on the held-out fifth of the training images"
    costs = [r["cost"] for r in run.records]
    return {
        "dataset": run.dataset,
        "task": place[0],
        "setup": place[1],
        "protocol": label,
        "method": name,
        "seed": run.seed,
        **score_run(run.records, asked, groups).summary(),
        "images": sum(c.get("images", 0) for c in costs),
        "updates": sum(c.get("updates", 0) for c in costs),
        "seconds": sum(c.get("seconds", 0.0) for c in costs),
        "peak_memory_mb": max(c.get("peak_memory_mb", 0.0) for c in costs),
        "parameters": costs[-1].get("parameters", 0),
    }


def identity(run: Run) -> dict[str, Any]:
    """The settings that make two runs different experiments; workers, trackers and folders do not."""
    return {
        f"step {r['step']} {name}": value
        for r in run.records
        for name, value in flat_config(r).items()
        if name.split(".")[0] in ("model", "train", "eval")
    }


def same_cell(runs: Sequence[Run]) -> Iterable[list[Run]]:
    cells: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.dataset, run.task, run.setup, run.method].append(run)
    return cells.values()


def row_names(runs: Sequence[Run]) -> dict[int, str]:
    """Names by ``id``: ``MiB (2)`` for a second configuration in one cell, so that seeds of two are never averaged."""
    names: dict[int, str] = {}
    for cell in same_cell(runs):
        kinds: list[dict[str, Any]] = []
        for run in cell:
            kind = identity(run)
            if kind not in kinds:
                kinds.append(kind)
            number = kinds.index(kind) + 1
            names[id(run)] = run.method if number == 1 else f"{run.method} ({number})"
    return names


def _with_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """``to_ft`` and ``to_joint``: all mIoU minus that of FT and of Joint with the same seed, in the same contest."""
    for column, reference in (("to_ft", "FT"), ("to_joint", "Joint")):
        those = frame[frame["method"] == reference].drop_duplicates([*CONTEST, "seed"], keep="last")
        lookup = those.set_index([*CONTEST, "seed"])["all"]
        keys = pd.MultiIndex.from_frame(frame[[*CONTEST, "seed"]])
        frame[column] = frame["all"].to_numpy() - lookup.reindex(keys).to_numpy()
    return frame


def cell_frame(frame: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds, in the columns and the order of the printed table."""
    grouped = frame.groupby(CELL, sort=False)
    cells = grouped[[*METRICS, *COST]].mean()
    cells.insert(0, "seeds", grouped.size())
    for name in WITH_STD:
        cells[f"{name}_std"] = grouped[name].std(ddof=1)
    cells = cells.reset_index()
    places = cells[CONTEST].agg(" ".join, axis=1) if len(cells) else []
    rank = [(_natural(place), _method_rank(m, order)) for place, m in zip(places, cells["method"], strict=True)]
    cells = cells.iloc[sorted(range(len(cells)), key=rank.__getitem__)].reset_index(drop=True)
    return cells[COLUMNS].astype(dict.fromkeys(("images", "updates", "parameters"), int))


def _natural(text: str) -> tuple[Any, ...]:
    """Numbers in a name compare as numbers: 5-1 comes before 15-1."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text) if p)


def plain_name(method: str) -> str:
    """``MiB[kd=10]+SDR (2)`` -> ``MiB+SDR``: the method without its parameters."""
    return re.sub(r"\[[^\]]*\]| \(\d+\)$", "", method)


def _method_rank(name: str, order: Sequence[str]) -> tuple[Any, ...]:
    plain, written = plain_name(name), name.split(" (")[0]
    if plain in ("FT", "Joint"):
        return (0 if plain == "FT" else 9, 0, "", name)
    if written in order:
        return (1, list(order).index(written), "", name)
    first = plain.split("+")[0]
    return (2, ORDER.index(first) if first in ORDER else len(ORDER), plain, name)
