"""On a GPU, by ``pytest -m gpu``: every method trains, no update waits, a killed run ends with the same bits, and a CPU
computes the same losses."""

import math
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from contseg.methods.registry import methods
from contseg.tests.benchmarks.grid import Grid, train
from contseg.tests.integration.grid import call, command, numbers, records, small, weights

pytestmark = pytest.mark.gpu

NAMES = tuple(methods())
CORE = ("FT", "LwF", "ILT", "MiB+SDR", "PLOP", "EWC[weight=1]")


@pytest.fixture(autouse=True)
def device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_method_trains(tmp_path: Path, precision: str) -> None:
    done = call("run", *small(tmp_path, *NAMES, sets=(f"train.precision={precision}",)))
    assert done.returncode == 0, done.stderr[-3000:]
    found = records(tmp_path)
    assert {r["method"] for r in found.values()} == set(NAMES)
    for path, record in found.items():
        assert record["provenance"]["device"] == torch.cuda.get_device_name(), path
        assert all(math.isfinite(x) for values in record["losses"].values() for x in values), path


@pytest.mark.parametrize("method", [name for name in NAMES if name != "Joint"])
def test_no_update_waits(tmp_path: Path, method: str) -> None:
    """By torch's own detector; the batch is on the device before."""
    trainer = Grid(tmp_path, (method,)).trainer(method)
    if not trainer.total:
        pytest.skip(f"{method} has no update after step 0")
    train(trainer, 2)  # the first ones may copy what is then kept
    batch = next(trainer.step_batches.updates(0, 1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._update(iter([batch]))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    sets = ("train.updates=60,60", "run.checkpoint_updates=10", "run.deterministic=true")
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert call("run", *small(whole, *CORE, sets=sets)).returncode == 0
    words = command("run", *small(cut, *CORE, sets=sets))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not [*cut.rglob("checkpoint.safetensors")] and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    assert call("run", *small(cut, *CORE, sets=sets)).returncode == 0
    assert any(r["cost"]["resumed"] for r in records(cut).values())
    assert numbers(cut) == numbers(whole)
    assert weights(cut) == weights(whole)


def test_a_cpu_computes_the_same_losses(tmp_path: Path) -> None:
    """In double precision, from the same initial weights."""
    sets = ("train.precision=double", "model.norm=group", "train.updates=20,20")
    for name, visible in (("gpu", "0"), ("cpu", "")):
        done = call("run", *small(tmp_path / name, *CORE, sets=sets), CUDA_VISIBLE_DEVICES=visible)
        assert done.returncode == 0, done.stderr[-3000:]
    gpu, cpu = (records(tmp_path / name) for name in ("gpu", "cpu"))
    assert gpu.keys() == cpu.keys()
    for path in gpu:
        for name, values in gpu[path]["losses"].items():
            assert values == pytest.approx(cpu[path]["losses"][name], rel=1e-6), (path, name)
