"""What is said of a run that was trained again."""

import copy
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.submit import reproduce
from contseg.benchmark.submit.reproduce import Comparison, other_seeds
from contseg.tests.records import make_run, write_records


def changed(records: list[dict[str, Any]], **provenance: Any) -> tuple[dict[str, Any], ...]:
    """The same run with one pixel of class 1 lost to background at the last step."""
    other = copy.deepcopy(records)
    row = other[-1]["matrix"]["seen"][1]
    row[0], row[1] = row[0] + 1, row[1] - 1
    other[-1]["provenance"] |= provenance
    return tuple(other)


def test_equal_counts_are_reproduced_and_other_keys_are_another_run() -> None:
    stored = tuple(make_run())
    assert Comparison(stored, stored).verdict() == (True, "reproduced: every count is equal")
    other = tuple({**r, "step_key": "another"} for r in stored)
    same, text = Comparison(stored, other).verdict()
    assert not same and text.startswith("not the same run: its keys are not")


def test_the_interval_of_one_more_seed_is_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """10, 12, 14: mean 12, s = 2, t(0.975; 2) = 4.30265, so 12 ± 4.30265 * 2 * sqrt(4 / 3) = 12 ± 9.9366."""
    runs = [make_run(seed=s) for s in range(3)]
    values = dict(enumerate((12.0, 10.0, 14.0)))
    new = changed(runs[0], device="another")
    monkeypatch.setattr(reproduce, "_miou", lambda record: 21.9 if record is new[-1] else values[record["seed"]])
    compared = Comparison(tuple(runs[0]), new, (runs[1][-1], runs[2][-1]))
    assert compared.expected() == pytest.approx((12 - 9.93655, 12 + 9.93655), abs=1e-4)
    same, text = compared.verdict()
    assert same and text.startswith("reproduced within what another seed gives.")
    assert "are not the recorded ones: equal counts are not promised" in text
    monkeypatch.setattr(reproduce, "_miou", lambda record: 22.0 if record is new[-1] else values[record["seed"]])
    same, text = compared.verdict()
    assert not same and text.startswith("not reproduced: outside what another seed gives.")
    assert "one more seed lies between 2.06 and 21.94" in text
    same, text = Comparison(tuple(runs[0]), new, (runs[1][-1],)).verdict()
    assert not same and "no verdict (three give one, this seed included)" in text


def test_the_recorded_setup_promises_equal_counts() -> None:
    stored = make_run()
    assert (
        "on the very machine, on a CPU, every count would be equal"
        in Comparison(tuple(stored), changed(stored)).verdict()[1]
    )
    other = tuple({**r, "versions": {**r["versions"], "torch": "9"}} for r in changed(stored))
    assert "are not the recorded ones" in Comparison(tuple(stored), other).verdict()[1]


def test_the_table_has_every_class_and_step() -> None:
    stored = make_run(hit=lambda t, k: 0.5)
    lines = Comparison(tuple(stored), changed(stored)).table().splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        *("background", "class 1", "class 2", "class 3"),
        *("mIoU, step 0", "mIoU, step 1"),
    ]
    assert lines[3].split()[-3:] == ["50.00", "49.00", "-1.00"]
    assert lines[6].split()[-1] == "+0.00"


def test_other_seeds_are_those_of_the_same_configuration(tmp_path: Path) -> None:
    runs = [make_run(seed=s) for s in (0, 1, 2)]
    other = make_run(seed=3, config={"model": {"backbone": "other"}, "train": {}, "eval": {}})
    out = write_records(tmp_path, [r for run in (*runs, other) for r in run])
    (path,) = out.rglob("seed0/step1.json")
    assert [r["seed"] for r in other_seeds(path, runs[0][-1])] == [1, 2]


def test_a_record_outside_of_its_results_folder_has_no_other_seeds() -> None:
    """A reviewer downloads one record: ``/tmp/step0.json``."""
    assert other_seeds(Path("/step0.json"), make_run()[0]) == []


def test_a_seed_with_another_order_of_classes_says_nothing_of_this_one(tmp_path: Path) -> None:
    """``2-1@random``: every seed draws its own order, and how far orders lie apart is not how far seeds do."""
    orders = [((1, 2), (3,)), ((2, 3), (1,)), ((1, 2), (3,))]
    runs = [make_run(seed=s, groups=groups, order="random") for s, groups in enumerate(orders)]
    (path,) = write_records(tmp_path, [r for run in runs for r in run]).rglob("seed0/step1.json")
    assert [r["seed"] for r in other_seeds(path, runs[0][-1])] == [2]
