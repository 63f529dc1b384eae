"""Which keys move when one ingredient of a step changes, and which do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contseg.benchmark.plan import build as plan_module
from contseg.benchmark.plan.config import Config
from contseg.benchmark.train import test_set as testset
from contseg.datasets.scenario import VOID
from contseg.methods import registry
from contseg.methods.base import CrossEntropy, Method, Term
from contseg.tests.told import Told
from contseg.tests.unit.probe import Pull, Watch, grid, mini, moved

pytestmark = pytest.mark.usefixtures("probe_is_known")

# ids of which the hash holds out the images of classes 1 and 2, of 3 and 4, of 3 alone, of 4 alone
NAMES = ("train000a", *(f"train{i:03d}" for i in range(1, 10)))


def held(**changed: Any) -> Told:
    """``mini`` with a held-out image in every step."""
    return mini(names={"train": NAMES, "val": tuple(f"val{i:03d}" for i in range(10))}, **changed)


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
        ("method=Probe[trainable_later=true]", LATER),
        ("method=Probe[end_step=true]", EVERYTHING),
        ("method=Probe[warm_up=true]", LATER),
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
        ("train.optimizer=adamw", EVERYTHING),
        ("train.schedule=cosine", EVERYTHING),
        ("train.warmup=1", EVERYTHING),
        ("train.warmup=0,1", LATER),
        ("train.layer_decay=0.9", EVERYTHING),
        ("train.jitter=0.5,0.5,0.5,0", EVERYTHING),
        ("model.backbone=resnet50", EVERYTHING),
        ("model.output_stride=8", EVERYTHING),
        ("model.weights=none", EVERYTHING),
        ("model.norm=frozen", EVERYTHING),
        ("model.pooling=0", EVERYTHING),
        ("model.norm_momentum=0.01", EVERYTHING),
        ("model.head_activation=leaky", EVERYTHING),
        ("model.dilation=all", EVERYTHING),
        ("model.encoder_activation=leaky", EVERYTHING),
        ("seeds=1", EVERYTHING),
        ("eval.split=tune", EVERYTHING),
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
        ("train.optimizer=sgd", NOTHING),  # fields that came later, at what was done before
        ("train.warmup=0,0", NOTHING),
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
        ("run.gradient_norms=5", NOTHING),
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
    data = held()
    before, other = grid(data=data), grid(change, data=data) if "." in name else grid(data=data, **chosen)
    if expected is None:  # two steps instead of three: only step 0 is the same
        assert {*before.nodes} & {*other.nodes} == {before.runs[0].cells[0].node.key}
    else:
        assert moved(before, other) == expected


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
    ("image", "expected"),
    [
        ("train000", EVERYTHING),  # holds classes 1 and 2
        ("train008", LATER),  # class 3 alone
        ("train009", LAST),  # class 4 alone
        ("val000", SCORES),
    ],
)
def test_the_content_of_an_image_moves_what_sees_it(image: str, expected: dict[str, list[int]]) -> None:
    assert moved(grid(), grid(data=mini(contents={image: 1}))) == expected


@pytest.mark.parametrize(
    ("image", "steps"), [("train000a", [0, 1, 2]), ("train005", [1, 2]), ("train009", [2]), ("val000", [])]
)
def test_the_content_of_a_held_out_image_moves_the_scores_of_the_steps_from_its_own_on(
    image: str, steps: list[int]
) -> None:
    before, after = (grid("eval.split=tune", data=held(contents={image: v})) for v in (0, 1))
    assert moved(before, after) == {**NOTHING, "scores": steps}


def test_one_training_of_two_setups_is_scored_on_the_held_out_images_of_each() -> None:
    classes = {"train000a": (1, 2), "train001": (1, 2), "train002": (3,), "train005": (1, 3)}  # 0 and 5 are held out
    present = np.zeros((4, 256), bool)
    for row, labels in zip(present, classes.values(), strict=True):
        row[list(labels)] = True
    names = {"train": tuple(classes), "val": tuple("wxyz")}
    data = Told("mini", ("background", "a", "b", "c"), {"train": present, "val": present}, names)
    scenarios = ("mini/2-1/overlapped", "mini/2-1/disjoint")
    plan = grid("eval.split=tune", scenario=scenarios, method="FT", data=data)
    first, second = (run.cells[0] for run in plan.runs)
    assert first.node is second.node and first.score != second.score
    sets = [testset.test_set(plan, run.scenario, 0) for run in plan.runs]
    assert [images.view.ids for images, *_ in sets] == [("train000a", "train005"), ("train000a",)]
    assert [known.tolist() for _, known, _ in sets] == [[True, True], [True]]


def test_an_image_more_moves_what_sees_it() -> None:
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


def test_the_trainers_revision_moves_everything_of_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {precision: grid(f"train.precision={precision}") for precision in ("no", "double")}
    monkeypatch.setitem(plan_module.REVISIONS, "no", plan_module.REVISIONS["no"] + 1)
    assert moved(before["no"], grid()) == EVERYTHING
    assert moved(before["double"], grid("train.precision=double")) == NOTHING


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16", "double"])
def test_frozen_norms_have_a_revision_in_half_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"train.precision={precision}", "model.norm=frozen"
    before = grid(*text)
    monkeypatch.delitem(plan_module.REVISIONS, f"{precision} frozen", raising=False)
    assert moved(before, grid(*text)) == (EVERYTHING if precision in ("bf16", "fp16") else NOTHING)
