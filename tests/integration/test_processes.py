"""Two processes train what one does: gradient, losses, matrices. gloo, frozen normalisation, float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark.store import read_tensors
from tests.integration.grid import HOME, records, small

EXACT = (
    "train.precision=double",
    "model.norm=group",
    "train.updates=20,20",
    "train.batch=6",
)
METHODS = ("FT", "LwF", "ILT", "MiB+SDR", "Joint")


def launch(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    line = [*start, str(HOME / "run_benchmark.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=HOME, env=env, timeout=900)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = []
    for processes in (1, 2):
        out = tmp_path_factory.mktemp(f"with{processes}")
        done = launch(processes, "run", *small(out, *METHODS, sets=EXACT))
        assert done.returncode == 0, done.stderr[-3000:]
        assert {r["provenance"]["processes"] for r in records(out).values()} == {processes}
        folders.append(out)
    return folders[0], folders[1]


def test_twenty_losses_agree(both: tuple[Path, Path]) -> None:
    one, two = (records(f) for f in both)
    assert one.keys() == two.keys() and len(one) == 2 * 4 + 1
    for path in one:
        for name, values in one[path]["losses"].items():
            assert values == pytest.approx(two[path]["losses"][name], rel=1e-6), (path, name)


def test_matrices_are_equal(both: tuple[Path, Path]) -> None:
    one, two = (records(f) for f in both)
    for path in one:
        assert json.dumps(one[path]["matrix"]) == json.dumps(two[path]["matrix"]), path


def test_weights_agree_after_every_step(both: tuple[Path, Path]) -> None:
    models = sorted(p.relative_to(both[0]) for p in both[0].rglob("model.safetensors"))
    assert len(models) == 6
    for path in models:
        one, two = (read_tensors(f / path) for f in both)
        assert one is not None and two is not None
        for name, tensor in one[0].items():
            assert torch.allclose(tensor, two[0][name], rtol=1e-7, atol=1e-9), (path, name)
