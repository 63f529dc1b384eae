"""Two processes train what one does: gradient, losses, matrices. gloo, group normalisation, float64.

Batch normalisation over the images of each process is another training; yet its network is one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contseg.benchmark.store.files import read_tensors, tensors_digest
from contseg.benchmark.train import step_runner
from contseg.benchmark.train.distributed import gather
from contseg.run_benchmark import main
from contseg.tests.forked import call_together
from contseg.tests.integration.grid import HOME, records, small, weights
from contseg.tests.margins import assert_same_counts

EXACT = (
    "train.precision=double",
    "model.norm=group",
    "train.updates=20,20",
    "train.batch=6",
    "run.gradient_norms=4",
)
ADAMW = "DKD[train.optimizer=adamw,train.lr=0.001,train.layer_decay=0.8,train.warmup=0.05]"
METHODS = ("FT", "LwF", "ILT", "MiB+SDR", "Joint", ADAMW)


def launch(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
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
    assert one.keys() == two.keys() and len(one) == 2 * 5 + 1
    for path in one:
        for name, values in one[path]["losses"].items():
            assert values == pytest.approx(two[path]["losses"][name], rel=1e-6), (path, name)


def test_the_gradients_of_terms_are_those_of_the_one_global_batch(both: tuple[Path, Path]) -> None:
    one, two = (records(f) for f in both)
    for path in one:
        mine, theirs = one[path]["gradient_norms"], two[path]["gradient_norms"]
        assert mine["updates"] == theirs["updates"] == [0, 6, 12, 19]
        for name, norms in mine["norms"].items():
            assert norms == pytest.approx(theirs["norms"][name], rel=1e-5, abs=1e-12), (path, name)


def test_every_pixel_that_is_not_in_doubt_is_counted_alike(both: tuple[Path, Path]) -> None:
    one, two = (records(f) for f in both)
    for path in one:
        assert_same_counts(both[0], one[path], two[path])


def test_weights_agree_after_every_step(both: tuple[Path, Path]) -> None:
    models = sorted(p.relative_to(both[0]) for p in both[0].rglob("model.safetensors"))
    assert len(models) == 8
    for path in models:
        one, two = (read_tensors(f / path) for f in both)
        assert one is not None and two is not None
        for name, tensor in one[0].items():
            assert torch.allclose(tensor, two[0][name], rtol=1e-7, atol=1e-9), (path, name)


def score_own_statistics(out: Path) -> None:
    """In each of several processes: train with BatchNorm; what each scores is what is stored."""
    scored, plain = [], step_runner.evaluate

    def noting(model: Any, *args: Any, **named: Any) -> Any:
        scored.append(gather(tensors_digest(model.state_dict())))
        return plain(model, *args, **named)

    step_runner.evaluate = noting
    assert main(["run", *map(str, small(out, "NearestPrototype", sets=("model.norm=batch",)))]) == 0
    kept = {sha for path, sha in weights(out).items() if path.endswith("model.safetensors")}
    assert len(scored) == len(kept) == 2
    assert {(sha, sha) for sha in kept} == {tuple(shas) for shas in scored}


def test_processes_with_statistics_of_their_own_score_one_network(tmp_path: Path) -> None:
    call_together(2, tmp_path / "log", score_own_statistics, tmp_path / "out")
