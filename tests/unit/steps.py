"""A small grid in memory, trained in this process: material of the tests of trainer and runner."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from contseg.benchmark.plan.build import Plan, StepNode, make_plan
from contseg.benchmark.plan.config import read_config
from contseg.benchmark.store.files import Store
from contseg.benchmark.train.runner import Outcome, Runner
from contseg.benchmark.train.trainer import StepTrainer
from contseg.methods.registry import build_method
from contseg.tests.benchmarks.grid import Resident

SETS = (
    "model.backbone=tiny",
    "model.norm=batch",
    "train.updates=3",
    "train.batch=4",
    "train.crop=32",
    "train.scale=",
    "train.lr=0.05,0.03",
)


class Images(Resident):
    """Eight images with six classes; ``on_load`` is called for each that is read, with its split."""

    on_load: Callable[[str], None] | None = None

    def __init__(self, n: int = 8) -> None:
        super().__init__(n, 32, 32, classes=6)

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        if self.on_load is not None:
            self.on_load(split)
        return super().load(image_id, split)


@dataclass
class Grid:
    """Some methods on ``Images`` in the task 3-2; everything is kept below ``out``."""

    out: Path
    methods: tuple[str, ...]
    sets: tuple[str, ...] = ()
    data: Images = field(default_factory=Images)

    @property
    def plan(self) -> Plan:
        config = read_config(
            None, (*SETS, *self.sets), scenarios=("resident/3-2/overlapped",), methods=self.methods, seeds=(0,)
        )
        return make_plan(config, lambda _: self.data)

    @property
    def store(self) -> Store:
        return Store(self.out)

    def runner(self) -> Runner:
        return Runner(self.plan, self.store, Accelerator(cpu=True), lambda _: None)

    def run(self, *only: str) -> Outcome:
        """Train and score what is missing."""
        outcome = self.runner().run(only)
        assert not outcome.failed, outcome.failed
        return outcome

    def node(self, index: int, method: str = "") -> StepNode:
        """The step that this method, or else any, trains."""
        nodes = self.plan.nodes.values()
        return next(n for n in nodes if n.index == index and (not method or n.method == method))

    def trainer(self, index: int = 0, method: str = "") -> StepTrainer:
        """That step, about to train; earlier ones are trained."""
        runner, node = self.runner(), self.node(index, method)
        if node.parent is not None:
            self.run(node.parent.key)
        return runner.steps.trainer(node, build_method(node.method))

    def matrices(self) -> dict[tuple[str, int], Any]:
        """Confusion matrices by method and step."""
        found = [self.store.record(c.path) for r in self.plan.runs for c in r.cells]
        return {(r["method"], r["step"]): r["matrix"] for r in found if r is not None}


def signal_at(data: Images, split: str, number: int) -> None:
    """SIGTERM while the image with this number is read, counted over a split."""
    read: list[str] = []

    def note(of: str) -> None:
        read.extend([of] if of == split else [])
        if len(read) == number and of == split:
            signal.raise_signal(signal.SIGTERM)

    data.on_load = note


def kept(grid: Grid, key: str) -> set[str]:
    """Files of a step, beside the note of the code that began it."""
    return {p.name for p in grid.store.step(key).iterdir()} - {"begun.json"}
