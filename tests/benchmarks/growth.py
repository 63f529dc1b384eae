"""How the suite's cost grows, as a figure: ``python -m contseg.tests.benchmarks.growth docs/figures/growth.png``.

Processor seconds and peak memory of the loss terms over classes and over pixels; of a step over its index; of a plan
over its cells. One thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import Config
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, SegOutput
from contseg.methods.registry import build_method
from contseg.tests.benchmarks.grid import Resident
from contseg.tests.benchmarks.ratios import peak

CLASSES = (6, 11, 21, 51, 101, 151)
SIDES = (64, 128, 256, 384)
STEPS = (1, 2, 3, 5, 9, 17)
CELLS = (2, 4, 8, 16, 32)
METHODS = ("MiB+SDR", "PLOP")


class Cost(NamedTuple):
    """Seconds of a processor, and peak memory in bytes."""

    seconds: float
    memory: int = 0


def seconds(run: Callable[[], Any], rounds: int = 3) -> float:
    """The fastest round's, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def losses(method: str, classes: int, side: int, index: int = 1, channels: int = 256) -> Cost:
    """Forward and backward of a method's terms at step ``index``, 2 images; features of 1/8 the side."""
    g = torch.Generator().manual_seed(0)
    old = classes - classes // (index + 2)
    step = Step(index, "sequential", tuple(range(1, old)), tuple(range(old, classes)))
    cell = side // 8
    labels = torch.arange(2 * cell * cell).remainder(classes).view(2, cell, cell)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)

    def output(n: int) -> SegOutput:
        f = torch.randn(2, channels, cell, cell, generator=g)
        return SegOutput(torch.randn(2, n, side, side, generator=g), f.relu(), f, (f,))

    before, now = output(old), output(classes)
    leaves = [t.requires_grad_() for t in now[:3]]  # the only stage is the embedding
    terms = build_method(method).terms
    if "pseudo" in terms:
        terms["pseudo"].thresholds = torch.ones(old)  # type: ignore[attr-defined]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        batch = Batch(labels, labels, now, before, step)
        values = [term(batch) for term in terms.values()]
        total: Tensor = torch.stack([v for v in values if v is not None]).sum()
        total.backward()

    return Cost(seconds(run), peak(run))


def plan(steps: int, methods: int) -> Cost:
    """A plan of so many steps and methods (kinds of LwF) over images in memory."""
    data = Resident(64, 16, 16, classes=steps + 2)
    names = tuple(f"LwF[kd={i + 1}]" for i in range(methods))
    config = replace(Config(), scenarios=("resident/2-1/overlapped",), methods=names)
    for split in ("train", "val"):
        data.presence(split)
    return Cost(seconds(lambda: make_plan(config, lambda _: data)))


def sweep() -> dict[str, dict[str, tuple[Sequence[int], list[Cost]]]]:
    """For each panel the curves: positions and costs."""
    torch.set_num_threads(1)
    return {
        "classes (2 images of 128 x 128)": {m: (CLASSES, [losses(m, c, 128) for c in CLASSES]) for m in METHODS},
        "pixels (21 classes)": {m: ([2 * s * s for s in SIDES], [losses(m, 21, s) for s in SIDES]) for m in METHODS},
        "index of the step (21 classes)": {m: (STEPS, [losses(m, 21, 128, t) for t in STEPS]) for m in METHODS},
        "cells of a plan": {
            "by methods, 4 steps": ([4 * n for n in CELLS], [plan(4, n) for n in CELLS]),
            "by steps, 4 methods": ([4 * n for n in CELLS], [plan(n, 4) for n in CELLS]),
        },
    }


def draw(found: dict[str, dict[str, tuple[Sequence[int], list[Cost]]]], path: str) -> None:
    """Milliseconds above, MiB below (a plan has none); both axes linear from 0, so that linear is straight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(3.2 * len(found), 4.8), layout="constrained")
    for column, (title, curves) in enumerate(found.items()):
        time_axis, memory_axis = axes[:, column]
        for name, (x, costs) in curves.items():
            time_axis.plot(x, [c.seconds * 1e3 for c in costs], "o-", ms=3, label=name)
            memory_axis.plot(x, [c.memory / 2**20 for c in costs], "o-", ms=3)
        time_axis.set(ylabel="processor ms", ylim=(0, None), xlim=(0, None))
        memory_axis.set(xlabel=title, ylabel="peak MiB", ylim=(0, None), xlim=(0, None))
        if not any(c.memory for _, costs in curves.values() for c in costs):
            memory_axis.set_visible(False)
            time_axis.set_xlabel(title)
        time_axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    found = sweep()
    for title, curves in found.items():
        for name, (x, costs) in curves.items():
            print(f"{title}, {name}:")
            for at, cost in zip(x, costs, strict=True):
                print(f"  {at:7}  {cost.seconds * 1e3:8.1f} ms  {cost.memory / 2**20:6.1f} MiB")
    draw(found, sys.argv[1])
