"""What a grid shares, and how much that is in the grids of the literature."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contseg.benchmark.plan.build import Plan, make_plan
from contseg.benchmark.plan.config import read_config
from contseg.methods.base import CrossEntropy
from contseg.tests.material import ROOT, material
from contseg.tests.told import Told, told_voc
from contseg.tests.unit.probe import grid, keys

pytestmark = pytest.mark.usefixtures("probe_is_known")


@pytest.fixture(scope="module")
def voc() -> Told:
    return told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))


def test_tasks_with_equal_bases_share_step_0() -> None:
    plan = grid(scenario=("mini/2-1/overlapped", "mini/2-2/overlapped"), method="MiB")
    one, two = keys(plan, task="2-1"), keys(plan, task="2-2")
    assert one[0] == two[0] and len({*one, *two}) == 4


def test_15_5_and_15_1_share_step_0(voc: Told) -> None:
    plan = grid(scenario=("voc/15-5/disjoint", "voc/15-1/disjoint", "voc/19-1/disjoint"), method="FT", data=voc)
    five, one, other = (keys(plan, task=t) for t in ("15-5", "15-1", "19-1"))
    assert five[0] == one[0] != other[0]
    assert len(plan.nodes) == 2 + 6 + 2 - 1


def test_sequential_and_disjoint_share_step_0_and_no_other() -> None:
    plan = grid(scenario=("mini/2-1/sequential", "mini/2-1/disjoint", "mini/2-1/overlapped"), method="FT")
    sequential, disjoint, overlapped = (keys(plan, setup=s) for s in ("sequential", "disjoint", "overlapped"))
    assert sequential[0] == disjoint[0] != overlapped[0]
    assert len({*sequential, *disjoint, *overlapped}) == 8


def test_a_first_step_that_reads_the_setup_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossEntropy, "uses_setup", True)
    plan = grid(scenario=("mini/2-1/sequential", "mini/2-1/disjoint"), method="FT")
    assert len(plan.nodes) == 6


def test_plain_first_steps_are_one() -> None:
    plain = ("FT", "LwF", "ILT", "CIL", "MiB", "SDR", "MiB+SDR", "PLOP", "PLOP+SDR", "EWC", "PI", "RW", "REMINDER",
             "MiB+EWF", "MiB+UCD", "FrozenBackbone", "LinearProbe", "NearestPrototype")  # fmt: skip
    plan = grid(method=(*plain, "LwF-MC"))
    assert len({keys(plan, method=m)[0] for m in plain}) == 1
    assert keys(plan, method="LwF-MC")[0] != keys(plan, method="FT")[0]
    later = [k for m in plain for k in keys(plan, method=m)[1:]]
    assert len(set(later)) == len(later)  # the later steps differ


def test_what_an_observer_saw_before_parts_the_steps_that_read_it() -> None:
    """Step 0 is one training; from step 1 on a loss reads an observer that began there, or at step 0."""
    plan = grid(method=("Probe", "Probe[late=true]"))
    early, late = keys(plan, method="Probe"), keys(plan, method="Probe[late=true]")
    assert [a == b for a, b in zip(early, late, strict=True)] == [True, False, False]


def test_observers_are_shared_and_split_no_weights() -> None:
    alone = grid(method="FT")
    plan = grid(method=("FT", "SDR", "EWC", "EWC[alpha=0.5]", "EWC[weight=7]"))
    assert keys(plan, method="FT") == keys(alone, method="FT")
    shared = plan.runs[0].cells[0].node
    # one Fisher for both weights of its penalty, another for the other alpha, and SDR's prototypes
    assert sorted((r.method, r.term, r.before) for r in shared.observers.values()) == [
        ("EWC", "importance", None), ("EWC[alpha=0.5]", "importance", None), ("SDR", "prototypes", None),
    ]  # fmt: skip
    assert not alone.runs[0].cells[0].node.observers


def test_an_observer_follows_its_own_state() -> None:
    run = grid(method="EWC").runs[0]
    (first, begins), (second, follows), (_, last) = (next(iter(c.node.observers.items())) for c in run.cells)
    assert [r.before for r in (begins, follows, last)] == [None, first, second]


def test_the_order_of_the_grid_and_its_size_move_no_key() -> None:
    methods, scenarios = ("FT", "MiB+SDR", "EWC"), ("mini/2-1/overlapped", "mini/2-2/disjoint")
    one, two = grid(scenario=scenarios, method=methods), grid(scenario=scenarios[::-1], method=methods[::-1])
    assert {*one.nodes} == {*two.nodes}
    assert {(c.score, c.path) for r in one.runs for c in r.cells} == {
        (c.score, c.path) for r in two.runs for c in r.cells
    }
    assert {k: {*n.observers} for k, n in one.nodes.items()} == {k: {*n.observers} for k, n in two.nodes.items()}
    assert {*grid(method="FT").nodes} < {*one.nodes}


def test_one_joint_training_serves_every_task_and_order() -> None:
    scenarios = ("mini/2-1/overlapped", "mini/2-2/overlapped", "mini/2-1/disjoint", "mini/[4|3|2,1]/overlapped")
    plan = grid(scenario=scenarios, method="Joint", seeds=(0, 1))
    assert len(plan.nodes) == 2  # one a seed
    assert all(len(r.cells) == 1 for r in plan.runs)
    offline = grid(scenario="mini/offline/overlapped", method="FT")
    assert {*offline.nodes} < {*plan.nodes}


def test_seeds_orders_and_parameters_are_axes() -> None:
    plan = grid(scenario="mini/2-1@random/overlapped", method="MiB[kd=1|10|100]", seeds=(0, 1, 2))
    assert len(plan.runs) == 9
    assert {r.method for r in plan.runs} == {"MiB[kd=1]", "MiB", "MiB[kd=100]"}
    assert len({r.scenario.groups for r in plan.runs}) > 1  # the order is drawn from the seed
    assert len({keys(plan, method=m, seed=s)[0] for m in ("MiB[kd=1]", "MiB") for s in (0, 1, 2)}) == 3


def test_names_of_one_thing_make_one_run() -> None:
    assert len(grid(method=("MiB", "MiB[kd=10]", "MiB[kd=10.0]")).runs) == 1


# --- grids of the literature ---------------------------------------------------------------------------------------


def literature(name: str, data: Told, **chosen: Any) -> Plan:
    return make_plan(replace(read_config(ROOT / f"benchmark/configs/{name}.toml"), **chosen), lambda _: data)


def test_the_grid_of_sdrs_paper_needs_4_8_times_fewer_images(voc: Told) -> None:
    plan = literature("sdr_paper", voc)
    assert len(plan.runs) == 7 * 3 * 3
    # by hand: step 0 of 15-5 serves 15-1; sequential and disjoint share it; all seven methods do
    bases, later = 2 * 2, 7 * 3 * (1 + 1 + 5)
    assert len(plan.nodes) == bases + later
    assert plan.alone() / plan.shared() >= 4.8
    assert plan.alone() == sum(30 * (len(c.node.view.ids) // 8) * 8 for r in plan.runs for c in r.cells)


def test_the_grid_of_voc(voc: Told) -> None:
    plan = literature("voc", voc, seeds=(0,))
    assert len(plan.runs) == 11 * 8 + 2  # Joint: one run a setup
    assert sum(n.scenario.task == "offline" for n in plan.nodes.values()) == 1


def test_the_grid_of_ade() -> None:
    rng = np.random.default_rng(0)
    present = {s: np.pad(rng.random((600, 151)) < 0.05, ((0, 0), (0, 105))) for s in ("train", "val")}
    names = ("background", *(f"class {c}" for c in range(1, 151)))
    plan = literature("ade", Told("ade", names, present), seeds=(0,))
    assert len(plan.runs) == 7 * 6 + 2
    assert {len(r.cells) for r in plan.runs} == {1, 2, 3, 6}
