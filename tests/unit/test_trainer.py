"""Training one step: fp16's loss scale, float64, interruption, checkpoints, what it cost."""

import copy
import gc
import signal
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contseg.benchmark.contract.toy_run import ToyRun, ToyStep
from contseg.benchmark.store.files import read_tensors, write_tensors
from contseg.benchmark.train import checkpoint, trainer
from contseg.benchmark.train.distributed import InterruptedStepError
from contseg.methods import registry
from contseg.methods.base import Batch, CrossEntropy, Method, Progress, StepContext, Term
from contseg.tests.unit.steps import Grid, Images, kept, signal_at

# --- fp16 ----------------------------------------------------------------------------------------------------------

LOUD = 4.0  # a weight of the loss: 4 * 2^127 is no number of float32


@pytest.fixture
def uninitialised_is_nan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Memory that torch hands out without a value holds NaN; SGD is the fused one of a GPU."""
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **kw: sgd(*a, **{**kw, "fused": True}))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def overflowing(grid: Grid, index: int = 0) -> trainer.StepTrainer:
    """A step in fp16's way whose first update overflows, and no other. The network itself is in float32."""
    step = grid.trainer(index)
    step.precision = "no"
    step.terms["ce"].weight = LOUD
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    return step


def test_a_first_update_that_overflows_leaves_no_trace(uninitialised_is_nan: None, tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",), ("train.precision=fp16",))
    step, other = overflowing(grid), grid.trainer()
    other.precision = "no"
    before = copy.deepcopy(dict(step.model.named_parameters()))
    step._train_mode()
    step._set_rate(0)
    batches = step.step_batches.updates(0, 2)
    step._update(batches)
    assert all(torch.equal(p, before[n]) for n, p in step.model.named_parameters())
    step._update(batches)
    # the second update alone, in a step that never overflowed
    other.terms["ce"].weight = LOUD
    other._train_mode()
    other._set_rate(0)
    other._update(other.step_batches.updates(1, 2))
    theirs = dict(other.model.named_parameters())
    for name, p in step.model.named_parameters():
        torch.testing.assert_close(p, theirs[name], rtol=1e-4, atol=1e-6)


@dataclass(eq=False)
class Gradients(Term):
    """Cross entropy that notes every gradient it is shown."""

    shown: list[Tensor] = field(default_factory=list, init=False)

    def __call__(self, batch: Batch) -> Tensor:
        return CrossEntropy()(batch)

    def after_backward(self, model: Any) -> None:
        self.shown.append(next(model.parameters()).grad.clone())


def test_terms_see_no_gradient_that_overflowed_and_all_others_unscaled(tmp_path: Path) -> None:
    step = overflowing(Grid(tmp_path, ("FT",), ("train.precision=fp16",)))
    term = Gradients(weight=LOUD)
    step.terms["ce"] = term
    step._train_mode()
    step._set_rate(0)
    batches = step.step_batches.updates(0, 3)
    for _ in range(3):
        step._update(batches)
    assert len(term.shown) == 2
    assert all(g.isfinite().all() and 0 < g.norm() < 100 for g in term.shown)


def test_every_step_begins_with_a_loss_scale_of_its_own(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",), ("train.precision=fp16",))
    first = overflowing(grid)
    first.run()
    assert first.scaler.get_scale() != 2.0**16
    assert grid.trainer(1).scaler.get_scale() == 2.0**16


def test_the_loss_scale_is_in_the_checkpoint(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",), ("train.precision=fp16",))
    step = overflowing(grid)
    step._train_mode()
    step._set_rate(0)
    step._update(step.step_batches.updates(0, 1))
    step.save_checkpoint()
    again = grid.trainer()
    again.load_checkpoint()
    assert again.scaler.state_dict() == step.scaler.state_dict()
    assert again.scaler.get_scale() == 2.0**7


# --- float64 -------------------------------------------------------------------------------------------------------


def test_a_step_in_float64_begins_with_its_parents_weights_to_the_last_digit(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("MiB",), ("train.precision=double",))
    step = grid.trainer(1)
    parent = grid.node(1).parent
    assert parent is not None and step.old is not None
    kept, _ = grid.store.read_model(parent.key)
    assert any((w != w.float().double()).any() for w in kept.values() if w.dtype == torch.float64)
    mine, old = step.model.state_dict(), step.old.state_dict()
    for name, weight in kept.items():
        assert torch.equal(old[name], weight), name
        assert name == "classifier.blocks.0.bias" or torch.equal(mine[name], weight), name  # MiB sets that bias


# --- checkpoints ---------------------------------------------------------------------------------------------------


def idle_head(model: Any, step: Any) -> None:
    """A head that no loss reads."""
    if "idle" not in model.heads:
        model.heads["idle"] = nn.Conv2d(model.classifier.channels, 2, 1)


def idle_first(model: Any, step: Any) -> list[dict[str, Any]]:
    """The head in front of all that trains."""
    others = [p for n, p in model.named_parameters() if not n.startswith("heads.")]
    return [{"params": [*model.heads.parameters(), *others]}]


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> str:
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    build = lambda: Method("Idle", {"ce": CrossEntropy()}, build=idle_head, trainable=idle_first)  # noqa: E731
    registry.register_method("Idle")(build)
    return "Idle"


def test_momenta_return_to_their_own_parameters(idle: str, tmp_path: Path) -> None:
    """Though one parameter before them never had a gradient."""
    grid = Grid(tmp_path, (idle,), ("train.updates=20",))
    step = grid.trainer()
    step.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        step.run()
    again = grid.trainer()
    again.load_checkpoint()
    assert again.progress.update == 10
    theirs = dict(again.model.named_parameters())
    for name, p in step.model.named_parameters():
        buffers = [s.optimizer.state[q]["momentum_buffer"] for s, q in ((step, p), (again, theirs[name]))]
        assert torch.equal(*buffers), name
        assert bool(buffers[0].any()) is not name.startswith("heads."), name


@dataclass(eq=False)
class Listening(CrossEntropy):
    """Notes where it is."""

    heard: list[Progress] = field(default_factory=list, init=False)

    def __call__(self, batch: Batch) -> Tensor:
        self.heard.append(batch.progress)
        return super().__call__(batch)


def test_a_term_knows_where_it_is_in_every_micro_batch_and_after_an_interruption(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",), ("train.updates=15", "train.accumulate=2"))  # two updates an epoch
    term = Listening()
    step, again = grid.trainer(), grid.trainer()
    step.terms["ce"] = again.terms["ce"] = term
    step.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        step.run()
    assert len(term.heard) == 20
    again.run()
    assert term.heard == [Progress(update, 15, update / 2, 2) for update in range(15) for _ in range(2)]


def test_a_checkpoint_of_another_layout_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(tmp_path, ("FT",))
    step = grid.trainer()
    step.progress.update = 1
    monkeypatch.setattr(checkpoint, "LAYOUT", 1)
    step.save_checkpoint()
    monkeypatch.undo()
    again = grid.trainer()
    again.load_checkpoint()
    assert again.progress.update == 0 and again.progress.resumed == 0


def test_a_process_that_joins_at_a_resumption_draws_what_the_others_draw(tmp_path: Path) -> None:
    """The generator of terms is one and the same in every process."""
    grid = Grid(tmp_path, ("FT",))
    step = grid.trainer()
    torch.rand(3, generator=step.generator)
    step.save_checkpoint()
    again: Any = grid.trainer()
    again.accelerator = SimpleNamespace(process_index=1)
    again.load_checkpoint()
    assert torch.equal(again.generator.get_state(), step.generator.get_state())


def test_a_checkpoint_of_a_gpu_is_resumed_on_a_cpu(tmp_path: Path) -> None:
    """Where a GPU's random states, 16 bytes each, are of no use."""
    grid = Grid(tmp_path, ("FT",))
    step = grid.trainer()
    step.progress.update = 1
    step.save_checkpoint()
    path = grid.store.checkpoint(step.node.key)
    loaded = read_tensors(path)
    assert loaded is not None
    theirs = {f"process/0/{name}": torch.zeros(16, dtype=torch.uint8) for name in ("generator", "cuda_rng")}
    write_tensors(path, {**loaded[0], **theirs}, loaded[1])
    again = grid.trainer()
    again.load_checkpoint()
    assert again.progress.update == 1
    assert torch.equal(again.generator.get_state(), step.generator.get_state())  # as at its beginning


@pytest.mark.parametrize("name", ["FT", "MiB+SDR"])  # without and with a previous network in the loop
def test_nothing_keeps_the_networks_of_a_step_that_is_over(name: str) -> None:
    gc.disable()
    try:
        first = ToyStep.begin(ToyRun(), lambda: registry.build_method(name), 0).updates(range(2))
        second = ToyStep.begin(ToyRun(), lambda: registry.build_method(name), 1, first.end()).updates(range(2))
        second.end()
        networks = [weakref.ref(n) for n in (first.model, second.model, second.context.old_model)]
        del first, second
        assert [network() for network in networks] == [None] * 3
    finally:
        gc.enable()


def test_the_batches_leave_the_global_random_numbers_alone(tmp_path: Path) -> None:
    """A resumed step makes its loader anew: what it drew from the global generator would be drawn twice."""
    step = Grid(tmp_path, ("FT",)).trainer()
    before = torch.get_rng_state()
    assert len(list(step.step_batches.updates(0, 2))) == 2 and len(list(step.step_batches.whole_pass())) == 2
    assert torch.equal(torch.get_rng_state(), before)


# --- interruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "number", "left"),
    [("train", 2, "checkpoint.safetensors"), ("val", 1, "model.safetensors"), ("val", 4, "model.safetensors")],
    ids=["in a step of three updates", "at the first test image", "at the last test image"],
)
def test_a_signal_is_handled_between_two_looks_of_the_loop(split: str, number: int, left: str, tmp_path: Path) -> None:
    whole, grid = Grid(tmp_path / "whole", ("MiB",)), Grid(tmp_path / "stopped", ("MiB",))
    assert whole.run().interrupted == 0
    signal_at(grid.data, split, number)
    assert grid.run().interrupted == signal.SIGTERM
    first = grid.node(0).key
    assert kept(grid, first) - {"updates.txt"} == {left}  # no score, no claim; what a bar reads may stay
    assert not list(grid.store.records.rglob("*.json"))
    assert not grid.store.step(grid.node(1).key).exists()  # the next step was not begun
    grid.data.on_load = None
    assert grid.run().interrupted == 0
    assert grid.matrices() == whole.matrices() and len(whole.matrices()) == 2
    for key in whole.plan.nodes:
        assert grid.store.meta(key)["sha256"] == whole.store.meta(key)["sha256"]


def test_a_signal_is_handled_between_steps(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("MiB",))
    walk = grid.runner()
    walk.say = lambda line: signal.raise_signal(signal.SIGTERM)  # it says that a step is done
    outcome = walk.run()
    assert (outcome.trained, outcome.scored, outcome.interrupted) == (1, 1, signal.SIGTERM)
    assert not grid.store.step(grid.node(1).key).exists()
    assert len(grid.matrices()) == 1


def test_a_signal_is_handled_in_a_pass_outside_the_loop(tmp_path: Path) -> None:
    """PLOP's medians, before the first update: 20 batches a pass."""
    grid = Grid(tmp_path, ("PLOP",), data=Images(80))
    grid.run(grid.node(0).key)
    reads: list[str] = []

    def note(split: str) -> None:
        reads.append(split)
        if len(reads) == 1:
            signal.raise_signal(signal.SIGTERM)

    grid.data.on_load = note
    assert grid.run().interrupted == signal.SIGTERM
    assert len(reads) == 4 * trainer.LOOK
    assert not kept(grid, grid.node(1).key)


# --- cost ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Slow(Term):
    """Takes its time before, in and after the loop, on a clock that nothing else moves."""

    uses_setup = False
    clock: Any = None

    def begin_step(self, ctx: StepContext) -> None:
        self.clock.now += 100

    def __call__(self, batch: Batch) -> Tensor | None:
        self.clock.now += 1
        return None if self.observes else CrossEntropy()(batch)

    def after_backward(self, model: Any) -> None:
        self.clock.now += 0.25

    def end_step(self, ctx: StepContext) -> None:
        self.clock.now += 1000


@dataclass(eq=False)
class SlowObserver(Slow):
    observes = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trainer.StepTrainer:
    """A step of three updates whose own term is slow, and an observer of another method beside."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    grid = Grid(tmp_path, ("FT",))
    runner, node = grid.runner(), grid.node(0)
    method = Method("Slow", {}, {"ce": Slow(clock)})
    observers = {"other": trainer.Observer(SlowObserver(clock))}
    return trainer.StepTrainer(
        node,
        method,
        observers,
        config=runner.plan.config,
        dataset=grid.data,
        store=grid.store,
        accelerator=runner.accelerator,
    )


def test_a_steps_cost_is_all_of_its_time_by_parts(slow: trainer.StepTrainer) -> None:
    cost = slow.run()
    assert {k: v for k, v in cost.items() if k.endswith("seconds")} == {
        "seconds": 200 + 2 * 3 * 1.25 + 2000,
        "begin_seconds": 200,
        "loop_seconds": 2 * 3 * 1.25,
        "end_seconds": 2000,
        "observer_seconds": 100 + 3 * 1.25 + 1000,
    }


def test_a_resumed_steps_cost_is_that_of_both_parts(slow: trainer.StepTrainer, tmp_path: Path) -> None:
    slow.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        slow.run()
    _, meta = read_tensors(slow.store.checkpoint(slow.node.key)) or ({}, {})
    assert meta["progress"]["update"] == 3
    slow.progress = trainer.StepProgress(seconds={"begin": 200.0, "loop": 0.0, "end": 0.0, "observer": 100.0})
    cost = slow.run()
    assert cost["begin_seconds"] == 400 and cost["loop_seconds"] == 7.5 and cost["end_seconds"] == 2000
    assert cost["seconds"] == 2407.5 and cost["observer_seconds"] == 200 + 3.75 + 1000
    assert cost["resumed"] == 1
