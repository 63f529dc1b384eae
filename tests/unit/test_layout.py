"""Kernels lie as a batch of training images does: torch reorders none in an update, and no bit depends on it.

What processes tell each other in an update, besides gradients, does not grow with the images.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contseg.benchmark.contract.toy_run import ToyRun, second_step
from contseg.benchmark.models.load import on_device
from contseg.benchmark.train import distributed, trainer
from contseg.benchmark.train.distributed import InterruptedStepError
from contseg.methods.registry import build_method
from contseg.tests.unit.steps import Grid

METHODS = ("MiB+SDR", "EWC")
PLACES = ("aten::conv2d", "torch::autograd::AccumulateGrad")


def kernels(step: trainer.StepTrainer) -> dict[str, Tensor]:
    """The weights of convolutions over several channels and several places."""
    found = {n: p for n, p in step.model.named_parameters() if p.ndim == 4 and p.shape[1] > 1 and p[0, 0].numel() > 1}
    assert len(found) >= 4
    return found


def reordered(step: trainer.StepTrainer) -> int:
    """How often an update copies a kernel in a forward pass, or its gradient where it is kept.

    Not what torch copies inside a convolution's backward pass: one dense copy of the gradient, in either layout.
    """
    shapes = [list(p.shape) for p in kernels(step).values()]
    step._train_mode()
    for shown in list(step.step_batches.updates(0, 2)):  # the second one is counted
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            step._update(iter([shown]))
    events: Any = profile.events()
    return sum(e.name == "aten::copy_" and e.input_shapes[0] in shapes and inside(e, PLACES) for e in events)


def inside(event: Any, names: tuple[str, ...]) -> bool:
    """Whether a profiled call is part of one with such a name."""
    while event is not None and event.name not in names:
        event = event.cpu_parent
    return event is not None


@pytest.mark.parametrize("method", METHODS)
def test_an_update_reorders_no_kernel(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(tmp_path, (method,))
    assert reordered(grid.trainer(1, method)) == 0
    monkeypatch.setattr(trainer, "for_batches", on_device)
    assert reordered(grid.trainer(1, method)) > 0


@pytest.mark.parametrize("method", METHODS)
def test_no_bit_depends_on_the_layout(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Grid(tmp_path / name, (method,)) for name in ("channels last", "contiguous"))
    one.run()
    monkeypatch.setattr(trainer, "for_batches", on_device)
    other.run()
    for index in (0, 1):
        key = one.node(index, method).key
        assert one.store.meta(key)["sha256"] == other.store.meta(key)["sha256"]
    assert one.matrices() == other.matrices()


def test_moments_and_importance_lie_as_their_kernels_after_an_interruption(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("EWC",), ("train.updates=20",))
    step = grid.trainer(1, "EWC")
    step.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        step.run()
    again = grid.trainer(1, "EWC")
    again.load_checkpoint()
    assert again.progress.update == 10
    penalty: Any = next(t for t in again.terms.values() if hasattr(t, "factors"))
    names = [n for n, _ in again.model.named_parameters()]
    factors = dict(zip([n for n in names if not n.startswith("classifier.blocks.1")], penalty.factors, strict=True))
    for name, p in kernels(again).items():
        assert p.is_contiguous(memory_format=torch.channels_last)
        assert again.optimizer.state[p]["momentum_buffer"].stride() == p.stride()
        assert factors[name].stride() == p.stride()


@pytest.mark.parametrize(
    ("method", "calls", "numbers"),
    [("FT", 3, 3), ("LwF", 6, 6), ("MiB", 6, 6), ("PLOP", 6, 6), ("MiB+SDR", 22, 805), ("EWC", 3, 3), ("RCIL", 9, 9)],
)
def test_what_processes_tell_each_other(method: str, calls: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for each sum, one more where its gradient returns. SDR's class sums are 4 or 3 classes of 64 numbers."""
    said: list[int] = []
    for side in (24, 48):
        make = second_step(ToyRun(height=side, width=side), lambda: build_method(method))
        assert make is not None
        step = make()
        said.clear()
        with monkeypatch.context() as several:
            several.setattr(distributed, "several", lambda: True)
            several.setattr(distributed.dist, "all_reduce", lambda x, **_: said.append(x.numel()))
            step.update(0)
        assert (len(said), sum(said)) == (calls, numbers)
