"""What every method costs where classes are many and steps too: 150 classes in 11 steps, 100-5 of ADE20K.

An update of the last step on the tiny network with 2 images of 128 x 128, by the trainer's own code: where classes are
many, losses and classifier are most of it. Fine-tuning is what they are compared with. A plan has the 11 steps of one
method over 20 210 images, in each of which 9 classes are drawn.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from contseg.benchmark.contract.toy_run import ToyRun, ToyStep
from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import Config
from contseg.methods.registry import addons, build_method, methods
from contseg.tests.benchmarks.ratios import peak, seconds
from contseg.tests.told import Told

SIZES = (100, *[5] * 10)
RUN = ToyRun(sizes=SIZES, batch=2, height=128, width=128)
IMAGES = {"train": 20_210, "val": 2_000}


class Costs(NamedTuple):
    """Seconds of the processor and peak bytes of an update of the last step, seconds of the plan."""

    update: float
    memory: int
    plan: float


def every() -> list[str]:
    """Every method of the suite, and every add-on on a method that it fits."""
    return [*methods(), *(f"{'PLOP' if name in ('UCB', 'SDR') else 'MiB'}+{name}" for name in addons())]


@cache
def drawn() -> Told:
    """Which of 150 classes are in which image."""
    g, present = np.random.default_rng(0), {}
    for split, n in IMAGES.items():
        table = np.zeros((n, 256), bool)
        table[:, 0] = True
        table[:, 1 : 1 + sum(SIZES)] = g.random((n, sum(SIZES))) < 9 / sum(SIZES)
        present[split] = table
    return Told("drawn", ("background", *(f"class {k + 1}" for k in range(sum(SIZES)))), present)


def costs(name: str) -> Costs:
    """Of a method; its steps before the last one have one update each."""
    parent, last = None, len(RUN.steps(build_method(name))) - 1
    for t in range(last):
        parent = ToyStep.begin(RUN, lambda: build_method(name), t, parent).updates(range(1)).end()
    stage = ToyStep.begin(RUN, lambda: build_method(name), last, parent)
    config = replace(Config(), scenarios=("drawn/100-5/overlapped",), methods=(name,))
    update = seconds(lambda: stage.update(0))
    return Costs(update, peak(lambda: stage.update(0)), seconds(lambda: make_plan(config, lambda _: drawn()), 1))


def sweep() -> dict[str, Costs]:
    """Of every method, by name."""
    found = {}
    for name in every():
        found[name] = costs(name)
        update, memory, plan = found[name]
        print(f"{name:18} {update * 1e3:7.0f} ms {memory / 2**20:7.0f} MiB, plan {plan * 1e3:6.0f} ms", flush=True)
    return found
