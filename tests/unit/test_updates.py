"""What an update holds, makes and waits for: the previous network where a term reads it, large tensors, no value in
fp16; torch.compile."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from contseg.benchmark.contract.toy_run import ToyRun, second_step
from contseg.benchmark.contract.waits import WaitError, no_waits
from contseg.methods.base import Batch, CrossEntropy, Method, StepContext, Term
from contseg.methods.registry import addons, build_method, methods
from contseg.tests.benchmarks.grid import Grid as WideGrid
from contseg.tests.benchmarks.grid import bare
from contseg.tests.benchmarks.ratios import allocated
from contseg.tests.unit.steps import Grid

EVERY = [*methods(), *(f"{'PLOP' if name == 'UCB' else 'MiB'}+{name}" for name in addons())]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Notes every term that reads the previous network's output."""
    plain, noted = Batch.old, []

    def old(self: Batch) -> Any:
        noted.append(1)
        return plain.fget(self)  # type: ignore[attr-defined]

    monkeypatch.setattr(Batch, "old", property(old))
    yield noted


@pytest.mark.parametrize("name", EVERY)
def test_an_update_holds_a_previous_network_only_if_a_term_reads_it(name: str, reads: list[int]) -> None:
    make = second_step(ToyRun(), lambda: build_method(name))
    if make is None:
        return  # one step
    stage = make()
    if not stage.trains:
        return
    reads.clear()
    stage.update(0)
    assert (stage.old is not None) == bool(reads)


class Curious(Term):
    """Cross entropy that looks at the previous network before the first update and after the last one."""

    def begin_step(self, ctx: StepContext) -> None:
        self.before = [weakref.ref(ctx.old_model)] if ctx.step.index else []
        assert not ctx.step.index or ctx.old_model is self.before[0]()  # one and the same
        self.weights = {} if ctx.old_model is None else {k: v.clone() for k, v in ctx.old_model.state_dict().items()}
        self.drawn = torch.get_rng_state()

    def __call__(self, batch: Batch) -> Any:
        gc.collect()
        assert not any(ref() for ref in self.before)
        return CrossEntropy()(batch)

    def end_step(self, ctx: StepContext) -> None:
        self.after = {} if ctx.old_model is None else ctx.old_model.state_dict()


def test_what_only_begin_and_end_ask_for_is_read_from_the_store_and_let_go(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",))
    step = grid.trainer(1)
    assert step.old is None
    term = Curious()
    step.method = Method("FT", terms={"ce": term})
    step.terms = step.method.terms
    before = torch.get_rng_state()
    step._begin()
    assert torch.equal(before, term.drawn)  # reading it draws nothing from the global generator
    step.run()
    stored, _ = grid.store.read_model(grid.node(1).parent.key)  # type: ignore[union-attr]
    for found in (term.weights, term.after):
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[k], stored[k]) for k in stored)


# --- fp16 ----------------------------------------------------------------------------------------------------------


class ReadsGradients(CrossEntropy):
    """Cross entropy that is shown the gradients."""

    def after_backward(self, model: Any) -> None:
        return


@pytest.mark.parametrize("term", [CrossEntropy, ReadsGradients])
def test_an_update_in_fp16_reads_no_value_unless_a_term_sees_gradients(
    term: type[CrossEntropy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **kw: sgd(*a, **{**kw, "fused": True}))  # as on a GPU
    step = Grid(tmp_path, ("FT",), ("train.precision=fp16", "train.clip=1")).trainer()
    step.precision = "no"  # of the network, on a CPU
    step.method = Method("FT", terms={}, first={"ce": term()})
    step.terms = step.method.first
    step._train_mode()
    step._set_rate(0)
    first, second = list(step.step_batches.updates(0, 2))
    step._update(iter([first]))  # makes the scale
    if term is CrossEntropy:
        with no_waits():
            step._update(iter([second]))
    else:  # it must not see gradients that overflowed, so the suite reads whether they did
        with pytest.raises(WaitError, match="reading a value"), no_waits():
            step._update(iter([second]))


# --- memory --------------------------------------------------------------------------------------------------------

# allocations of 1 MiB and more beyond those of the bare network, and their bytes as a share of its own; a map of logits
# is 4.5 MiB here, one of features 0.75 to 1.5
BEYOND = {"FT": (0, 0.0), "LwF": (9, 0.13), "MiB": (2, 0.0), "MiB+SDR": (11, 0.06), "PLOP": (37, 0.29)}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> WideGrid:
    return WideGrid(tmp_path_factory.mktemp("wide"), tuple(BEYOND), "tiny")


@pytest.mark.parametrize("method", BEYOND)
def test_an_update_makes_no_more_large_tensors_than_it_did(method: str, wide: WideGrid) -> None:
    """Beside the network alone, with cross entropy, optimiser, and the previous network if the method reads it."""
    step = wide.trainer(method)
    step._train_mode()
    step._set_rate(0)
    (shown,) = step.step_batches.updates(0, 1)
    sides = [lambda: step._update(iter([shown])), bare(step, 1, distils=step.method.uses_old(step.step))]
    for run in sides:
        run()  # the optimiser makes its state once
    ours, alone = ([n for n in allocated(run) if n >= 2**20] for run in sides)
    count, share = BEYOND[method]
    assert len(alone) > 50
    assert len(ours) - len(alone) <= count
    assert sum(ours) <= (1 + share) * sum(alone)


# --- torch.compile -------------------------------------------------------------------------------------------------


# DKD changes the network's output by a hook, which is a graph of its own
@pytest.mark.parametrize(("method", "precision", "parts"), [("MiB", "no", 1), ("DKD", "bf16", 2)])
def test_a_compiled_network_is_one_graph_and_trains_alike(
    method: str, precision: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the tracing that every backend shares; kernels are not made, that takes minutes."""
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return aot_eager(graph, inputs)

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: whole(model, backend=backend, fullgraph=True))
    losses, weights = [], []
    for compiled in ("false", "true"):
        torch.compiler.reset()
        grid = Grid(tmp_path, (method,), (f"run.compile={compiled}", f"train.precision={precision}"))
        step = grid.trainer(1)  # step 0 is that of the first turn
        step._train_mode()
        step._set_rate(0)
        batches = step.step_batches.updates(0, 2)
        losses.append([step._update(batches) for _ in range(2)])
        weights.append(step.model.state_dict())
    torch.compiler.reset()
    assert len(graphs) == parts
    tolerance = {"no": 1e-4, "bf16": 0.05}[precision]
    for plain, traced in zip(*losses, strict=True):
        torch.testing.assert_close(traced, plain, rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)  # the same names too


def test_the_network_of_every_step_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles one function for so many networks, eight by default, and then no longer, with a warning."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: whole(model, backend=backend))
    grid = Grid(tmp_path, ("FT",), ("run.compile=true",))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for index in (0, 1):
            step = grid.trainer(index)
            step._train_mode()
            graphs.clear()
            step._update(step.step_batches.updates(0, 1))
            assert len(graphs) == 1
    torch.compiler.reset()
