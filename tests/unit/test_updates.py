"""What an update holds, for every method: the previous network where a term reads it, and nowhere else."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contseg.benchmark.contract.toy_run import ToyRun, second_step
from contseg.methods.base import Batch, CrossEntropy, Method, StepContext, Term
from contseg.methods.registry import addons, build_method, methods
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
