"""Somebody else's records: are they whole, do they agree with themselves, with the data, with their own keys, and with
the networks beside them?

What is refused is refused with every reason; a run is accepted or refused as a whole. A seal is made without a key:
it says that nothing broke on the way, not who wrote a record. Only weights that are scored again make a run accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from contseg.benchmark.plan.config import TrainConfig
from contseg.benchmark.plan.protocol import from_record, parse_protocol
from contseg.benchmark.score.records import Record, Run, gather_runs
from contseg.benchmark.store.files import cell_path, digest, read_sealed, write_sealed
from contseg.datasets.errors import UserError

# the keys (of training, of evaluation) that a run's steps should have; raises UserError where they cannot be known
Recompute: TypeAlias = Callable[[Run], list[tuple[str, str]]]
# how many test pixels bear each raw label, void last, as this record was evaluated; None where the data is not here
Pixels: TypeAlias = Callable[[Record], Sequence[int] | None]
Matrix: TypeAlias = dict[str, list[list[int]]]
# a record's matrix, counted again with its network; None where there is none; UserError where it cannot be scored
Rescore: TypeAlias = Callable[[Record], Matrix | None]

PARTS = ("seen", "unseen")
# by precision: the share of a class's pixels that may fall otherwise on another machine, and the pixels
SAME = {"no": 0.001, "double": 0.001, "bf16": 0.01, "fp16": 0.01}
FEW = 10


@dataclass(frozen=True)
class Verdict:
    """What is held of a run. ``faults``: reasons against it; ``unscored``: steps whose weights are not there."""

    run: Run
    faults: tuple[str, ...]
    unscored: tuple[int, ...]

    @property
    def accepted(self) -> bool:
        """Nothing speaks against it, and every step was scored again from its weights."""
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
    """A verdict on every run. Records can agree with each other and still be made up: only weights tell.

    ``known``: records that are trusted already; their test sets are the measure where the data itself is not here.
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
    """In what a record's matrix is not that of its network, as far as machines may differ.

    A class may gain or lose ``SAME`` of its pixels (of those that bear or were given it, whichever are more), or
    ``FEW``: its IoU then moves by at most twice that share.
    """
    here, there = (
        np.stack([np.asarray(m[part], dtype=np.int64) for part in PARTS]) for m in (record["matrix"], matrix)
    )
    if here.shape != there.shape or (here.sum(2) != there.sum(2)).any():
        return "its network was scored on other pixels than the record counts"
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
        faults.append(f"its matrix does not count the data set's pixels ({_first(here, expected, record)})")
    elif expected is None and first != here:
        faults.append(f"its matrix counts other pixels than other records ({_first(here, first, record)})")
    if np.asarray(record["matrix"]["unseen"])[record["channels"][1:]].any():
        faults.append("pixels of a seen class among the images without one")
    try:
        made, planned = record["cost"].get("updates"), _planned_updates(record)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        return [*faults, f"its configuration is not one of this suite ({error})"]
    if planned is not None and made != planned:
        faults.append(f"evaluated after {made} updates, not after the last of {planned}")
    return faults


def truth(record: Record) -> tuple[int, ...]:
    """Test pixels by raw label, void last."""
    both = [np.asarray(record["matrix"][part], dtype=np.int64).sum(1) for part in PARTS]
    return tuple(int(n) for n in both[0] + both[1])


def _test_set(record: Record) -> tuple[Any, ...]:
    crop = record["config"].get("eval", {}).get("crop") or record["config"].get("train", {}).get("crop") or []
    view = record["protocol"].get("eval_view")
    return record["dataset"], record.get("split"), view, tuple(crop) if view == "crop" else ()


def _first(here: Sequence[int], there: Sequence[int], record: Record) -> str:
    names = [*record["class_names"], "void"]
    if len(here) != len(there):
        return f"{len(here) - 2} classes, not {len(there) - 2}"
    k = next(i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)
    return f"{names[k]}: {here[k]} instead of {there[k]}"


def _planned_updates(record: Record) -> int | None:
    """The last update of the schedule, from the record's own configuration and number of images."""
    if record["cost"].get("trained_parameters") == 0:
        return 0
    images = record.get("sees", {}).get("images")
    if images is None:
        return None
    return TrainConfig(**tuples(record["config"]["train"])).plan_updates(images)


def tuples(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a record's configuration as the dataclasses have it: JSON's lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def _key_faults(run: Run, recompute: Recompute) -> list[str]:
    try:
        keys = recompute(run)
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
    """Copy an accepted run below ``records``, all of it or nothing; why not, if other numbers are there already."""
    places = {records / record_path(r): r for r in run.records}
    for place, record in places.items():
        there = read_sealed(place)  # None: none, or a damaged one that is set aside
        if there is not None and there != record:
            return [f"{place} is there already, with other numbers"]
    for place, record in places.items():
        write_sealed(place, record)
    return []


def record_path(record: Record) -> Path:
    """Where a record stands below ``records``."""
    keys = ("dataset", "task", "order", "setup", "method", "run", "seed", "step")
    return cell_path(**{k: record[k] for k in keys})
