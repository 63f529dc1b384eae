"""What a record says beside its keys: a submission that says it wrongly is refused, though every key is right."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from contseg.benchmark.plan.build import Plan
from contseg.benchmark.plan.config import identity
from contseg.benchmark.score import recompute
from contseg.benchmark.score.records import Run
from contseg.benchmark.score.submissions import OTHER_PIXELS, UntrueError, disagreement, verify
from contseg.benchmark.train.step_record import make_record
from contseg.tests.records import make_run
from contseg.tests.unit.probe import grid
from contseg.tests.unit.test_domain_steps import Tour

Record = dict[str, Any]


@pytest.fixture
def planned(tmp_path: Any) -> Plan:
    return Tour(tmp_path, ("FT",)).plan


def records_of(plan: Plan) -> list[Record]:
    """The records that the plan's only run would have, without counts."""
    (run,) = plan.runs
    told = {"model": identity(plan.config.model), "versions": {}, "provenance": {}, "cost": {}, "losses": {}}
    return [
        make_record(
            plan,
            run,
            t,
            {"matrix": {}, "seconds": 1.0},
            {**told, "train": identity(cell.node.train), "sees": {"images": len(cell.node.view.ids)}},
        )
        for t, cell in enumerate(run.cells)
    ]


def checked(plan: Plan, records: list[Record]) -> list[tuple[str, str]]:
    stored: Any = SimpleNamespace(dataset=plan.datasets.__getitem__)
    return recompute.keys(stored, Run(tuple(records)))


def test_the_true_records_have_their_keys(planned: Plan) -> None:
    assert checked(planned, records_of(planned)) == [(c.node.key, c.score) for c in planned.runs[0].cells]


@pytest.mark.parametrize("task", ["2-1", "[1-2|3]"])
def test_joint_of_some_classes_has_its_keys_too(task: str) -> None:
    plan = grid(method="Joint", scenario=f"mini/{task}/overlapped")
    assert plan.runs[0].scenario.task == "offline"
    assert checked(plan, records_of(plan)) == [(c.node.key, c.score) for c in plan.runs[0].cells]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(background=True), "step 1: its background is True, not False"),
        (lambda r: r.update(external=["in21k"]), "its external is \\['in21k'\\], not \\[\\]"),
        (lambda r: r.update(test={"images": 4, "trained_on": 1}), "not {'images': 4, 'trained_on': 0}"),
        (lambda r: r.pop("test"), "its test is None"),
        (lambda r: r["sees"].update(images=1), "its sees.images is 1, not 4"),
        (lambda r: r["config"]["train"].update(precision="bf16"), "its config.train is another"),
        (lambda r: r["config"]["model"].update(backbone="resnet50"), "its config.model is another"),
    ],
)
def test_what_no_key_holds_is_compared_with_the_plan(
    change: Callable[[Record], object], words: str, planned: Plan
) -> None:
    records = [copy.deepcopy(r) for r in records_of(planned)]
    change(records[1])
    with pytest.raises(UntrueError, match=words):
        checked(planned, records)


def test_the_reason_is_a_line_of_its_own() -> None:
    def untrue(run: object) -> list[tuple[str, str]]:
        raise UntrueError("step 1: its background is True, not False")

    (verdict,) = verify(make_run(), recompute=untrue)
    assert verdict.faults == ("step 1: its background is True, not False",)


def test_a_later_step_tested_on_a_smaller_crop_is_refused() -> None:
    records = make_run()
    for record, crop in zip(records, (512, 128), strict=True):
        record["config"] = {**record["config"], "eval": {"split": "val", "crop": [crop]}}
    (verdict,) = verify(records)
    assert verdict.faults == ("the steps do not agree in the size of their test images",)


def test_counts_moved_between_domains_are_refused() -> None:
    """Old and new are scored by the matrices of domains; their sum, the whole, is not changed."""
    good, bad = [[900, 100], [0, 1000], [0, 0]], [[700, 300], [0, 1000], [0, 0]]
    whole = [[1600, 400], [0, 2000], [0, 0]]
    record = {
        "matrix": {"seen": whole, "unseen": [[0, 0]] * 3, "domains": {"x": good, "y": bad}},
        "config": {"train": {}},
        "channels": [0, 1],
        "class_names": ["background", "a"],
    }
    found = {"seen": whole, "unseen": [[0, 0]] * 3, "domains": {"x": good, "y": bad}}
    assert disagreement(record, found) is None
    found["domains"] = {"x": bad, "y": good}
    assert disagreement(record, found) == (
        "x: its network does not give these counts (background: 200 of 1,000 pixels differ)"
    )
    assert disagreement(record, {**found, "domains": {}}) == OTHER_PIXELS
