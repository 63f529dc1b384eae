"""Gradient norms of terms: what they are, by a backward pass of each term alone, and that watching changes no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contseg.benchmark.train import trainer
from contseg.benchmark.train.distributed import InterruptedStepError
from contseg.benchmark.train.watch import spaced
from contseg.methods.base import CrossEntropy
from contseg.tests.unit.steps import Grid

ON = "run.gradient_norms=3"


@pytest.mark.parametrize(
    ("points", "total", "updates"),
    [
        (0, 9, []),
        (1, 9, [0]),
        (2, 9, [0, 8]),
        (3, 9, [0, 4, 8]),
        (4, 9, [0, 2, 5, 8]),
        (5, 3, [0, 1, 2]),
        (5, 0, []),
    ],
)
def test_updates_are_evenly_spaced_and_all_different(points: int, total: int, updates: list[int]) -> None:
    assert sorted(spaced(points, total)) == updates


def norm(gradients: list[Tensor | None]) -> float:
    return float(sum(float(g.square().sum()) for g in gradients if g is not None)) ** 0.5


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("method", ["MiB[kd=7]", "PLOP", "FrozenBackbone"])
def test_a_norm_is_that_of_a_backward_pass_of_this_term_alone(
    method: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("train.precision=double", f"train.accumulate={parts}", "train.updates=1", "model.norm=group", ON)
    step = Grid(tmp_path, (method,), sets).trainer(1)
    step._train_mode()
    expected: dict[str, float] = {}
    weights = step.model.state_dict()
    before = {k: v.clone() for k, v in weights.items()}
    micro = list(step.step_batches.updates(0, 1))
    assert len(micro) == parts
    for name in step.method.losses(step._batch(*micro[0])):
        step.model.zero_grad()
        for shown in micro:
            (step.method.losses(step._batch(*shown))[name] / parts).backward()
        expected[name] = norm([p.grad for p in step.model.parameters()])
    step.model.zero_grad()
    assert all(torch.equal(weights[k], v) for k, v in before.items())
    step._set_rate(0)
    step._update(iter(micro))
    found = step.progress.gradient_norms
    assert found["updates"] == [0]
    assert {n: v for n, (v,) in found["norms"].items()} == pytest.approx(expected, rel=1e-5)  # six digits are kept
    assert found["weights"] == {n: step.terms[n].weight for n in expected}
    assert step.progress.seconds["gradient_norms"] > 0


def test_what_a_term_adds_to_the_gradients_itself_is_its_norm(tmp_path: Path) -> None:
    """EWC's penalty has no graph: 2 weight nu (theta - theta^ref) comes after the backward pass."""
    step = Grid(tmp_path, ("EWC",), ("train.precision=double", "train.updates=2", ON)).trainer(1)
    batches = step.step_batches.updates(0, 2)
    step._train_mode()
    step._set_rate(0)
    step._update(batches)
    penalty: Any = step.terms["penalty"]
    pull = [2 * penalty.weight * f * w for f, w in zip(penalty.factors, penalty._way(), strict=True)]
    step._update(batches)
    first, second = step.progress.gradient_norms["norms"]["penalty"]
    assert first == 0  # no weight has moved yet
    assert second == pytest.approx(norm([*pull]), rel=1e-5) and second > 0


# --- nothing else changes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "sets"),
    [
        (("MiB+SDR", "PLOP", "EWC"), ()),
        (("MiB+SDR", "FrozenBackbone"), ("train.accumulate=2",)),
        (("ALIFE", "RCIL", "DKD"), ("train.clip=1", "train.precision=bf16")),
    ],
    ids=["plain", "accumulated", "clipped in half precision"],
)
def test_weights_are_equal_to_the_last_bit(methods: tuple[str, ...], sets: tuple[str, ...], tmp_path: Path) -> None:
    plain, watched = Grid(tmp_path / "plain", methods, sets), Grid(tmp_path / "watched", methods, (*sets, ON))
    assert plain.plan.nodes.keys() == watched.plan.nodes.keys()
    plain.run(), watched.run()
    for key, node in plain.plan.nodes.items():
        one, two = plain.store.meta(key), watched.store.meta(key)
        assert one["sha256"] == two["sha256"], node.title
        assert one["losses"] == two["losses"] and "gradient_norms" not in one
        assert two["gradient_norms"]["updates"] == [0, 1, 2]
        assert two["gradient_norms"]["norms"].keys() == two["losses"].keys()
        assert two["cost"]["gradient_norms_seconds"] <= two["cost"]["loop_seconds"]
    for run in watched.plan.runs:
        for cell in run.cells:
            record = watched.store.record(cell.path)
            assert record is not None
            assert record["gradient_norms"] == watched.store.meta(cell.node.key)["gradient_norms"]


def test_norms_from_before_an_interruption_are_kept(tmp_path: Path) -> None:
    sets = ("train.updates=25", "run.gradient_norms=4")
    whole = Grid(tmp_path / "whole", ("FT",), sets).trainer()
    whole.run()
    grid = Grid(tmp_path / "killed", ("FT",), sets)
    step = grid.trainer()
    step.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        step.run()
    assert step.progress.gradient_norms["updates"] == [0, 8]
    again = grid.trainer()
    again.run()
    assert again.progress.resumed == 1
    assert again.progress.gradient_norms == whole.progress.gradient_norms
    assert again.progress.gradient_norms["updates"] == [0, 8, 16, 24]


# --- fp16 -----------------------------------------------------------------------------------------------------------


def in_half(grid: Grid, scale: float) -> trainer.StepTrainer:
    """A first step in fp16's way with this loss scale. The network itself is in float32."""
    step = grid.trainer()
    step.precision = "no"
    step.scaler = step.norms.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-120)
    step._train_mode()
    step._set_rate(0)
    return step


def test_a_norm_in_half_precision_is_unscaled(tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 2.0**10):
        step = in_half(Grid(tmp_path, ("FT",), ("train.precision=fp16", ON)), scale)
        step._update(step.step_batches.updates(0, 1))
        found.append(step.progress.gradient_norms["norms"]["ce"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_update_that_overflowed_is_left_out(tmp_path: Path) -> None:
    step = in_half(Grid(tmp_path, ("FT",), ("train.precision=fp16", ON)), 2.0**127)
    step.terms["ce"] = step.method.first["ce"] = CrossEntropy(weight=4.0)
    batches = step.step_batches.updates(0, 2)
    step._update(batches)
    assert step.progress.gradient_norms == {}
    step._update(batches)
    assert step.progress.gradient_norms["updates"] == [1]
