"""Whoever changes a record is found out, with the reason."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.records import Record, read_records
from benchmark.store import digest
from benchmark.verify import merge, record_path, truth, verify
from datasets.errors import UserError
from tests.records import make_run

TRUTH = (100, 100, 100, 100, 7)


def reasons(records: list[Record], **kwargs: object) -> list[str]:
    ((_, faults),) = verify(records, **kwargs)
    return faults


def test_an_honest_run_is_accepted() -> None:
    assert reasons(make_run()) == []
    assert reasons(make_run(), known=make_run("MiB"), pixels=lambda record: TRUTH) == []
    assert truth(make_run()[0]) == TRUTH


def unseen(record: Record) -> None:
    record["matrix"]["unseen"][1][0] += 5
    record["matrix"]["seen"][1][0] -= 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda r: r["matrix"]["seen"][3].__setitem__(0, 90),
            "step 1: its matrix counts other pixels than other records (class 3: 180 instead of 100)",
        ),
        (lambda r: unseen(r), "step 1: pixels of a seen class among the images without one"),
        (lambda r: r["cost"].update(updates=40), "step 1: evaluated after 40 updates, not after the last of 100"),
        (lambda r: r.update(split="tune"), "step 1: scored on held-out training images, not on the test set"),
        (
            lambda r: r.update(protocol={**r["protocol"], "absent_classes": "zero"}),
            "step 1: its protocol is called sdr, with other fields than that one",
        ),
        (
            lambda r: r.update(protocol={**r["protocol"], "name": "mine"}),
            "step 1: unknown protocol 'mine': did you mean 'mib'? Known: mib, plop, sdr, strict",
        ),
        (lambda r: r.update(class_names=["background", "a", "b", "c"]), "the steps do not agree in their classes"),
        (lambda r: r.update(key="0" * 64), "the run's key is not that of its steps"),
    ],
)
def test_a_changed_record_is_refused(change: Callable[[Record], object], reason: str) -> None:
    records = copy.deepcopy(make_run(hit=lambda t, k: 0.9))
    change(records[1])
    assert reason in reasons(records)


def test_steps_with_one_fault_are_named_together() -> None:
    faults = reasons(make_run(), pixels=lambda record: (100, 100, 100, 100, 8))
    assert faults == ["step 0, 1: its matrix does not count the data set's pixels (void: 7 instead of 8)"]


def test_a_step_of_which_nothing_trains_makes_no_update() -> None:
    records = make_run()
    records[1]["cost"].update(updates=0, trained_parameters=0)
    assert reasons(records) == []
    records[1]["cost"].update(updates=100)
    assert reasons(records) == ["step 1: evaluated after 100 updates, not after the last of 0"]


def test_a_run_with_a_step_missing_is_refused() -> None:
    assert reasons(make_run()[1:]) == ["incomplete: steps [1] of 2"]


def test_what_is_known_already_is_the_measure() -> None:
    records = make_run("Mine")
    for r in records:
        r["matrix"]["seen"][-1][0] = 9  # agrees with itself, not with the others
    assert reasons(records) == []
    assert reasons(records, known=make_run("FT")) == [
        "step 0, 1: its matrix counts other pixels than other records (void: 9 instead of 7)"
    ]


def test_keys_are_compared_with_the_recomputed_ones() -> None:
    records = make_run()
    for r in records:
        r["step_key"] = f"trained {r['step']}"
    right = [(r["step_key"], r["key"]) for r in records]
    assert reasons(records, recompute=lambda run: right) == []
    wrong = [right[0], ("another", right[1][1])]
    assert reasons(records, recompute=lambda run: wrong) == [
        "step 1: its key is not that of its configuration, data and code"
    ]
    wrong = [(right[0][0], "another"), right[1]]
    assert reasons(records, recompute=lambda run: wrong) == ["step 0: its key is not that of its evaluation"]


def test_keys_that_cannot_be_known_here_are_a_reason() -> None:
    def unknown_here(run: object) -> list[tuple[str, str]]:
        raise UserError("no data set toy here")

    assert reasons(make_run(), recompute=unknown_here) == ["its keys cannot be recomputed here: no data set toy here"]


def test_accepted_runs_are_merged_once_and_never_over_others(tmp_path: Path) -> None:
    records = make_run()
    ((run, _),) = verify(records)
    assert merge(run, tmp_path) == []
    assert merge(run, tmp_path) == []
    assert [r["key"] for r in read_records(tmp_path)[0]] == [r["key"] for r in records]
    other = copy.deepcopy(records)
    other[1]["cost"]["seconds"] = 0.1
    ((run, _),) = verify(other)
    assert merge(run, tmp_path) == [f"{tmp_path / record_path(records[1])} is there already, with other numbers"]
    assert read_records(tmp_path)[0] == records


def test_the_factory_keys_its_runs_as_the_suite_does() -> None:
    records = make_run()
    assert records[0]["run"] == digest([r["key"] for r in records])
