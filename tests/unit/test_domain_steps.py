"""Steps by domain: training, keys, matrices and scores, on a few made-up images without a background."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contseg.benchmark.models.load import fresh, load_step
from contseg.benchmark.models.pixels import Pixels
from contseg.benchmark.models.plain import plain_weights
from contseg.benchmark.plan.build import Plan, make_plan
from contseg.benchmark.plan.config import read_config
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.tables import as_text
from contseg.benchmark.score.leaderboard import leaderboard
from contseg.benchmark.score.metrics import score_run
from contseg.benchmark.score.records import fault, gather_runs
from contseg.benchmark.train.evaluate import Domains, evaluate
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, SegOutput
from contseg.methods.registry import build_method, methods
from contseg.tests.material import ROOT
from contseg.tests.unit.steps import SETS, Grid, Images

ABLE = {"FT", "Joint", "LwF", "LwF-MC", "ILT", "EWC", "PI", "RW", "MiB", "PLOP", "FrozenBackbone", "LinearProbe"}
TOWNS = ("north", "east", "south")
CLASSES = (1, 2, 3, 4, 5)


class Streets(Images):
    """Twelve images, eight of them in train: image k of either split is of town k modulo 3; no pixel is background."""

    domains = TOWNS
    has_background = False

    def domain_of(self, image_id: str) -> str:
        return TOWNS[int(image_id[-3:]) % 3]

    def load(self, image_id: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().load(image_id, split)
        return image, torch.where(label == 0, 255, label)


@dataclass
class Tour(Grid):
    """Some methods on ``Streets``, a town a step."""

    data: Images = field(default_factory=lambda: Streets(15))
    scenario: str = "resident/1-1/domain"

    @property
    def plan(self) -> Plan:
        config = read_config(None, (*SETS, *self.sets), scenarios=(self.scenario,), methods=self.methods, seeds=(0,))
        return make_plan(config, lambda _: self.data)

    def records(self) -> list[dict]:
        return [self.store.record(c.path) for r in self.plan.runs for c in r.cells]


@pytest.fixture(scope="module")
def tour(tmp_path_factory) -> Tour:
    grid = Tour(tmp_path_factory.mktemp("tour"), ("FT", "MiB", "PLOP", "Joint"))
    grid.run()
    return grid


# --- which methods --------------------------------------------------------------------------------------------------


def test_methods_that_can():
    found = set()
    for name in methods():
        with contextlib.suppress(UserError):  # a parameter without default
            found |= {name} if build_method(name).domains else set()
    assert found == ABLE
    assert not build_method("LwF-MC[targets=replaced]").domains
    assert not build_method("MiB+SDR").domains
    page = (ROOT / "docs/methods.md").read_text("utf-8").partition("## Steps by domain")[2].partition("\n## ")[0]
    lines = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    assert {name for line in lines for name in line.split("`")[1::2]} == ABLE


@pytest.mark.parametrize("name", ["SSUL", "MiB+SDR", "LwF-MC[targets=replaced]"])
def test_the_others_refuse_when_planned(name, tmp_path):
    with pytest.raises(UserError) as error:
        Tour(tmp_path, (name,)).plan  # noqa: B018
    said = str(error.value)
    assert said.startswith(f"resident/1-1/domain: {name} is not made for steps without new classes; ")
    assert "\n" not in said and all(m in said for m in ABLE)


# --- training -------------------------------------------------------------------------------------------------------


def test_steps_and_images(tour):
    plan = tour.plan
    assert [(r.scenario.name, len(r.cells)) for r in plan.runs] == [
        *[("resident/1-1/domain", 3)] * 3,
        ("resident/offline/domain", 1),
    ]
    # north has 5 + 2, east 5 + 1, south 5 + 1 images, of which four fifths train
    assert [len(c.node.view.ids) for c in plan.runs[0].cells] == [5, 4, 4]
    assert len(plan.runs[3].cells[0].node.view.ids) == 13
    assert len({r.cells[0].node.key for r in plan.runs[:3]}) == 1


def test_no_rows_are_added_and_background_is_never_predicted(tour):
    for record in tour.records():
        model, predict = load_step(tour.out, record["step_key"], record["method"])
        assert [len(b.weight) for b in model.classifier.blocks] == [6]
        images = torch.stack([tour.data.load(i, "train")[0] for i in tour.data.ids("train")[:4]])
        assert predict(images).min() >= 1
        logits = model(model.pixels.normalise(images)).logits
        assert (logits[:, 0] == -1e4).all() and (logits.softmax(1)[:, 0] == 0).all()
        assert not np.array(record["matrix"]["seen"])[:, 0].any()


def test_losses_are_those_of_the_other_channels():
    """Against 5 channels without a background, in float64: softmax, distillation and their gradients."""
    g = torch.Generator().manual_seed(3)
    new, old = (torch.randn(2, 6, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(1, 6, (2, 8, 8), generator=g)
    labels[0, :2] = 255
    new[:, 0], old[:, 0] = -1e4, -1e4
    step, seen = Step(1, "domain", CLASSES, (), background=False), Step(0, "domain", (), CLASSES, background=False)
    assert step.n_old == seen.n_classes == 6

    def outputs(z: torch.Tensor) -> SegOutput:
        return SegOutput(z, z, z, (z,))

    for name in ("FT", "LwF[kd=7]", "MiB[kd=7]"):
        z = new.clone().requires_grad_()
        losses = build_method(name).losses(Batch(z[:, :3, :, :], labels, outputs(z), outputs(old), step))
        total = torch.stack(list(losses.values())).sum()
        five = new[:, 1:].clone().requires_grad_()
        expected = F.cross_entropy(five, labels - 1 + (labels == 255), ignore_index=255)
        if name != "FT":
            # the factor 1/O counts channel 0
            expected = expected - 7 / 6 * (old[:, 1:].softmax(1) * five.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(total, expected)
        grads = torch.autograd.grad(total, z)[0], torch.autograd.grad(expected, five)[0]
        torch.testing.assert_close(grads[0][:, 1:], grads[1])
        assert not grads[0][:, 0].any()


def test_background_that_is_there_is_a_class():
    """Its label is read as any other's: MiB folds nothing into it."""
    g = torch.Generator().manual_seed(3)
    z, old = (torch.randn(2, 6, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    out = [SegOutput(x, x, x, (x,)) for x in (z, old)]
    for name, term in (("MiB", "unce"), ("PLOP", "pseudo")):
        batch = Batch(z, labels, *out, Step(1, "domain", CLASSES, ()))
        torch.testing.assert_close(build_method(name).terms[term](batch), F.cross_entropy(z, labels))


def test_networks_with_and_without_background_have_keys_of_their_own(tmp_path):
    class WithBackground(Streets):
        has_background = True

    plans = [Tour(tmp_path, ("FT",), data=d).plan for d in (Streets(15), WithBackground(15))]
    keys = [{n.key for n in p.nodes.values()} for p in plans]
    assert not keys[0] & keys[1]
    model = fresh(ModelConfig("tiny"), Step(0, "domain", (), CLASSES), build_method("FT"), 0)
    assert model.background


def test_plain_weights_never_predict_background():
    """Weights for other libraries hold the rule too: row 0 is the constant logit."""
    config, step = ModelConfig("resnet18", weights="none", norm="batch"), Step(0, "domain", (), CLASSES, False)
    method = build_method("FT")
    weights, _ = plain_weights(fresh(config, step, method, 0), method, config)
    assert not weights["classifier.weight"][0].any() and weights["classifier.weight"][1].any()
    assert weights["classifier.bias"][0] == -1e4 and weights["classifier.bias"][1:].abs().max() < 1


# --- matrices and scores --------------------------------------------------------------------------------------------


def test_a_matrix_for_each_domain(tour):
    for record in tour.records():
        assert fault(record) is None
        by_domain, steps = record["matrix"]["domains"], record["domains"]
        assert [*by_domain] == [d for step in steps[: record["step"] + 1] for d in step]
        np.testing.assert_array_equal(np.sum([*by_domain.values()], axis=0), record["matrix"]["seen"])
        assert not np.any(record["matrix"]["unseen"])
        assert record["background"] is False and record["test"]["trained_on"] == 0
    assert [r["test"]["images"] for r in tour.records()[:3]] == [2, 4, 6]


def test_damaged_records_are_found(tour):
    good = tour.records()[1]
    total = {**good["matrix"], "domains": dict.fromkeys(("north", "east"), good["matrix"]["seen"])}
    lacking = {**good["matrix"], "domains": {"north": good["matrix"]["seen"]}}
    for change, words in (
        ({"matrix": total}, "not the sum"),
        ({"matrix": lacking}, "does not have the domains seen by step 1"),
        ({"domains": good["domains"][:2]}, "domains of 2 steps, not of 3"),
    ):
        assert words in str(fault({**good, **change}))


def test_evaluation_counts_by_domain():
    """Each image in the matrix of its domain: images of one colour, which the network names."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x

    images = [
        (torch.full((3, 2, 2), shown, dtype=torch.uint8), torch.full((2, 2), label, dtype=torch.uint8))
        for shown, label in ((0, 0), (1, 1), (2, 0), (2, 0))
    ]
    plain = Network()
    plain.pixels = Pixels((0.0, 0.0, 0.0), (1 / 255,) * 3)
    result = evaluate(
        plain,
        lambda out, size: out[:, 0].round().long(),
        images,
        torch.ones(4, dtype=torch.bool),
        n_labels=2,
        n_channels=3,
        device=torch.device("cpu"),
        domains=Domains(("a", "b"), torch.tensor([0, 1, 0, 1])),
    )
    assert result["domains"] == {
        "a": [[4, 0, 4], [0, 0, 0], [0, 0, 0]],
        "b": [[0, 0, 4], [0, 4, 0], [0, 0, 0]],
    }
    assert result["seen"] == [[4, 0, 8], [0, 4, 0], [0, 0, 0]]
    assert result["unseen"] == [[0, 0, 0]] * 3


def a_record(step: int, domains: dict[str, tuple[int, int]], background: bool = False) -> dict:
    """Of classes 1 and 2 in 10 pixels each; ``domains``: how many of them are right."""
    by_domain = {d: [[0, 0, 0], [0, a, 10 - a], [0, 10 - b, b], [0, 0, 0]] for d, (a, b) in domains.items()}
    seen = np.sum([*by_domain.values()], axis=0).tolist()
    return {
        "dataset": "towns",
        "channels": [0, 1, 2],
        "domains": [["x"], ["y"]],
        "background": background,
        "step": step,
        "matrix": {"seen": seen, "unseen": np.zeros_like(seen).tolist(), "domains": by_domain},
    }


def test_scores_by_hand():
    """After step 1 x has lost a class: 10 of 20 right. IoU by class, then their mean, background left out."""
    records = [a_record(0, {"x": (10, 10)}), a_record(1, {"x": (10, 0), "y": (10, 10)})]
    for protocol in (PROTOCOLS["sdr"], PROTOCOLS["strict"]):
        score = score_run(records, protocol, (("x",), ("y",)))
        assert score.by_group[0] == (100.0, pytest.approx(np.nan, nan_ok=True))
        assert score.by_group[1] == (25.0, 100.0)  # x: 10/20 and 0/10
        # both: class 1 has 20 hits of 30, class 2 10 of 20
        both = 100 * (20 / 30 + 10 / 20) / 2
        assert (score.old(), score.new(), score.all()) == (25.0, 100.0, pytest.approx(both))
        summary = score.summary()
        assert (summary["forgetting"], summary["backward_transfer"], summary["plasticity"]) == (75.0, -75.0, 100.0)
        assert summary["avg"] == pytest.approx((100 + both) / 2)
        assert score.steps[1].of("x") == 25.0 and score.steps[1].of(1) == pytest.approx(200 / 3)


def test_background_counts_where_the_data_have_it():
    records = [a_record(0, {"x": (10, 10)}, background=True)]
    zero = PROTOCOLS["sdr"].__class__(**{**PROTOCOLS["sdr"].as_dict(), "absent_classes": "zero"})
    assert score_run(records, zero, (("x",),)).all() == pytest.approx(200 / 3)
    assert score_run([{**records[0], "background": False}], zero, (("x",),)).all() == 100


def test_table(tour):
    """Joint, which has one step, has its number for each domain; a contest by domain has a second table."""
    board = leaderboard(tour.records(), PROTOCOLS["sdr"])
    assert len(gather_runs(tour.records())) == 4
    text = as_text(board)
    assert "resident · 1-1 · domain · sdr" in text and "By domain, after the last step:" in text
    lines = text.partition("By domain")[2].splitlines()
    assert lines[2].split() == ["method", "north", "east", "south"]
    joint = next(line for line in lines if line.startswith("Joint")).split()
    assert len(joint) == 4 and all(float(v) >= 0 for v in joint[1:])
    ft = next(line for line in lines if line.startswith("FT")).split()
    assert len(ft) == 6 and ft[2].startswith("(") and ft[4].startswith("(")
    assert "were trained on" not in text


def test_the_released_split_says_its_leak(tmp_path):
    grid = Tour(Path(tmp_path), ("FT",), scenario="resident/1-1/domain+plop", data=Streets(30))
    trained, images = grid.plan.tested_on_trained(grid.plan.runs[0])
    views = [set(c.node.view.ids) for c in grid.plan.runs[0].cells]
    assert 0 < trained <= images
    grid.run()
    last = grid.records()[-1]
    assert last["test"] == {"images": images, "trained_on": trained}
    assert sum(len(v) for v in views) == len(set().union(*views))
    assert f"{trained} of the {images} test images of the last step" in as_text(
        leaderboard(grid.records(), PROTOCOLS["sdr"])
    )
