"""Killed at any moment and started again, a grid ends with the same bits; in one process and in two (gloo)."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.integration.forked import kill, start_together
from tests.integration.grid import numbers, records, small, weights

METHODS = ("MiB+SDR", "EWC[weight=1]")  # two steps and observers of both, one step shared
SETS = ("train.updates=20,20", "run.checkpoint_updates=10", "model.norm=batch")


class Grid:
    """The grid in so many processes, once undisturbed."""

    def __init__(self, processes: int, folder: Path) -> None:
        self.processes, self.whole = processes, folder / "whole"
        assert self.run(self.whole) == [0] * processes  # the fork server loads its modules here
        shutil.rmtree(self.whole)
        began = time.monotonic()
        assert self.run(self.whole) == [0] * processes
        self.seconds = time.monotonic() - began

    def start(self, out: Path) -> list[object]:
        words = ["run", *small(out, *METHODS, sets=SETS)]
        return start_together(self.processes, out.with_name(f"{out.name}.log"), *words)

    def run(self, out: Path) -> list[int]:
        """To the end; exit codes."""
        processes = self.start(out)
        for process in processes:
            process.join(300)
        kill(*processes)
        return [p.exitcode for p in processes]

    def kill(self, out: Path, after: float, number: int) -> bool:
        """Start, and kill after some seconds; whether there was anything left to kill."""
        processes = self.start(out)
        processes[0].join(after)
        killed = all(p.exitcode is None for p in processes)
        kill(*processes, number=number)
        return killed

    def same(self, out: Path) -> None:
        """Run to the end and compare."""
        assert self.run(out) == [0] * self.processes
        assert numbers(out) == numbers(self.whole)
        assert weights(out) == weights(self.whole)
        assert not [*out.rglob("*.tmp"), *out.rglob("claim*"), *out.rglob("checkpoint*")]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid(request.param, tmp_path_factory.mktemp(f"with{request.param}"))


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill(kills: int, grid: Grid, tmp_path: Path) -> None:
    """At moments drawn over the whole time that is left; a grid that got to its end is compared, and begun anew."""
    draw, killed, resumed, out = random.Random(kills), 0, 0, tmp_path / "out"
    while killed < kills:
        if grid.kill(out, draw.uniform(0, grid.seconds), signal.SIGKILL):
            killed += 1
        else:
            grid.same(out)
            resumed += sum(r["cost"]["resumed"] for r in records(out).values())
            shutil.rmtree(out)
    grid.same(out)
    resumed += sum(r["cost"]["resumed"] for r in records(out).values())
    print(f"{killed} kills, {resumed} resumed steps in records")
    assert resumed or kills < 10  # some of so many hit a step behind a checkpoint


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
