"""What a walk scores: the network that was trained, its rule with the states it reads, whoever comes from the store."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contseg.benchmark.models.load import load_step
from contseg.benchmark.plan.config import read_config
from contseg.benchmark.store.files import read_tensors, write_tensors
from contseg.benchmark.train import step_runner
from contseg.benchmark.train.runner import make_accelerator
from contseg.datasets.errors import UserError
from contseg.methods import registry
from contseg.methods.base import Batch, CrossEntropy, Method, SegOutput, StepContext, Term, argmax
from contseg.methods.baselines import ClassMeans, NearestMean, train_nothing
from contseg.tests.unit.steps import Grid


@dataclass(eq=False)
class Tuned(Term):
    """Cross entropy; its state, which a prediction may read, is what training made of it."""

    uses_setup = False
    state = ("favour",)
    favour: Tensor | None = field(default=None, init=False)

    def begin_step(self, ctx: StepContext) -> None:
        self.favour = torch.zeros(())

    def __call__(self, batch: Batch) -> Tensor:
        return CrossEntropy()(batch)

    def end_step(self, ctx: StepContext) -> None:
        self.favour = torch.tensor(1e6)


@dataclass(eq=False)
class Favoured:
    """The last class, if the term says so; ``shift`` only makes another rule of it."""

    term: Tuned
    shift: int = 0

    def __call__(self, out: SegOutput, size: tuple[int, int]) -> Tensor:
        favoured = torch.zeros(out.logits.shape[1])
        favoured[-1 - self.shift] = 0.0 if self.term.favour is None else self.term.favour
        return argmax(out._replace(logits=out.logits + favoured[:, None, None]), size)


def favouring(shift: int = 0) -> Method:
    term = Tuned()
    return Method("Favouring", {"ce": term}, {"ce": term}, predict=Favoured(term, shift))


def renamed_prototypes() -> Method:
    """NearestPrototype with another name for its observer."""
    centres = ClassMeans()
    return Method(
        "Renamed",
        first={"ce": CrossEntropy(), "centres": centres},
        terms={"centres": centres},
        trainable=train_nothing,
        predict=NearestMean(centres),
    )


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry.register_method("Favouring")(favouring)
    registry.register_method("Renamed")(renamed_prototypes)


def forget_scores(grid: Grid) -> None:
    """Leave the weights, and nothing that was made of them."""
    shutil.rmtree(grid.store.records)
    for path in grid.store.cache.rglob("score-*"):
        path.unlink()


def predicted(matrix: dict[str, Any]) -> list[int]:
    """Pixels by predicted channel."""
    return [sum(column) for column in zip(*matrix["seen"], *matrix["unseen"], strict=True)]


@pytest.mark.parametrize("methods", [("Favouring", "Favouring[shift=1]"), ("Favouring[shift=1]", "Favouring")])
def test_a_rule_reads_the_state_of_a_term_that_is_no_observer(methods: tuple[str, ...], tmp_path: Path) -> None:
    """Both methods share their training: one is scored with the states just trained, the other with those kept."""
    grid = Grid(tmp_path, methods)
    assert grid.run().trained == 2
    for (method, _), matrix in grid.matrices().items():
        pixels = predicted(matrix)
        assert pixels[-1 - ("shift" in method)] == sum(pixels) > 0, method


def test_a_rule_scores_the_same_from_the_store(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("Favouring", "Favouring[shift=1]", "NearestPrototype", "Renamed"))
    grid.run()
    first = grid.matrices()
    forget_scores(grid)
    again = grid.run()
    assert again.trained == 0 and again.scored == 3 * 2  # both prototypes are one evaluation
    assert grid.matrices() == first and len(first) == 4 * 2


def test_an_observer_is_found_under_another_name(tmp_path: Path) -> None:
    """The kept state bears the name of the method that came first."""
    grid = Grid(tmp_path, ("NearestPrototype",))
    grid.run()
    other = Grid(tmp_path, ("Renamed", "NearestPrototype"))
    shutil.rmtree(grid.store.records)
    for path in grid.store.cache.rglob("score-*"):
        path.unlink()
    assert other.run().trained == 0
    found = other.matrices()
    assert found["Renamed", 1] == found["NearestPrototype", 1]
    for method in ("NearestPrototype", "Renamed"):
        _, predict = load_step(tmp_path, other.node(1).key, method)
        assert predict(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 32)


def test_two_states_of_one_observer_are_not_guessed_between(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("NearestPrototype",))
    grid.run()
    key = grid.node(1).key
    (path,) = grid.store.step(key).glob("observer-*")
    state = grid.store.read_observer(key, path.stem.removeprefix("observer-"))
    meta = {"term": "means", "is": step_runner.describe(ClassMeans())}
    write_tensors(path.with_name(f"observer-{'0' * 64}.safetensors"), state, meta)
    load_step(tmp_path, key)  # equal ones are one
    write_tensors(path.with_name(f"observer-{'1' * 64}.safetensors"), {"means": -state["means"]}, meta)
    with pytest.raises(UserError, match="2 different states of ClassMeans"):
        load_step(tmp_path, key)


def test_a_late_observer_of_other_code_becomes_a_branch(tmp_path: Path) -> None:
    """The weights are another machine's, so its retraining gives others: without a branch it would never end."""
    grid = Grid(tmp_path, ("FT", "NearestPrototype"))
    grid.run()
    node = grid.node(0)
    (observer,) = node.observers
    kept = read_tensors(grid.store.observer(node.key, observer))
    assert kept is not None
    state, meta = kept
    other = meta["code"] | {"files": dict.fromkeys(meta["code"]["files"], "other")}
    write_tensors(grid.store.observer(node.key, observer), state, meta | {"code": other})
    weights, meta = grid.store.read_model(node.key)
    write_tensors(grid.store.model(node.key), {k: v + 1 for k, v in weights.items()}, meta)
    forget_scores(grid)
    assert grid.run().branched
    assert grid.store.branches() == {observer}


def test_weights_of_other_code_never_stand_beside_new_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full between the two files: the old code, or --trust-cache, would take both for one training."""
    grid = Grid(tmp_path, ("Favouring",))
    key = grid.node(0).key
    grid.run(key)
    weights, meta = grid.store.read_model(key)
    write_tensors(grid.store.model(key), weights, meta | {"code": {"files": {"trainer.py": "other"}, "on": []}})
    forget_scores(grid)

    def full(path: Path, *what: Any) -> None:
        if path.name == "model.safetensors":
            raise UserError("the disk is full")
        write_tensors(path, *what)

    monkeypatch.setattr(step_runner, "write_tensors", full)
    with pytest.raises(UserError, match="the disk is full"):
        grid.run(key)
    assert grid.store.terms(key).exists() and not grid.store.model(key).exists()


# --- precision and place -------------------------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Tensor]]]:
    """The weights of every network that is scored."""
    weights: list[dict[str, Tensor]] = []
    plain = step_runner.evaluate

    def noting(model: Any, *args: Any, **named: Any) -> Any:
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        return plain(model, *args, **named)

    monkeypatch.setattr(step_runner, "evaluate", noting)
    yield weights


def test_a_kept_network_is_scored_in_the_precision_of_training(scored: list[Any], tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("NearestPrototype",), ("train.precision=double",))
    grid.run()
    first = grid.matrices()
    forget_scores(grid)
    grid.run()
    assert grid.matrices() == first
    assert len(scored) == 4
    for before, after in zip(scored[:2], scored[2:], strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert after["classifier.blocks.0.weight"].dtype == torch.float64


def test_a_loaded_step_is_in_the_precision_of_training(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("NearestPrototype",), ("train.precision=double",))
    grid.run()
    key = grid.node(1).key
    model, predict = load_step(tmp_path, key)
    kept, _ = grid.store.read_model(key)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert predict(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 32)  # of float32 images


@pytest.mark.parametrize("method", ["NearestPrototype", "Favouring"])
def test_a_loaded_step_lies_with_all_of_its_states_on_one_device(method: str, tmp_path: Path) -> None:
    grid = Grid(tmp_path, (method,))
    grid.run()
    key = grid.node(1).key
    model, predict = load_step(tmp_path, key, method, device="meta")
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    (rule,) = [c.cell_contents for c in predict.__wrapped__.__closure__ if isinstance(c.cell_contents, Method)]
    states = [t for term in rule.terms.values() for t in term.state_dict().values()]
    assert {t.device.type for t in states} == {"meta"}


def test_fp16_is_refused_on_a_cpu() -> None:
    """Else it would train in float32 under fp16's key."""
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        make_accelerator(read_config(None, ("train.precision=fp16",)), Path())


def test_processes_have_hours_for_the_first_to_read_the_label_maps() -> None:
    """NCCL gives up after ten minutes, which a hundred thousand files on a slow disk can take."""
    assert make_accelerator(read_config(None), Path()).init_handler.to_kwargs()["timeout"] >= timedelta(hours=1)


def test_deterministic_cublas_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that torch wants, for matrix products too; a value of the user's own stays."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_accelerator(read_config(None, ("run.deterministic=true",)), Path())
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_accelerator(read_config(None, ("run.deterministic=true",)), Path())
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
