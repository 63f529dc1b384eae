"""Somebody else's records: are they whole, do they agree with themselves, with the data and with their own keys?

What is refused is refused with every reason. A run is accepted or refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmark.config import TrainConfig
from benchmark.protocol import from_record, parse_protocol
from benchmark.records import Record, Run, gather_runs
from benchmark.store import cell_path, digest, read_sealed, write_sealed
from datasets.errors import UserError

# the keys (of training, of evaluation) that a run's steps should have; raises UserError where they cannot be known
Recompute: TypeAlias = Callable[[Run], list[tuple[str, str]]]
# how many test pixels bear each raw label, void last, as this record was evaluated; None where the data is not here
Pixels: TypeAlias = Callable[[Record], Sequence[int] | None]


def verify(
    records: Iterable[Record],
    known: Iterable[Record] = (),
    pixels: Pixels = lambda record: None,
    recompute: Recompute | None = None,
) -> list[tuple[Run, list[str]]]:
    """Every run with the reasons against it; none: it is accepted.

    ``known``: records that are trusted already; their test sets are the measure where the data itself is not here.
    """
    totals: dict[Any, tuple[int, ...]] = {}
    for record in known:
        totals.setdefault(_test_set(record), truth(record))
    return [(run, _faults(run, totals, pixels, recompute)) for run in gather_runs(records)]


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
    made, planned = record["cost"].get("updates"), _planned_updates(record)
    if planned is not None and made != planned:
        faults.append(f"evaluated after {made} updates, not after the last of {planned}")
    return faults


def truth(record: Record) -> tuple[int, ...]:
    """Test pixels by raw label, void last."""
    both = [np.asarray(record["matrix"][part], dtype=np.int64).sum(1) for part in ("seen", "unseen")]
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
    """The last update of the schedule, from the record's own configuration and number of pictures."""
    if record["cost"].get("trained_parameters") == 0:
        return 0
    pictures = record.get("sees", {}).get("pictures")
    if pictures is None:
        return None
    return TrainConfig(**tuples(record["config"]["train"])).plan_updates(pictures)


def tuples(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a record's configuration as the dataclasses have it: JSON's lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def _key_faults(run: Run, recompute: Recompute) -> list[str]:
    try:
        keys = recompute(run)
    except UserError as error:
        return [f"its keys cannot be recomputed here: {error}"]
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
        if place.exists() and read_sealed(place) != record:
            return [f"{place} is there already, with other numbers"]
    for place, record in places.items():
        write_sealed(place, record)
    return []


def record_path(record: Record) -> Path:
    """Where a record stands below ``records``."""
    return cell_path(*(record[k] for k in ("dataset", "task", "order", "setup", "method", "run", "seed", "step")))
