"""Killed at any moment and started again, a grid ends with the same bits; in one process and in two (gloo).

A network of each kind of timm's does too, killed behind a checkpoint of both steps.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from contseg.tests.forked import kill, start_together
from contseg.tests.integration.grid import numbers, records, small, weights

METHODS = ("MiB+SDR", "EWC[weight=1]")  # two steps and observers of both, one step shared
SETS = ("train.updates=20,20", "run.checkpoint_updates=10", "model.norm=batch")
OF_TIMM = [  # network, updates of a step: so many that a kill is in time. The first two are the smallest of their kind
    pytest.param("test_vit", 40, id="plain"),
    pytest.param("test_mambaout", 40, id="pyramid"),
    pytest.param("test_efficientnet", 60, id="dilated, norms that activate", marks=pytest.mark.slow),
    pytest.param("pvt_v2_b0", 40, id="pyramid, PVT", marks=pytest.mark.slow),
    pytest.param("swin_tiny_patch4_window7_224", 20, id="pyramid, Swin", marks=pytest.mark.slow),
]


class Grid:
    """The grid in so many processes, once undisturbed."""

    def __init__(
        self, processes: int, folder: Path, methods: tuple[str, ...] = METHODS, sets: tuple[str, ...] = SETS
    ) -> None:
        self.processes, self.whole, self.methods, self.sets = processes, folder / "whole", methods, sets
        assert self.run(self.whole) == [0] * processes

    def time(self) -> None:
        """Once more, now that the fork server has loaded its modules; ``seconds`` says how long it took."""
        shutil.rmtree(self.whole)
        began = time.monotonic()
        assert self.run(self.whole) == [0] * self.processes
        self.seconds = time.monotonic() - began

    def start(self, out: Path) -> list[object]:
        words = ["run", *small(out, *self.methods, sets=self.sets)]
        return start_together(self.processes, out.with_name(f"{out.name}.log"), *words)

    def run(self, out: Path) -> list[int]:
        """To the end; exit codes."""
        processes = self.start(out)
        for process in processes:
            process.join(600)
        kill(*processes)
        return [p.exitcode for p in processes]

    def kill(self, out: Path, moment: Callable[[], object]) -> bool:
        """Start, and kill at that moment; whether it hit a grid that was still running."""
        processes = self.start(out)
        while not moment() and all(p.is_alive() for p in processes):
            time.sleep(0.01)
        kill(*processes)
        return all(p.exitcode == -signal.SIGKILL for p in processes)

    def same(self, out: Path) -> None:
        """Run to the end and compare."""
        assert self.run(out) == [0] * self.processes
        assert numbers(out) == numbers(self.whole)
        assert weights(out) == weights(self.whole)
        assert not [*out.rglob("*.tmp"), *out.rglob("claim*"), *out.rglob("checkpoint*")]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    made = Grid(request.param, tmp_path_factory.mktemp(f"with{request.param}"))
    made.time()
    return made


def behind_a_checkpoint(out: Path) -> set[str]:
    """Keys of the steps that are under way and have a checkpoint."""
    steps = {path.parent for path in out.rglob("checkpoint.safetensors")}
    return {step.name for step in steps if not (step / "model.safetensors").exists()}


def another(out: Path, cut: set[str]) -> set[str]:
    return behind_a_checkpoint(out) - cut


def compare(grid: Grid, out: Path, cut: set[str]) -> None:
    """To the end: the same bits, and every step that was cut behind a checkpoint went on from there."""
    grid.same(out)
    resumed = {r["step_key"] for r in records(out).values() if r["cost"]["resumed"]}
    assert cut <= resumed, "begun anew in spite of a checkpoint"


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill(kills: int, grid: Grid, tmp_path: Path) -> None:
    """At moments drawn over the whole time that is left, and at last behind a checkpoint.

    A grid that got to its end is compared, and begun anew.
    """
    draw, out, killed, cut = random.Random(kills), tmp_path / "out", 0, set[str]()
    for _ in range(10 * kills):
        last = killed >= kills - 1
        end = time.monotonic() + draw.uniform(0, grid.seconds)
        moment = partial(behind_a_checkpoint, out) if last else partial(passed, end)
        if grid.kill(out, moment):
            killed += 1
            cut |= behind_a_checkpoint(out)
        else:
            compare(grid, out, cut)
            shutil.rmtree(out)
            cut.clear()
        if last and cut:
            break
    assert killed >= kills and cut, "no kill was behind a checkpoint"
    compare(grid, out, cut)


def passed(end: float) -> bool:
    return time.monotonic() >= end


def test_sigterm_writes_a_checkpoint_and_leaves_cleanly(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = grid.start(out)
    deadline = time.monotonic() + 120
    while not list(out.rglob("checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.02)
    kill(*processes, number=signal.SIGTERM)  # again, as launchers do to those who are leaving already
    assert [p.exitcode for p in processes] == [128 + signal.SIGTERM] * grid.processes
    assert "goes on from there" in (tmp_path / "out.log0").read_text()
    grid.same(out)
    assert max(r["cost"]["resumed"] for r in records(out).values()) == 1


@pytest.mark.parametrize(("network", "updates"), OF_TIMM)
def test_a_network_of_timm(network: str, updates: int, tmp_path: Path) -> None:
    sets = (*SETS, f"model.backbone=timm:{network}", "model.weights=none", "train.batch=2", "train.crop=32")
    grid = Grid(1, tmp_path, ("MiB",), (*sets, f"train.updates={updates},{updates}"))
    out, cut = tmp_path / "out", set[str]()
    for step in (1, 2):
        assert grid.kill(out, partial(another, out, cut))
        cut |= behind_a_checkpoint(out)
        assert len(cut) == step
    compare(grid, out, cut)
