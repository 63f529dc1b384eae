"""``Method.warm_up``: once at later steps, kept by the checkpoint, one after the other."""

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contseg.benchmark.train import trainer
from contseg.benchmark.train.distributed import InterruptedStepError
from contseg.methods import registry
from contseg.methods.base import CrossEntropy, Method, StepContext, resize
from contseg.tests.unit.steps import Grid, Images, kept, signal_at

# --- warm-up -------------------------------------------------------------------------------------------------------

CALLS: list[int] = []


def tune_new_rows(ctx: StepContext) -> None:
    """Two updates of the new rows alone, on drawn noise; notes the step."""
    CALLS.append(ctx.step.index)
    assert not ctx.model.training
    rows = ctx.model.classifier.blocks[-1]
    for images, labels in ctx.loader():
        logits = resize(ctx.model(images + torch.rand_like(images)).logits, (labels.shape[1], labels.shape[2]))
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=255)
        with torch.no_grad():
            for p, g in zip(rows.parameters(), torch.autograd.grad(loss, list(rows.parameters())), strict=True):
                p -= 0.1 * g


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> str:
    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    build = lambda: Method("Warm", {"ce": CrossEntropy()}, warm_up=(tune_new_rows,))  # noqa: E731
    registry.register_method("Warm")(build)
    CALLS.clear()
    return "Warm"


def weights(step: trainer.StepTrainer) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in step.model.state_dict().items()}


def test_a_warm_up_runs_once_at_later_steps_and_is_resumed_to_the_last_bit(warm: str, tmp_path: Path) -> None:
    sets = ("train.updates=20",)
    grid = Grid(tmp_path / "whole", (warm, "FT"), sets)
    whole, plain = grid.trainer(1, warm), grid.trainer(1, "FT")
    assert CALLS == [1]
    changed = {name for name, t in weights(whole).items() if not torch.equal(t, plain.model.state_dict()[name])}
    assert changed == {"classifier.blocks.1.weight", "classifier.blocks.1.bias"}
    whole.run()
    CALLS.clear()

    # stopped in the loop: not called again
    grid = Grid(tmp_path / "loop", (warm,), sets)
    stopped = grid.trainer(1)
    stopped.stop = lambda: True
    with pytest.raises(InterruptedStepError):
        stopped.run()
    again = grid.trainer(1)
    assert CALLS == [1] and not again.warmed_up
    again.run()
    assert (again.progress.resumed, whole.progress.resumed) == (1, 0)

    # killed before the first update, when only the outcome of the warm-up is kept
    grid = Grid(tmp_path / "after", (warm,), sets)
    killed = grid.trainer(1)
    killed._loop = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    late = grid.trainer(1)
    assert CALLS == [1, 1]
    late.run()
    for name, t in weights(whole).items():
        assert torch.equal(t, again.model.state_dict()[name]) and torch.equal(t, late.model.state_dict()[name]), name


@pytest.mark.parametrize("method", ["Warm", "MiB+AWT", "MiB+NeST[epochs=1]"])
def test_a_warm_up_that_is_killed_begins_again(warm: str, method: str, tmp_path: Path) -> None:
    whole, grid = (
        Grid(tmp_path / "whole", (method,), data=Images(80)),
        Grid(tmp_path / "killed", (method,), data=Images(80)),
    )
    assert whole.run().interrupted == 0
    grid.run(grid.node(0).key)
    signal_at(grid.data, "train", 10)
    assert grid.run().interrupted == signal.SIGTERM
    assert not kept(grid, grid.node(1).key)
    grid.data.on_load = None
    assert grid.run().interrupted == 0
    key = grid.node(1).key
    assert ([1, 1, 1] if method == warm else []) == CALLS
    assert grid.store.meta(key)["sha256"] == whole.store.meta(key)["sha256"]


def test_the_second_pass_of_nest_may_be_killed(tmp_path: Path) -> None:
    """Pass 0 counts, pass 1 tunes; a kill in either leaves nothing, and the end is the same to the last bit."""
    method = "PLOP+NeST[epochs=1,old_rows=frozen]"
    whole, grid = (Grid(tmp_path / name, (method,), data=Images(80)) for name in ("whole", "killed"))
    assert whole.run().interrupted == 0
    grid.run(grid.node(0).key)
    signal_at(
        grid.data, "train", len(grid.node(1).view.ids) * 4
    )  # PLOP's two passes, NeST's first, and the end of its second
    assert grid.run().interrupted == signal.SIGTERM
    key = grid.node(1).key
    assert not kept(grid, key)
    grid.data.on_load = None
    assert grid.run().interrupted == 0
    assert grid.store.meta(key)["sha256"] == whole.store.meta(key)["sha256"]


def another(ctx: StepContext) -> None: ...


def test_warm_ups_of_a_method_and_an_add_on_follow_each_other() -> None:
    one, two = (Method(name, {}, {}, warm_up=(hook,)) for name, hook in (("A", tune_new_rows), ("B", another)))
    assert one.plus(two).warm_up == (tune_new_rows, another)
    with pytest.raises(TypeError, match="warm_up is a function: give a tuple"):
        Method("C", {}, warm_up=tune_new_rows)  # type: ignore[arg-type]
