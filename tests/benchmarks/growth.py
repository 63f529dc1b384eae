"""How the suite's cost grows, as a figure: ``python -m contseg.tests.benchmarks.growth docs/figures/growth.png``.

Processor seconds and peak memory of the loss terms over classes and over pixels; of a step over its index; of a plan
over its cells; of an update of every method with 150 classes in 11 steps. One thread, some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import Config
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, SegOutput
from contseg.methods.registry import build_method
from contseg.tests.benchmarks.ade import Costs
from contseg.tests.benchmarks.ade import sweep as many_classes
from contseg.tests.benchmarks.grid import Resident
from contseg.tests.benchmarks.ratios import peak, seconds

CLASSES = (6, 11, 21, 51, 101, 151)
SIDES = (64, 128, 256, 384)
STEPS = (1, 2, 3, 5, 9, 17)
CELLS = (2, 4, 8, 16, 32)
METHODS = ("MiB+SDR", "PLOP")


class Cost(NamedTuple):
    """Seconds of a processor, and peak memory in bytes."""

    seconds: float
    memory: int = 0


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


def draw(found: dict[str, dict[str, tuple[Sequence[int], list[Cost]]]], many: dict[str, Costs], path: str) -> None:
    """Milliseconds above, MiB below (a plan has none); axes are linear from 0, so that linear is straight.

    ``many``: the methods where classes and steps are many, as bars; fine-tuning's is a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(3.2 * len(found), 10), layout="constrained")
    upper, lower = figure.subfigures(2, height_ratios=(1, 1))
    axes = upper.subplots(2, len(found))
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
    names = sorted(many, key=lambda name: many[name].update)
    lower.suptitle(
        "150 classes in 11 steps: an update of the last step, 2 images of 128 x 128, tiny network", fontsize=10
    )
    shown = {
        "processor ms": [many[name].update * 1e3 for name in names],
        "peak MiB": [many[name].memory / 2**20 for name in names],
        "plan, ms": [many[name].plan * 1e3 for name in names],
    }
    for axis, (unit, values) in zip(lower.subplots(len(shown), sharex=True), shown.items(), strict=True):
        axis.bar(names, values)
        axis.axhline(values[names.index("FT")], color="0.5", lw=0.8)
        axis.set(ylabel=unit, xlim=(-0.6, len(names) - 0.4))
        axis.tick_params(axis="x", rotation=90, labelsize=8)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    found = sweep()
    for title, curves in found.items():
        for name, (x, costs) in curves.items():
            print(f"{title}, {name}:")
            for at, cost in zip(x, costs, strict=True):
                print(f"  {at:7}  {cost.seconds * 1e3:8.1f} ms  {cost.memory / 2**20:6.1f} MiB")
    draw(found, many_classes(), sys.argv[1])
