"""Which keys move when one ingredient of a step changes, and which do not; what a grid shares."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import plan as plan_module
from benchmark.config import Config, read_config
from benchmark.drawing import as_json, as_mermaid, as_table, totals
from benchmark.plan import Plan, Run, make_plan
from benchmark.store import Store, write_json, write_tensors
from datasets.base import SegmentationDataset
from datasets.scenario import VOID
from methods import registry
from methods.base import CrossEntropy, Method, Term, argmax, same_model, torch_init, train_all
from tests.material import ROOT, material
from tests.told import Told, told_voc

# --- a method whose every ingredient has a name, and pictures of four classes --------------------------------------


@dataclass(eq=False)
class Watch(Term):
    """Only observes."""

    observes = True
    state = ("seen",)

    alpha: float = 0.5
    seen: Tensor | None = field(default=None, init=False)


@dataclass(eq=False)
class Pull(Term):
    """Reads what ``watch`` saw."""

    uses_setup = False

    watch: Watch
    rate: float = 1.0


@dataclass(eq=False)
class Push(Pull):
    """Another class with the same fields."""


def copy_init(model: Any, step: Any) -> None: ...
def more_channels(model: Any, step: Any) -> None: ...
def train_less(model: Any, step: Any) -> Any: ...
def second_best(out: Any, size: Any) -> Any: ...
def fuse(ctx: Any) -> None: ...


def probe(
    weight: float = 1.0,
    rate: float = 1.0,
    alpha: float = 0.5,
    kind: Literal["pull", "push"] = "pull",
    init: Literal["torch", "copy"] = "torch",
    build: bool = False,
    trainable: bool = False,
    predict: bool = False,
    end_step: bool = False,
    extra: bool = False,
) -> Method:
    """Cross entropy, an observer, and a term that reads it."""
    watch = Watch(alpha=alpha)
    term = {"pull": Pull, "push": Push}[kind](watch, rate, weight=weight)
    return Method(
        "Probe",
        {"watch": watch, "ce": CrossEntropy(), "pull": term, **({"more": CrossEntropy()} if extra else {})},
        {"ce": CrossEntropy(), "watch": watch},
        init={"torch": torch_init, "copy": copy_init}[init],
        build=more_channels if build else same_model,
        trainable=train_less if trainable else train_all,
        predict=second_best if predict else argmax,
        end_step=(fuse,) if end_step else (),
    )


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry.register_method("Probe")(probe)


def mini(**changed: Any) -> Told:
    """Every combination of up to two of four classes, with void; train and val alike."""
    present = np.zeros((10, 256), bool)
    pairs = [*itertools.combinations(range(1, 5), 2), *((c,) for c in range(1, 5))]
    for row, classes in zip(present, pairs, strict=True):
        row[[0, VOID, *classes]] = True
    arguments = {"class_names": tuple("bcdef"), "present": {"train": present, "val": present}, **changed}
    return Told("mini", **arguments)


def grid(
    *sets: str, scenario: str = "mini/2-1/overlapped", method: str = "Probe", data: Told | None = None, **chosen: Any
) -> Plan:
    config = read_config(
        None, sets, scenarios=(scenario,) if isinstance(scenario, str) else scenario,
        methods=(method,) if isinstance(method, str) else method, **chosen,
    )  # fmt: skip
    opened: SegmentationDataset = data or mini()
    return make_plan(config, lambda name: opened)


def moved(one: Plan, other: Plan) -> dict[str, list[int]]:
    """Steps of the first run whose weights, observers and scores have other keys."""

    def keys(plan: Plan) -> dict[str, list[Any]]:
        cells = plan.runs[0].cells
        return {
            "weights": [c.node.key for c in cells],
            "observers": [sorted(c.node.observers) for c in cells],
            "scores": [c.score for c in cells],
        }

    before, after = keys(one), keys(other)
    return {k: [t for t, (a, b) in enumerate(zip(before[k], after[k], strict=True)) if a != b] for k in before}


# an observer's state is that of its training: it moves with the weights
EVERYTHING = {"weights": [0, 1, 2], "observers": [0, 1, 2], "scores": [0, 1, 2]}
LATER = {"weights": [1, 2], "observers": [1, 2], "scores": [1, 2]}
LAST = {"weights": [2], "observers": [2], "scores": [2]}
SCORES = {"weights": [], "observers": [], "scores": [0, 1, 2]}
NOTHING = {"weights": [], "observers": [], "scores": []}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("method=Probe[weight=2]", LATER),
        ("method=Probe[rate=2]", LATER),
        ("method=Probe[kind=push]", LATER),
        ("method=Probe[extra=true]", LATER),
        ("method=Probe[init=copy]", LATER),
        ("method=Probe[build=true]", EVERYTHING),
        ("method=Probe[trainable=true]", EVERYTHING),
        ("method=Probe[end_step=true]", EVERYTHING),
        ("method=Probe[predict=true]", SCORES),
        # what is observed at step 0 moves no weight there, and all that reads it
        ("method=Probe[alpha=0.25]", {**LATER, "observers": [0, 1, 2]}),
        ("train.lr=0.02,0.001", EVERYTHING),
        ("train.lr=0.01,0.002", LATER),
        ("train.lr=0.01,0.001,0.002", LAST),
        ("train.epochs=31", EVERYTHING),
        ("train.epochs=30,31", LATER),
        ("train.updates=100", EVERYTHING),
        ("train.batch=12", EVERYTHING),
        ("train.accumulate=2", EVERYTHING),
        ("train.momentum=0.8", EVERYTHING),
        ("train.nesterov=false", EVERYTHING),
        ("train.weight_decay=0.001", EVERYTHING),
        ("train.power=1", EVERYTHING),
        ("train.clip=1", EVERYTHING),
        ("train.precision=bf16", EVERYTHING),
        ("train.crop=64", EVERYTHING),
        ("train.crop=512,512", EVERYTHING),
        ("train.scale=", EVERYTHING),
        ("train.flip=hv", EVERYTHING),
        ("model.backbone=resnet50", EVERYTHING),
        ("model.output_stride=8", EVERYTHING),
        ("model.weights=none", EVERYTHING),
        ("model.norm=frozen", EVERYTHING),
        ("model.pooling=0", EVERYTHING),
        ("seeds=1", EVERYTHING),
        ("eval.split=tune", {**LATER, "scores": [0, 1, 2]}),  # held out: the picture of classes 3 and 4
        ("eval.crop=256", SCORES),
        ("protocol=sdr[eval_view=full]", SCORES),
        ("protocol=sdr[void_in_training=ignore]", EVERYTHING),
        ("protocol=mib", NOTHING),  # scoring is derived when a table is made
        ("scenario=mini/2-2/overlapped", None),
        ("scenario=mini/[2,1|3|4]/overlapped", EVERYTHING),
        ("scenario=mini/[1,2|4|3]/overlapped", LATER),
        # by name only: what is seen and done is the same
        ("scenario=mini/[1,2|3|4]/overlapped", NOTHING),
        ("scenario=mini/2-1-1/overlapped", NOTHING),
        ("method=Probe[weight=1.0,rate=1,alpha=0.50]", NOTHING),
        ("train.lr=1e-2,0.0010", NOTHING),
        ("train.epochs=30.0", NOTHING),
        ("model.output_stride=16", NOTHING),  # the backbone's own, spelled out
        ("model.weights=imagenet", NOTHING),
        ("eval.crop=512", NOTHING),
        # how the work is done
        ("run.workers=3", NOTHING),
        ("run.keep_decoded=true", NOTHING),
        ("run.eval_batch=2", NOTHING),
        ("run.checkpoint_updates=7", NOTHING),
        ("run.checkpoint_minutes=1", NOTHING),
        ("run.tracker=tensorboard", NOTHING),
        ("run.compile=true", NOTHING),
        ("run.deterministic=true", NOTHING),
        ("launch.workers=4", NOTHING),
        ("launch.processes=8", NOTHING),
        ("launch.nodes=2", NOTHING),
        ("launch.partition=gpu", NOTHING),
    ],
)  # fmt: skip
def test_which_keys_move(change: str, expected: dict[str, list[int]] | None) -> None:
    name, _, value = change.partition("=")
    chosen: dict[str, Any] = {name: (int(value),) if name == "seeds" else value}
    other = grid(change) if "." in name else grid(**chosen)
    if expected is None:  # two steps instead of three: only step 0 is the same
        assert {n.key for n in grid().nodes.values()} & {*other.nodes} == {grid().runs[0].cells[0].node.key}
    else:
        assert moved(grid(), other) == expected


def test_every_value_of_the_configuration_stands_in_the_table() -> None:
    """A new field has to say which keys it moves."""
    table = next(m for m in test_which_keys_move.pytestmark if m.name == "parametrize").args[1]
    named = {change.partition("=")[0] for change, _ in table}
    for section in ("model", "train", "eval", "run"):
        assert {f"{section}.{key}" for key in vars(getattr(Config(), section))} <= named


def test_100_and_100_0_are_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(weight: float = 100) -> Method:
        return Method("Typed", {"ce": CrossEntropy(weight=weight)})

    registry.register_method("Typed")(typed)
    names = ("Typed", "Typed[weight=100]", "Typed[weight=100.0]", "Typed[weight=1e2]")
    plans = [grid("train.clip=100", method=name) for name in names] + [grid("train.clip=100.0", method="Typed")]
    assert {tuple(p.nodes) for p in plans} == {tuple(plans[0].nodes)}
    assert [p.runs[0].method for p in plans] == ["Typed"] * 5


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("train000", EVERYTHING),  # holds classes 1 and 2
        ("train008", LATER),  # class 3 alone
        ("train009", LAST),  # class 4 alone
        ("val000", SCORES),
    ],
)
def test_the_content_of_a_picture_moves_what_sees_it(picture: str, expected: dict[str, list[int]]) -> None:
    assert moved(grid(), grid(data=mini(contents={picture: 1}))) == expected


def test_a_picture_more_moves_what_sees_it() -> None:
    data = mini()
    extra = np.zeros((1, 256), bool)
    extra[0, [0, 4]] = True
    present = {"train": np.vstack([data.present["train"], extra]), "val": data.present["val"]}
    assert moved(grid(), grid(data=mini(present=present))) == LAST


def test_labels_that_occur_nowhere_are_no_difference() -> None:
    """Void is read as background, or ignored: the same where there is none."""
    present = {s: np.array(mini().present[s]) for s in ("train", "val")}
    for table in present.values():
        table[:, VOID] = False
    data = mini(present=present)
    assert moved(grid(data=data), grid(data=data, protocol="sdr[void_in_training=ignore]")) == NOTHING


def test_a_data_set_by_another_name_is_the_same_data_set() -> None:
    assert moved(grid(), grid(scenario="copy/2-1/overlapped")) == NOTHING


def test_the_content_of_initial_weights_moves_everything(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (grid(f"model.weights={tmp_path / name}") for name in ("a.pth", "b.pth", "c.pth"))
    assert moved(a, b) == NOTHING and moved(a, c) == EVERYTHING


@pytest.mark.parametrize(("term", "expected"), [(Pull, LATER), (Watch, {**LATER, "observers": [0, 1, 2]}),
                                                (CrossEntropy, EVERYTHING)])  # fmt: skip
def test_a_revision_moves_what_uses_it(
    term: type[Term], expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grid()
    monkeypatch.setattr(term, "revision", 2)
    assert moved(before, grid()) == expected


def test_the_trainers_revision_moves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = grid()
    monkeypatch.setattr(plan_module, "REVISION", plan_module.REVISION + 1)
    assert moved(before, grid()) == EVERYTHING


# --- what is shared ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voc() -> Told:
    return told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))


def keys(plan: Plan, **wanted: Any) -> list[str]:
    """Step keys of the one run with these properties."""

    def fits(run: Run) -> bool:
        return all(getattr(run, k, None) == v or getattr(run.scenario, k, None) == v for k, v in wanted.items())

    (run,) = (r for r in plan.runs if fits(r))
    return [c.node.key for c in run.cells]


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


def test_observers_ride_and_split_no_weights() -> None:
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


def test_the_grid_of_sdrs_paper_needs_4_8_times_fewer_pictures(voc: Told) -> None:
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


# --- what is done, and what is said --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path)


def train(store: Store, *nodes: Any, observers: bool = True, seconds: float = 3600.0) -> None:
    """Leave what a training leaves."""
    for node in nodes:
        meta = {"title": node.title, "cost": {"images": node.images, "seconds": seconds}}
        write_tensors(store.model(node.key), {"w": torch.zeros(1)}, meta)
        for key in node.observers if observers else ():
            write_tensors(store.observer(node.key, key), {"seen": torch.zeros(1)}, {})


def record(store: Store, *cells: Any) -> None:
    for cell in cells:
        write_json(store.records / cell.path, {"format": 1, "key": cell.score})


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


def test_time_is_estimated_from_recorded_costs(store: Store) -> None:
    plan = grid("train.updates=10", method="FT")
    assert totals(plan, store)["hours_estimated"] is None
    train(store, plan.runs[0].cells[0].node, seconds=1800.0)
    assert totals(plan, store)["hours_estimated"] == pytest.approx(1.0)  # two more steps of that size


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
