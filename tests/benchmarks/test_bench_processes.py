"""Two CPU processes against one: the seconds that the trainer itself counts for the same updates, one thread each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contseg.tests.benchmarks.ratios import ROWS, Row
from contseg.tests.integration.grid import HOME, records

pytest.importorskip("pytest_benchmark")

SETS = (
    "model.backbone=resnet18",
    "model.weights=none",
    "model.norm=group",
    "train.updates=10",
    "train.batch=32",
    "train.crop=96",
)


def seconds(out: Path, processes: int) -> float:
    """Of training alone: no start-up, no evaluation."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = ["--scenarios", "shapes/3-3/overlapped", "--methods", "Joint", "--out", str(out), "--set", *SETS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    line = [*start, str(HOME / "run_benchmark.py"), "run", *words]
    subprocess.run(line, cwd=HOME, env=environment, capture_output=True, text=True, check=True, timeout=300)
    (record,) = records(out).values()
    return float(record["cost"]["seconds"])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores")
def test_two_processes(benchmark: Any, tmp_path: Path) -> None:
    """Target: 1.7 times as fast, where both cores are free."""
    one = seconds(tmp_path / "one", 1)
    two = benchmark.pedantic(seconds, args=(tmp_path / "two", 2), rounds=1)
    benchmark.extra_info |= {"one": one, "two": two, "ratio": one / two, "target": "1.7"}
    ROWS.append(Row("two processes / one", f"{two:.1f} s", f"{one:.1f} s", f"{one / two:.2f}", "1.7", "idle cores?"))
