"""Runs -> one row for each run -> one row for each cell.

A *cell* is (data set, task, setup, protocol, method); its row has mean and standard deviation over seeds. Cells are
compared only within one *contest*: the same data set, task, setup and protocol. Of these, rows are ranked together only
if they have one configuration, were tuned alike and knew the same data besides the task's (``ALIKE``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from contseg.benchmark.plan.external import recorded
from contseg.benchmark.plan.protocol import Protocol, from_record, scored_as
from contseg.benchmark.score.metrics import RunScore, score_run
from contseg.benchmark.score.records import Run, configurations, recipe_of
from contseg.benchmark.score.rows import NO_SEARCH, Search, Searches
from contseg.methods.grammar import with_recipe

CONTEST = ["dataset", "task", "setup", "protocol"]
CELL = [*CONTEST, "method"]
ALIKE = ["tuned_on", "external"]
WITH_STD = ["old", "new", "all", "avg", "forgetting"]
DIFFERENCES = ("to_ft", "to_joint")  # between runs
METRICS = [
    *WITH_STD,
    "step0",
    "backward_transfer",
    "plasticity",
    "harmonic",
    "accuracy",
    "old_foreground",
    "all_foreground",
    *DIFFERENCES,
]
COST = ["images", "updates", "seconds", "peak_memory_mb", "parameters"]
COLUMNS = [
    *CELL,
    "seeds",
    *(name for metric in WITH_STD for name in (metric, f"{metric}_std")),
    *METRICS[len(WITH_STD) :],
    *COST,
    *ALIKE,
]
# the order of rows without a grid's order: FT first, as in the literature; other methods after these, Joint last
ORDER = [
    *("FT", "EWC", "PI", "RW", "LwF", "LwF-MC", "ILT", "CIL", "MiB"),
    *("SDR", "PLOP", "UCD", "RCIL", "REMINDER", "SSUL", "DKD", "EWF"),
]
# no winner in a column that all methods share (step 0) or that repeats another column
RANKED = [m for m in METRICS if m not in ("step0", *DIFFERENCES)]
LOWER_IS_BETTER = {"forgetting", *COST}
TUNED = ", tuned on "  # between a method and the search that chose it
BOUND = "Joint[like="  # joint training of one method: the bound of that method, no reference of all
BRACKETS = r"\[(?:[^\[\]]|\[[^\]]*\])*\]"  # a parameter may be a method with parameters of its own

Groups: TypeAlias = tuple[tuple[int, ...], ...] | tuple[tuple[str, ...], ...]  # labels, or domains
Place: TypeAlias = tuple[str, str]  # task and setup


@dataclass(frozen=True)
class Scored:
    """A run in one table. ``cell``: the key of its row; ``configuration``: the number of its configuration.

    ``search``: the one that chose the row; ``None``: the method with the values in its name, no search is known.
    """

    run: Run
    cell: tuple[str, str, str, str, str]
    configuration: int
    score: RunScore
    search: Search | None = None

    @property
    def external(self) -> tuple[str, ...]:
        """The codes of what the run saw besides its task."""
        return recorded(self.run.last)

    def row(self) -> dict[str, Any]:
        """The run's numbers by column."""
        costs = [r["cost"] for r in self.run.records]
        return {
            **dict(zip(CELL, self.cell, strict=True)),
            "tuned_on": str(self.search or NO_SEARCH),
            "external": " ".join(self.external) or "none",
            "seed": self.run.seed,
            "configuration": self.configuration,
            **self.score.summary(),
            "images": sum(c.get("images", 0) for c in costs),
            "updates": sum(c.get("updates", 0) for c in costs),
            "seconds": sum(c.get("seconds", 0.0) for c in costs),
            "peak_memory_mb": max(c.get("peak_memory_mb", 0.0) for c in costs),
            "parameters": costs[-1].get("parameters", 0),
        }


def score_runs(runs: Sequence[Run], protocol: Protocol, tuned: Searches | None = None) -> list[Scored]:
    """All complete runs under a protocol, Joint under every task. Of two runs of one cell and seed, the later is kept.

    The method of a second configuration is called ``MiB (2)``: seeds of two configurations are never averaged. A run
    that a search chose is a row ``MiB, tuned on first, ...``; if it is the method's default, it is that row as well.
    """
    number = dict(zip(map(id, runs), configurations(runs), strict=True))
    scored: dict[tuple[Any, ...], Scored] = {}
    for run, (task, setup), groups in _placed(runs):
        n = number[id(run)]
        label = scored_as(from_record(run.last["protocol"]), protocol)
        if run.last.get("split", "val") == "tune":
            label += ", on the held-out fifth of the training images"
        name, score = run.method if n == 1 else f"{run.method} ({n})", score_run(run.records, protocol, groups)
        for search in searches_of(run, tuned or {}):
            cell = (run.dataset, task, setup, label, f"{name}{TUNED}{search}" if search else name)
            scored[cell, run.seed] = Scored(run, cell, n, score, search)
    return list(scored.values())


def one_order(runs: Iterable[Scored]) -> bool:
    """Whether these runs learn the same in the same steps; the seeds of ``@random`` have orders of their own."""
    return len({s.score.groups for s in runs}) == 1


def searches_of(run: Run, tuned: Searches) -> list[Search | None]:
    """The rows that a run stands in: one for each search that chose it; ``None`` for the one without a search.

    None at all if a search on the test images only tried it.
    """
    said = tuned.get(str(run.last["run"]), [])
    plain = not said or any(one.default for one in said)
    return [*([None] if plain else []), *(one.search for one in said if one.chosen)]


def _placed(runs: Sequence[Run]) -> Iterable[tuple[Run, Place, Groups]]:
    """Every run with the tables that show it: its own task; for Joint, every task of its classes.

    Joint has the groups of a run of its seed: in ``15-1@random`` every seed draws its own.
    """
    tasks: dict[tuple[Any, ...], dict[Place, dict[int, Groups]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if not run.is_joint:
            tasks[_kind(run)][run.task, run.setup][run.seed] = run.parts
    for run in runs:
        if not run.is_joint or not tasks[_kind(run)]:
            yield run, (run.task, run.setup), run.parts
    for kind, places in tasks.items():
        offline = [r for r in runs if r.is_joint and _kind(r) == kind]
        for place, groups in places.items():
            own_setup, last = [r for r in offline if r.setup == place[1]] or offline, [*groups.values()][-1]
            yield from ((run, place, groups.get(run.seed, last)) for run in own_setup)


def _kind(run: Run) -> tuple[Any, ...]:
    """Runs whose Joint may stand for another's: those of the same classes; by domain each setup has its own test
    images."""
    setup = run.setup if run.last.get("domains") else ""
    return run.dataset, setup, tuple(sorted(part for group in run.parts for part in group))


def run_frame(scored: Sequence[Scored]) -> pd.DataFrame:
    """One row for each run."""
    rows = [s.row() for s in scored]
    own = [m for m in METRICS if m not in DIFFERENCES]
    frame = pd.DataFrame(rows, columns=[*CELL, *ALIKE, "seed", "configuration", *own, *COST])
    return _with_differences(frame)


def _with_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """``to_ft``, ``to_joint``: all mIoU minus that of FT or Joint with the same contest, configuration and seed.

    Of several rows of FT that with the grid's own recipe. A tuned row is compared with FT and Joint as the same search
    chose them, and where it chose none, with those without a search: in all of its seeds with the same ones.
    """
    row = [*CONTEST, "configuration", "tuned_on"]
    alike = [*row, "seed"]
    wanted = frame[alike], frame[alike].assign(tuned_on=NO_SEARCH)
    for column, reference in (("to_ft", "FT"), ("to_joint", "Joint")):
        those = frame[(frame["method"].map(plain_name) == reference) & ~frame["method"].str.startswith(BOUND)]
        those = those.sort_values("method", key=lambda names: names.str.len(), kind="stable").drop_duplicates(alike)
        known = those.set_index(alike)["all"]
        same, plain = (known.reindex(pd.MultiIndex.from_frame(keys)).to_numpy() for keys in wanted)
        own = pd.MultiIndex.from_frame(frame[row]).isin(pd.MultiIndex.from_frame(those[row]))
        frame[column] = frame["all"].to_numpy() - np.where(own, same, plain)
    return frame


def cell_frame(frame: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds, with the columns and row order of the printed table."""
    grouped = frame.groupby([*CELL, *ALIKE], sort=False)
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
    """A sort key that compares numbers in names as numbers: 5-1 before 15-1."""
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text) if p)


def marked_name(method: str) -> str:
    """``MiB[kd=10]+SDR (2)`` -> ``MiB+SDR (2)``: without its parameters, with its recipe and the mark of its
    configuration."""
    mark = method.removeprefix(unmarked(method))
    return with_recipe(re.sub(BRACKETS, "", unmarked(method)), recipe_of(unmarked(method))) + mark


def unmarked(method: str) -> str:
    """``MiB[kd=10]+SDR (2), tuned on ...`` -> ``MiB[kd=10]+SDR``: without the marks of configuration and search."""
    return re.sub(r" \(\d+\)$", "", method.partition(TUNED)[0])


def configuration_of(method: str) -> int:
    """``MiB[kd=10] (2), tuned on ...`` -> 2; without a mark 1."""
    mark = re.search(r" \((\d+)\)$", method.partition(TUNED)[0])
    return int(mark[1]) if mark else 1


def plain_name(method: str) -> str:
    """``MiB[kd=10]+SDR (2)`` -> ``MiB+SDR``: the method for look-ups; not unique for rows."""
    return re.sub(BRACKETS, "", unmarked(method))


def _method_rank(name: str, order: Sequence[str]) -> tuple[Any, ...]:
    plain, written = plain_name(name), unmarked(name)
    if plain in ("FT", "Joint"):
        return (0 if plain == "FT" else 9, 0, 0, name)
    if written in order:
        return (1, list(order).index(written), 0, name)
    parts = plain.split("+")
    return (2, max(ORDER.index(p) if p in ORDER else len(ORDER) for p in parts), len(parts), name)
