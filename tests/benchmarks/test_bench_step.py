"""A training step through the suite against the bare network on a resident batch: forward, cross entropy of the
upsampled logits, backward, optimiser; for a method that distils also the previous network's forward.

A small network on the CPU; ResNet-101 at 512x512 in bf16 on a GPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contseg.tests.benchmarks.grid import Grid, bare, train
from contseg.tests.benchmarks.ratios import Against

pytest.importorskip("pytest_benchmark")

TARGETS = {"FT": "1.05", "LwF": "1.05", "MiB+SDR": "1.10", "PLOP": "1.15"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid(tmp_path_factory.mktemp("small"), tuple(TARGETS))


@pytest.mark.parametrize("method", TARGETS)
def test_step_on_the_cpu(against: Against, small: Grid, method: str) -> None:
    torch.set_num_threads(1)
    _compare(against, small, method, f"step / bare: {method}", updates=2)


@pytest.mark.gpu
@pytest.mark.parametrize("method", TARGETS)
def test_step_on_a_gpu(against: Against, tmp_path: Path, method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    grid = Grid(tmp_path, (method,), "resnet101", (512, 512), batch=24, precision="bf16")
    _compare(against, grid, method, f"step / bare, ResNet-101 bf16: {method}", updates=10)


def _compare(against: Against, grid: Grid, method: str, what: str, updates: int) -> None:
    trainer = grid.trainer(method)
    wait: Callable[[], Any] = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    alone = bare(trainer, updates, distils=trainer.method.uses_old(trainer.step))

    def reference() -> None:
        alone()
        wait()

    def ours() -> None:
        train(trainer, updates)
        wait()

    against(what, ours, reference, TARGETS[method], faster=False, per=updates)
    assert all(torch.isfinite(torch.tensor(v)).all() for v in trainer.progress.losses.values())
