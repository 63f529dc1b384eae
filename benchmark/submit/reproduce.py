"""A recorded run, trained again from what its records say: what is compared, and what may be expected of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from contseg.benchmark.plan.config import Config, checked
from contseg.benchmark.plan.protocol import from_record
from contseg.benchmark.score.metrics import StepScore, score_step
from contseg.benchmark.score.recompute import config_of
from contseg.benchmark.score.records import Record, Run, read_record
from contseg.datasets.errors import UserError

SAME_SETUP = ("device", "processes", "threads")


def chain_of(path: Path) -> Run:
    """The recorded steps that lead to a record, which is the last of them. Raises ``UserError``.

    The earlier ones lie beside it, as ``run`` writes them.
    """
    if not path.is_file():
        raise UserError(f"there is no record {path}")
    last = _read(path)
    chain = [_read(path.with_name(f"step{t}.json"), last) for t in range(last["step"])]
    return Run((*chain, last))


def _read(path: Path, last: Record | None = None) -> Record:
    if last is not None and not path.is_file():
        raise UserError(f"{path} is missing: the settings of every step up to {last['step']} are needed, put it back")
    record, why = read_record(path)
    if record is None:
        raise UserError(f"{path} is no record that can be used: {why}")
    if last is not None and (record["run"], record["seed"]) != (last["run"], last["seed"]):
        raise UserError(f"{path} is of another run than step {last['step']}: copy the folder as `run` wrote it")
    return record


def grid_of(run: Run, data: dict[str, str], plugins: Sequence[str]) -> Config:
    """The configuration that trains a recorded run again. Raises ``UserError``."""
    try:
        config = config_of(run)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{run}: its configuration is not one of this version of contseg ({error})") from None
    return checked(replace(config, data=data, plugins=tuple(plugins)))


def other_seeds(path: Path, last: Record) -> list[Record]:
    """The records of the same step under other seeds, where they lie beside this one; one for each seed.

    They are of the same data set, task, setup, method and configuration, and learn the classes in the same order; a
    damaged one is left out.
    """
    found: dict[int, Record] = {}
    methods = [*path.resolve().parents][2:3]  # none of a record that was taken out of its folder
    for other in sorted(p for folder in methods for p in folder.glob(f"*/seed*/{path.name}")):
        record = read_record(other)[0] if other != path.resolve() else None
        same = ("dataset", "task", "order", "setup", "method", "step", "config", "protocol", "groups", "domains")
        if record and record["seed"] != last["seed"] and all(record.get(k) == last.get(k) for k in same):
            found.setdefault(record["seed"], record)
    return [found[seed] for seed in sorted(found)]


@dataclass(frozen=True)
class Comparison:
    """Stored records beside new ones of the same steps. ``seeds``: records of the last step under other seeds."""

    stored: tuple[Record, ...]
    new: tuple[Record, ...]
    seeds: tuple[Record, ...] = ()

    @property
    def keys(self) -> bool:
        """Whether the keys of all steps and evaluations agree."""
        names = ("step_key", "key")
        return all(a.get(n) == b.get(n) for a, b in self._pairs for n in names)

    @property
    def equal(self) -> bool:
        """Whether every count is equal."""
        return all(a["matrix"] == b["matrix"] for a, b in self._pairs)

    @property
    def _pairs(self) -> list[tuple[Record, Record]]:
        return list(zip(self.stored, self.new, strict=True))

    @property
    def same_setup(self) -> bool:
        """Whether device, processes, threads and versions are the recorded ones, as far as a record says them."""
        a, b = self.stored[-1], self.new[-1]
        return a["versions"] == b["versions"] and all(
            a["provenance"].get(name) == b["provenance"].get(name) for name in SAME_SETUP
        )

    def expected(self) -> tuple[float, float] | None:
        """Where mIoU of one more seed lies with 95 % probability: (low, high) in per cent; three recorded seeds needed.

        Student's prediction interval, mean ± t s sqrt(1 + 1/n).
        """
        values = [_miou(r) for r in (self.stored[-1], *self.seeds)]
        if (n := len(values)) < 3:
            return None
        half = float(student.ppf(0.975, n - 1)) * stdev(values) * math.sqrt(1 + 1 / n)
        return mean(values) - half, mean(values) + half

    def verdict(self) -> tuple[bool, str]:
        """Whether the run is reproduced, and the sentence that says so.

        What is promised is the table "What is equal to the last bit" of docs/running.md.
        """
        if not self.keys:
            return False, "not the same run: its keys are not those of its configuration, code and data here"
        if self.equal:
            return True, "reproduced: every count is equal"
        where = (
            "device, versions, processes and threads are the recorded ones: on the very machine, on a CPU, every count "
            "would be equal, so this is another processor, a GPU, or other code"
            if self.same_setup
            else "device, versions, processes or threads are not the recorded ones: equal counts are not promised"
        )
        expected, here = self.expected(), _miou(self.new[-1])
        if expected is None:
            return False, (
                f"counts differ. {where}. Then a run is like one of another seed, and how far seeds lie apart is not "
                f"known from {len(self.seeds) + 1} of them: no verdict (three give one, this seed included)"
            )
        low, high = expected
        inside = low <= here <= high
        return inside, (
            f"{'reproduced within' if inside else 'not reproduced: outside'} what another seed gives. Counts differ. "
            f"{where}. mIoU {here:.2f}; one more seed lies between {low:.2f} and {high:.2f} with 95 % probability "
            f"(from {len(self.seeds) + 1} recorded seeds)"
        )

    def differing_code(self) -> list[str]:
        """Our files that made the stored record and are others now; empty too where a record does not name them."""
        a, b = (_files(r) for r in (self.stored[-1], self.new[-1]))
        return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)) if a and b else []

    def table(self) -> str:
        """IoU of every class after the last step, and mIoU after every step: stored, new, difference, in per cent."""
        rows = []
        last, again = self._pairs[-1]
        pairs = zip(last["channels"], _score(last).iou.values(), _score(again).iou.values(), strict=True)
        rows += [[last["class_names"][k], *_three(a, b)] for k, a, b in pairs]
        rows += [[f"mIoU, step {a['step']}", *_three(_miou(a), _miou(b))] for a, b in self._pairs]
        head = [f"after step {last['step']}", "stored", "new", "difference"]
        return str(tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 3)))


def _files(record: Record) -> dict[str, str]:
    code = record["provenance"].get("code") or {}
    return {k: v for part in ("training", "evaluation") for k, v in (code.get(part) or {}).get("files", {}).items()}


def _score(record: Record) -> StepScore:
    return score_step(record, from_record(record["protocol"]))


def _miou(record: Record) -> float:
    """mIoU over all that is seen so far, under the record's protocol."""
    steps = (record.get("domains") or record["groups"])[: record["step"] + 1]
    return _score(record).miou([*([] if record.get("domains") else [0]), *(part for step in steps for part in step)])


def _three(a: float, b: float) -> list[str]:
    return ["-" if np.isnan(x) else f"{x:{form}}" for x, form in ((a, ".2f"), (b, ".2f"), (b - a, "+.2f"))]
