"""Killed at any moment and started again, a grid ends with the same bits."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.grid import HOME, call, command, numbers, small, weights

LONG = ("train.updates=40,30", "run.checkpoint_updates=10")
METHODS = ("MiB+SDR", "EWC[weight=1]")


def _arguments(out: Path) -> list[object]:
    return ["run", *small(out, *METHODS, sets=LONG)]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert call(*_arguments(out)).returncode == 0
    (out / "seconds").write_text(str(time.monotonic() - began))
    return out


def _kill_at_random(out: Path, seconds: float, number: int, draw: random.Random) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "log").open("a") as log:
        process = subprocess.Popen(command(*_arguments(out)), cwd=HOME, env=env, stdout=log, stderr=log)
        try:
            process.wait(timeout=draw.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(timeout=120)


def _same(out: Path, never_killed: Path) -> None:
    last = call(*_arguments(out))
    assert last.returncode == 0, last.stderr[-2000:]
    assert numbers(out) == numbers(never_killed)
    assert weights(out) == weights(never_killed)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill(kills: int, never_killed: Path, tmp_path: Path) -> None:
    seconds, draw = float((never_killed / "seconds").read_text()), random.Random(kills)
    for _ in range(kills):
        _kill_at_random(tmp_path, seconds, signal.SIGKILL, draw)
    _same(tmp_path, never_killed)


def test_sigterm_writes_a_checkpoint_and_leaves_cleanly(never_killed: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*_arguments(tmp_path)), cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
    assert "goes on from there" in err
    _same(tmp_path, never_killed)
