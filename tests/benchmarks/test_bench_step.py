"""A training step through the suite against the bare network on a resident batch: forward, cross entropy of the
upsampled logits, backward, optimiser; for a method that distils also the previous network's forward.

A small network on the CPU; ResNet-101 at 512x512 in bf16 on a GPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contseg.datasets.registry import open_dataset
from contseg.tests.benchmarks.grid import Grid, bare, train
from contseg.tests.benchmarks.ratios import ROWS, Against, Row
from contseg.tests.material import material

pytest.importorskip("pytest_benchmark")

TARGETS = {"FT": "1.05", "LwF": "1.05", "MiB+SDR": "1.10", "PLOP": "1.15"}
GPU_TARGETS = {"FT": "1.03", "LwF": "1.05", "MiB": "1.05", "MiB+SDR": "1.10", "PLOP": "1.10"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid(tmp_path_factory.mktemp("small"), tuple(TARGETS))


@pytest.mark.parametrize("method", TARGETS)
def test_step_on_the_cpu(against: Against, small: Grid, method: str) -> None:
    torch.set_num_threads(1)
    _compare(against, small, method, f"step / bare: {method}", updates=2)


@pytest.mark.gpu
@pytest.mark.parametrize("method", GPU_TARGETS)
def test_step_on_a_gpu(against: Against, tmp_path: Path, method: str) -> None:
    """Time and memory; of memory, MiB+SDR has a target: 1.15 times that of the bare networks."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    grid = Grid(tmp_path, (method,), "resnet101", (512, 512), batch=24, precision="bf16")
    ours, alone = _compare(against, grid, method, f"step / bare, ResNet-101 bf16: {method}", updates=10)
    mine, theirs = (_peak_memory(run) for run in (ours, alone))
    target = "1.15" if method == "MiB+SDR" else ""
    what = f"memory / bare, ResNet-101 bf16: {method}"
    ROWS.append(Row(what, f"{mine:.2f} GiB", f"{theirs:.2f} GiB", f"{mine / theirs:.2f}", target))


@pytest.mark.gpu
def test_step_on_a_gpu_with_input_from_files(against: Against, tmp_path: Path) -> None:
    """Photographs as JPEG files, read by ``run.workers`` processes. The network works 1 / ratio of the time."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    files = open_dataset("voc", material("data", "voc_fullres_sample"), tmp_path / "presence")
    grid = Grid(tmp_path, ("FT",), "resnet101", (512, 512), batch=24, precision="bf16", files=files)
    _compare(against, grid, "FT", "step with files / bare, ResNet-101 bf16: FT", updates=200, target="1.11")


def _peak_memory(run: Callable[[], object]) -> float:
    """GiB on the GPU, networks included."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**30


def _compare(
    against: Against, grid: Grid, method: str, what: str, *, updates: int, target: str = ""
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The two sides, the suite's and the bare network's, after their comparison."""
    trainer = grid.trainer(method)
    wait: Callable[[], Any] = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    alone = bare(trainer, updates, distils=trainer.method.uses_old(trainer.step))

    def reference() -> None:
        alone()
        wait()

    def ours() -> None:
        train(trainer, updates)
        wait()

    target = target or (GPU_TARGETS if trainer.device.type == "cuda" else TARGETS)[method]
    against(what, ours, reference, target, faster=False, per=updates)
    assert all(torch.isfinite(torch.tensor(v)).all() for v in trainer.progress.losses.values())
    return ours, reference
