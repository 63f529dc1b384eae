"""Whoever changes a record is found out, with the reason."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contseg.benchmark.score.records import Record, read_records
from contseg.benchmark.score.submissions import disagreement, merge, record_path, truth, verify
from contseg.benchmark.store.files import digest
from contseg.datasets.errors import UserError
from contseg.tests.records import make_run

TRUTH = (100, 100, 100, 100, 7)


def reasons(records: list[Record], **kwargs: object) -> list[str]:
    (verdict,) = verify(records, **kwargs)
    return list(verdict.faults)


def test_nothing_speaks_against_an_honest_run() -> None:
    assert reasons(make_run()) == []
    assert reasons(make_run(), known=make_run("MiB"), pixels=lambda record: TRUTH) == []
    assert truth(make_run()[0]) == TRUTH


def test_only_a_run_whose_every_step_was_scored_again_is_accepted() -> None:
    records = make_run()
    (bare,) = verify(records)
    assert not bare.accepted
    assert str(bare) == (
        "consistent, not re-scored: toy/2-1/overlapped FT seed 0: no weights of step 0, 1 beside its records"
    )
    (half,) = verify(records, rescore=lambda r: r["matrix"] if r["step"] else None)
    assert not half.accepted and "no weights of step 0 beside" in str(half)
    (whole,) = verify(records, rescore=lambda r: r["matrix"])
    assert whole.accepted and str(whole) == "accepted: toy/2-1/overlapped FT seed 0"


def test_counts_moved_onto_the_diagonal_are_refused_where_the_weights_are_there() -> None:
    honest, forged = make_run(hit=lambda t, k: 0.5), make_run(hit=lambda t, k: 0.7)
    (verdict,) = verify(forged, rescore=lambda r: honest[r["step"]]["matrix"])
    assert verdict.faults == (
        "step 0: its network does not give these counts (background: 40 of 307 pixels differ)",
        "step 1: its network does not give these counts (background: 60 of 257 pixels differ)",
    )


def unreadable(record: Record) -> None:
    raise UserError("the network stored in x is not what the record describes")


def test_weights_that_cannot_be_scored_are_a_reason() -> None:
    (verdict,) = verify(make_run(), rescore=unreadable)
    assert verdict.faults[0] == "step 0: the network stored in x is not what the record describes"


@given(
    st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), min_size=4, max_size=4),
    st.integers(0, 3),
    st.sampled_from([(0, 1), (1, 0), (2, 1), (0, 2)]),
    st.floats(0, 0.02),
    st.sampled_from(["no", "bf16"]),
)
def test_no_iou_may_move_further_than_twice_the_share(
    rows: list[list[int]], row: int, move: tuple[int, int], share: float, precision: str
) -> None:
    """A forger moves pixels of one row from one class to another: noticed, or no class gains by it."""
    there = np.array(rows)
    there[:, 0] += 20000  # ten pixels are then nothing
    here, n = there.copy(), int(share * there[row, move[0]])
    here[row, move[0]] -= n
    here[row, move[1]] += n
    record = {
        "matrix": {"seen": here.tolist(), "unseen": [[0] * 3] * 4},
        "config": {"train": {"precision": precision}},
        "channels": [0, 1, 2],
        "class_names": ["background", "a", "b"],
    }
    fault = disagreement(record, {"seen": there.tolist(), "unseen": [[0] * 3] * 4})
    if n == 0:
        assert fault is None
    if fault is None:
        for k in range(3):
            union = there[k].sum() + there[:, k].sum() - there[k, k]
            moved = abs(iou(here, k) - iou(there, k))
            assert moved <= 2 * {"no": 0.001, "bf16": 0.01}[precision] + 2 * 10 / max(union, 1)


def iou(matrix: np.ndarray, k: int) -> float:
    union = matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
    return float(matrix[k, k] / union) if union else 0.0


def test_counts_of_other_pixels_are_no_rounding() -> None:
    records = make_run()
    other = {**records[1]["matrix"], "unseen": records[1]["matrix"]["seen"], "seen": records[1]["matrix"]["unseen"]}
    assert disagreement(records[1], other) == "its network was scored on other pixels than the record counts"


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
        (lambda r: unseen(r), "step 1: images without a seen class have pixels of a seen class"),
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
    assert faults == ["step 0, 1: its matrix does not have the data set's pixel counts (void: 7 instead of 8)"]


def test_a_step_of_which_nothing_trains_makes_no_update() -> None:
    records = make_run()
    records[1]["cost"].update(updates=0, trained_parameters=0)
    assert reasons(records) == []
    records[1]["cost"].update(updates=100)
    assert reasons(records) == ["step 1: evaluated after 100 updates, not after the last of 0"]


@pytest.mark.parametrize(("mix", "made"), [("append", 150), ("half", 100)])
def test_appended_stored_images_make_an_epoch_longer(mix: str, made: int) -> None:
    records = make_run()
    records[1]["config"] = copy.deepcopy(records[1]["config"])  # the steps of ``make_run`` hold one
    records[1]["config"]["train"].update(updates=[], epochs=[1.0], batch=[1])
    records[1].update(sees={"images": 100, "stored": 50}, memory={"mix": mix})
    records[1]["cost"].update(updates=made)
    assert reasons(records) == []
    records[1]["cost"].update(updates=120)
    assert reasons(records) == [f"step 1: evaluated after 120 updates, not after the last of {made}"]


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
    run = verify(records)[0].run
    assert merge(run, tmp_path) == []
    assert merge(run, tmp_path) == []
    assert [r["key"] for r in read_records(tmp_path)[0]] == [r["key"] for r in records]
    other = copy.deepcopy(records)
    other[1]["cost"]["seconds"] = 0.1
    run = verify(other)[0].run
    assert merge(run, tmp_path) == [f"{tmp_path / record_path(records[1])} already exists, with other numbers"]
    assert read_records(tmp_path)[0] == records


def test_the_factory_keys_its_runs_as_the_suite_does() -> None:
    records = make_run()
    assert records[0]["run"] == digest([r["key"] for r in records])
