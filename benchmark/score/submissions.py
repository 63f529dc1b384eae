"""Checks of submitted records: are they complete, and do they agree with each other, the data, their keys and networks?

A run is accepted or refused as a whole; a refusal lists every reason. A seal has no secret key: it shows that nothing
was damaged, not who wrote a record. A run is accepted only if its stored weights give its numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from contseg.benchmark.plan.config import TrainConfig
from contseg.benchmark.plan.protocol import from_record, parse_protocol
from contseg.benchmark.score.records import Record, Run, crop_of, gather_runs
from contseg.benchmark.store.files import cell_path, digest, read_sealed, write_sealed
from contseg.datasets.errors import UserError

# the keys (training, evaluation) that a run's steps should have; UserError if they cannot be computed
Recompute: TypeAlias = Callable[[Run], list[tuple[str, str]]]
# test pixels of each raw label, void last, under this record's evaluation; None if the data are not available
Pixels: TypeAlias = Callable[[Record], Sequence[int] | None]
Matrix: TypeAlias = dict[str, Any]
# a record's matrix, counted again with its network; None without a network; UserError if it cannot be scored
Rescore: TypeAlias = Callable[[Record], Matrix | None]

PARTS = ("seen", "unseen")
SCORED = "scored again by its networks"  # of an accepted submission: what a leaderboard may say of its runs
CONSISTENT = "consistent, not scored again"
# by precision: the share of a class's pixels whose prediction may differ on another machine; at least FEW pixels
SAME = {"no": 0.001, "double": 0.001, "bf16": 0.01, "fp16": 0.01}
FEW = 10
OTHER_PIXELS = "its network was scored on other pixels than the record counts"


class UntrueError(UserError):
    """A record says of itself what is not so, though its keys are right."""


@dataclass(frozen=True)
class Verdict:
    """The result of the checks of a run. ``faults``: reasons to refuse it; ``unscored``: steps without weights."""

    run: Run
    faults: tuple[str, ...]
    unscored: tuple[int, ...]

    @property
    def accepted(self) -> bool:
        """No fault, and every step was scored again from its weights."""
        return not self.faults and not self.unscored

    def __str__(self) -> str:
        if self.faults:
            return f"refused: {self.run}: {'; '.join(self.faults)}"
        if self.unscored:
            steps = ", ".join(map(str, self.unscored))
            return f"consistent, not re-scored: {self.run}: no weights of step {steps} beside its records"
        return f"accepted: {self.run}"


def verify(
    records: Iterable[Record],
    known: Iterable[Record] = (),
    pixels: Pixels = lambda record: None,
    recompute: Recompute | None = None,
    rescore: Rescore = lambda record: None,
) -> list[Verdict]:
    """A verdict on every run. Consistent records can still be invented; only the weights prove them.

    ``known``: trusted records; their test sets are the reference if the data are not available.
    """
    totals: dict[Any, tuple[int, ...]] = {}
    for record in known:
        totals.setdefault(_test_set(record), truth(record))
    verdicts = []
    for run in gather_runs(records):
        faults, unscored = _faults(run, totals, pixels, recompute), []
        for record in run.records if not faults else ():
            try:
                matrix = rescore(record)
                fault = disagreement(record, matrix) if matrix is not None else None
            except UserError as error:
                matrix, fault = {}, str(error)
            faults += [f"step {record['step']}: {fault}"] if fault else []
            unscored += [record["step"]] if matrix is None else []
        verdicts.append(Verdict(run, tuple(faults), tuple(unscored)))
    return verdicts


def disagreement(record: Record, matrix: Matrix) -> str | None:
    """How a record's matrix differs from its network's, beyond what machines explain; ``None`` if it does not.

    A class may gain or lose the share ``SAME`` of its pixels (labelled or predicted, whichever are more), or ``FEW``
    pixels. Its IoU then moves by at most twice that share. By domain this holds in each domain's matrix.
    """
    mine, theirs = (m.get("domains", {}) for m in (record["matrix"], matrix))
    if mine.keys() != theirs.keys():
        return OTHER_PIXELS
    for domain in mine:
        if fault := _disagreement(record, {**matrix, "seen": mine[domain]}, {**matrix, "seen": theirs[domain]}):
            return f"{domain}: {fault}"
    return _disagreement(record, record["matrix"], matrix)


def _disagreement(record: Record, mine: Matrix, matrix: Matrix) -> str | None:
    here, there = (np.stack([np.asarray(m[part], dtype=np.int64) for part in PARTS]) for m in (mine, matrix))
    if here.shape != there.shape or (here.sum(2) != there.sum(2)).any():
        return OTHER_PIXELS
    moved = np.abs(here - there).sum((0, 1))
    given = np.maximum(here.sum((0, 1)), there.sum((0, 1)))
    size = np.maximum(given, here.sum((0, 2))[record["channels"]])
    share = SAME.get(record["config"]["train"].get("precision"), SAME["no"])
    excess = moved - np.maximum(FEW, share * size)
    if (excess <= 0).all():
        return None
    k = int(excess.argmax())
    name = record["class_names"][record["channels"][k]]
    return f"its network does not give these counts ({name}: {moved[k]:,} of {size[k]:,} pixels differ)"


def _faults(run: Run, totals: dict[Any, tuple[int, ...]], pixels: Pixels, recompute: Recompute | None) -> list[str]:
    if not run.complete:
        there = [r["step"] for r in run.records]
        return [f"incomplete: steps {there} of {run.last['steps']}"]
    steps: dict[str, list[str]] = {}
    for record in run.records:
        for fault in _record_faults(record, totals, pixels):
            steps.setdefault(fault, []).append(str(record["step"]))
    faults = [f"step {', '.join(where)}: {fault}" for fault, where in steps.items()]
    if any(r["groups"] != run.last["groups"] or r["class_names"] != run.last["class_names"] for r in run.records):
        faults.append("the steps do not agree in their classes")
    if any(r["protocol"] != run.last["protocol"] for r in run.records):
        faults.append("the steps do not agree in their protocol")
    if run.last["protocol"]["eval_view"] == "crop" and len({crop_of(r) for r in run.records}) > 1:
        faults.append("the steps do not agree in the size of their test images")
    if digest([r["key"] for r in run.records]) != run.last["run"]:
        faults.append("the run's key is not that of its steps")
    if recompute is not None and not faults:
        faults += _key_faults(run, recompute)
    return faults


def _record_faults(record: Record, totals: dict[Any, tuple[int, ...]], pixels: Pixels) -> list[str]:
    try:
        stored = from_record(record["protocol"])
        named = parse_protocol(stored.name)
    except UserError as error:
        return [str(error)]
    faults = []
    if named != stored:
        faults.append(f"its protocol is called {stored.name}, with other fields than that one")
    if record.get("split") != "val":
        faults.append("scored on held-out training images, not on the test set")
    here, expected = truth(record), pixels(record)
    first = totals.setdefault(_test_set(record), here)
    if expected is not None and tuple(expected) != here:
        faults.append(f"its matrix does not have the data set's pixel counts ({_first(here, expected, record)})")
    elif expected is None and first != here:
        faults.append(f"its matrix counts other pixels than other records ({_first(here, first, record)})")
    if np.asarray(record["matrix"]["unseen"])[record["channels"][1:]].any():
        faults.append("images without a seen class have pixels of a seen class")
    try:
        made, planned = record["cost"].get("updates"), _planned_updates(record)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        return [*faults, f"its configuration is not one of this suite ({error})"]
    if planned is not None and made != planned:
        faults.append(f"evaluated after {made} updates, not after the last of {planned}")
    return faults


def truth(record: Record) -> tuple[int, ...]:
    """Test pixels of each raw label, void last."""
    both = [np.asarray(record["matrix"][part], dtype=np.int64).sum(1) for part in PARTS]
    return tuple(int(n) for n in both[0] + both[1])


def _test_set(record: Record) -> tuple[Any, ...]:
    view = record["protocol"].get("eval_view")
    by_domain = (record["setup"], str(record["domains"]), record["step"]) if record.get("domains") else ()
    return record["dataset"], record.get("split"), view, crop_of(record) if view == "crop" else None, *by_domain


def _first(here: Sequence[int], there: Sequence[int], record: Record) -> str:
    names = [*record["class_names"], "void"]
    if len(here) != len(there):
        return f"{len(here) - 2} classes, not {len(there) - 2}"
    k = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    return f"{names[k]}: {here[k]} instead of {there[k]}"


def _planned_updates(record: Record) -> int | None:
    """The planned number of updates, from the record's configuration and the images that an epoch shows."""
    if record["cost"].get("trained_parameters") == 0:
        return 0
    images = record.get("sees", {}).get("images")
    if images is None:
        return None
    if record.get("memory", {}).get("mix") == "append":
        images += record["sees"].get("stored", 0)
    return TrainConfig(**tuples(record["config"]["train"])).plan_updates(images)


def tuples(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a record's configuration with JSON's lists as tuples, as the dataclasses need it."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def _key_faults(run: Run, recompute: Recompute) -> list[str]:
    try:
        keys = recompute(run)
    except UntrueError as error:
        return [str(error)]
    except UserError as error:
        theirs = "; --plugin FILE.py runs their code" if run.last["config"].get("plugins") else ""
        return [f"its keys cannot be recomputed here: {error}{theirs}"]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        return [f"its keys cannot be recomputed, its configuration is not one of this suite ({error})"]
    for record, (step_key, score) in zip(run.records, keys, strict=True):
        if record.get("step_key") != step_key:
            return [f"step {record['step']}: its key is not that of its configuration, data and code"]
        if record["key"] != score:
            return [f"step {record['step']}: its key is not that of its evaluation"]
    return []


def merge(run: Run, records: Path) -> list[str]:
    """Copy an accepted run below ``records``, all or nothing. Returns the reason if other numbers are already there."""
    places = {records / record_path(r): r for r in run.records}
    for place, record in places.items():
        there = read_sealed(place)  # None: no file, or a damaged one, which is renamed
        if there is not None and there != record:
            return [f"{place} already exists, with other numbers"]
    for place, record in places.items():
        write_sealed(place, record)
    return []


def record_path(record: Record) -> Path:
    """The path of a record below ``records``."""
    keys = ("dataset", "task", "order", "setup", "method", "run", "seed", "step")
    return cell_path(**{k: record[k] for k in keys})
