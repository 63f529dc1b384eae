"""What of a plan is done, what it says it will cost, and what becomes of a replay with other weights."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contseg.benchmark.cli.plan_view import as_json, as_mermaid, as_table, totals
from contseg.benchmark.plan.config import Config, identity
from contseg.benchmark.store.files import Store, write_json, write_sealed, write_tensors
from contseg.tests.unit.probe import grid, keys

pytestmark = pytest.mark.usefixtures("probe_is_known")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path)


def train(store: Store, *nodes: Any, observers: bool = True, seconds: float = 3600.0) -> None:
    """Leave what a training of the default network leaves."""
    for node in nodes:
        cost = {"images": node.images, "seconds": seconds}
        meta = {"title": node.title, "model": identity(Config().model), "train": identity(node.train), "cost": cost}
        write_tensors(store.model(node.key), {"w": torch.zeros(1)}, meta)
        for key in node.observers if observers else ():
            write_tensors(store.observer(node.key, key), {"seen": torch.zeros(1)}, {})


def record(store: Store, *cells: Any) -> None:
    for cell in cells:
        write_sealed(store.records / cell.path, {"format": 2, "key": cell.score})


def test_parents_come_first_and_what_is_kept_is_left_out(store: Store) -> None:
    plan = grid(method=("Probe", "FT"))
    assert [n.index for n in plan.to_train(store)] == [0, 1, 2, 1, 2]
    probe_run, ft = plan.runs
    train(store, probe_run.cells[0].node)
    assert [n.title for n in plan.to_train(store)] == [
        f"mini/2-1/overlapped step {t} {m} seed 0" for m in ("Probe", "FT") for t in (1, 2)
    ]
    record(store, *probe_run.cells)
    assert {n.method for n in plan.to_train(store)} == {"FT"}
    assert plan.missing_scores(store) == list(ft.cells)


def test_a_step_that_nobody_misses_is_not_trained_again(store: Store) -> None:
    """The cache is disposable: with all records there, an empty cache trains nothing."""
    plan = grid()
    record(store, *plan.runs[0].cells)
    assert plan.to_train(store) == []


def test_the_last_step_alone_needs_its_parent_and_not_its_grandparent(store: Store) -> None:
    plan = grid(method="FT")
    cells = plan.runs[0].cells
    train(store, cells[1].node)
    record(store, *cells[:2])
    assert plan.to_train(store) == [cells[2].node]


def test_a_late_observer_is_a_replay_and_the_plan_says_what_it_costs(store: Store) -> None:
    train(store, *grid(method="FT").nodes.values())
    plan = grid(method=("FT", "Probe"))
    record(store, *plan.runs[0].cells)
    said = totals(plan, store)
    assert (said["replays"], said["to_train"]) == (1, 3)
    assert said["images_to_train"] == sum(c.node.images for c in plan.runs[1].cells)
    assert [s["state"] for s in as_json(plan, store)["steps"]] == ["replay", "done", "done", "to train", "to train"]
    assert "1 of them again, for a late observer" in as_table(plan, store)


def test_a_replay_with_other_weights_becomes_a_branch(store: Store) -> None:
    """It takes the observers that came late, and all that reads them, along; nobody else moves."""
    methods = ("FT", "Probe", "Probe[weight=2]", "Probe[alpha=0.25]")
    before = grid(method=methods)
    first = before.runs[0].cells[0].node
    (observer,) = {c for c in first.observers if first.observers[c].method == "Probe"}
    write_json(store.branch(observer), {})
    after = grid(method=methods, branches=store.branches())
    assert keys(after, method="FT") == keys(before, method="FT")
    assert keys(after, method="Probe[alpha=0.25]") == keys(before, method="Probe[alpha=0.25]")
    branch = keys(after, method="Probe")[0]
    assert branch == keys(after, method="Probe[weight=2]")[0] not in before.nodes
    assert [n.key for n in after.nodes.values() if n.branch] == [branch]
    assert not {*keys(after, method="Probe")} & {*before.nodes}
    assert observer not in after.nodes[first.key].observers and len(after.nodes[branch].observers) == 1
    again = grid(method=methods, branches={observer, *after.nodes[branch].observers})
    assert keys(again, method="Probe")[0] not in {*before.nodes, *after.nodes}  # a second branch, if need be


def test_time_is_estimated_from_recorded_costs(store: Store) -> None:
    plan = grid("train.updates=10", method="FT")
    assert totals(plan, store)["hours_estimated"] is None
    train(store, plan.runs[0].cells[0].node, seconds=1800.0)
    assert totals(plan, store)["hours_estimated"] == pytest.approx(1.0)  # two more steps of that size
    elsewhere = grid("train.updates=10", method="FT", seeds=(1,))
    assert totals(elsewhere, store)["hours_estimated"] == pytest.approx(1.5)  # steps that share none with those kept
    assert totals(grid("train.crop=64", method="FT"), store)["hours_estimated"] is None  # another size of image


def test_table_json_and_drawing_tell_the_same_plan(store: Store) -> None:
    plan = grid(scenario=("mini/2-1/overlapped", "mini/2-2/overlapped"), method=("FT", "MiB", "Joint"))
    data = json.loads(json.dumps(as_json(plan, store)))
    assert data["totals"]["runs"] == 2 * 2 + 1 == len(data["runs"])
    assert data["totals"]["distinct_steps"] == len(plan.nodes) == len(data["steps"])
    assert (
        data["totals"]["cells"]
        == sum(s["used_by"] for s in data["steps"])
        == sum(len(r["steps"]) for r in data["runs"])
    )
    assert data["totals"]["images_to_train"] == sum(s["images"] for s in data["steps"]) == plan.shared()
    graph = as_mermaid(plan)
    assert len(re.findall("-->", graph)) == sum(s["parent"] is not None for s in data["steps"])
    assert all(s["key"][:8] in graph for s in data["steps"])
    text = as_table(plan, store)
    assert f"{plan.alone():,} if every cell ran on its own" in text and text.count("mini/") == 5
