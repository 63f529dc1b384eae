"""The table of networks: ``python -m contseg.tests.benchmarks.networks resnet18 NAME...``, a line of Markdown each.

An update of MiB at step 1 as the trainer does it: student, teacher, backward pass and optimiser, in float32, with
batches of 8 images of 128 x 128, in one thread. Seconds are the processor's, not the clock's: of the fastest of three
updates, after one that does not count. Memory is the most that the process ever held, Python and torch included. Each
network has a process of its own. The ratio is to the first network that is named.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

SIDE, BATCH, METHOD = 128, 8, "MiB"


class Measured(NamedTuple):
    parameters: int
    stride: int
    seconds: float
    bytes: int


def measure(backbone: str) -> Measured:
    """In a process of its own."""
    import torch

    from contseg.benchmark.plan.model_config import check
    from contseg.tests.benchmarks.grid import Grid, train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        grid = Grid(Path(folder), (METHOD,), backbone, (SIDE, SIDE), BATCH)
        trainer = grid.trainer(METHOD)
        seconds = []
        for _ in range(4):
            began = time.process_time()
            train(trainer, 1)
            seconds.append(time.process_time() - began)
    return Measured(
        sum(p.numel() for p in trainer.model.parameters()),
        check(grid.plan.config.model).output_stride or 0,
        min(seconds[1:]),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts KiB
    )


if __name__ == "__main__":
    print("| `model.backbone` | parameters, million | stride | processor seconds of an update | ratio | memory, GiB |")
    print("|---|---|---|---|---|---|")
    first = None
    for name in sys.argv[1:]:
        with get_context("spawn").Pool(1) as own:
            n, stride, seconds, size = own.apply(measure, (name,))
        first = first or seconds
        cells = (
            f"`{name}`",
            f"{n / 1e6:.1f}",
            stride,
            f"{seconds:.2f}",
            f"{seconds / first:.1f}",
            f"{size / 2**30:.2f}",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)
