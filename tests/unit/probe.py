"""A method whose every ingredient has a name, images of four classes, and the plans of their grids."""

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from contseg.benchmark.plan.build import Plan, Run, make_plan
from contseg.benchmark.plan.config import read_config
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import VOID
from contseg.methods.base import CrossEntropy, Method, Term, argmax, later, same_model, torch_init, train_all
from contseg.methods.registry import load_plugins
from contseg.tests.told import Told


@dataclass(eq=False)
class Watch(Term):
    """Only observes."""

    observes = True
    state = ("seen",)

    alpha: float = 0.5
    seen: Tensor | None = field(default=None, init=False)


@dataclass(eq=False)
class Pull(Term):
    """Reads what ``watch`` saw."""

    uses_setup = False

    watch: Watch
    rate: float = 1.0


@dataclass(eq=False)
class Push(Pull):
    """Another class with the same fields."""


def copy_init(model: Any, step: Any) -> None: ...
def more_channels(model: Any, step: Any) -> None: ...
def train_less(model: Any, step: Any) -> Any: ...
@later
def train_less_later(model: Any, step: Any) -> Any: ...
def second_best(out: Any, size: Any) -> Any: ...
def fuse(ctx: Any) -> None: ...


def probe(
    weight: float = 1.0,
    rate: float = 1.0,
    alpha: float = 0.5,
    kind: Literal["pull", "push"] = "pull",
    init: Literal["torch", "copy"] = "torch",
    build: bool = False,
    trainable: bool = False,
    trainable_later: bool = False,
    predict: bool = False,
    warm_up: bool = False,
    end_step: bool = False,
    extra: bool = False,
    late: bool = False,
) -> Method:
    """Cross entropy, an observer, and a term that reads it."""
    watch = Watch(alpha=alpha)
    term = {"pull": Pull, "push": Push}[kind](watch, rate, weight=weight)
    return Method(
        "Probe",
        {"watch": watch, "ce": CrossEntropy(), "pull": term, **({"more": CrossEntropy()} if extra else {})},
        {"ce": CrossEntropy()} if late else {"ce": CrossEntropy(), "watch": watch},
        init={"torch": torch_init, "copy": copy_init}[init],
        build=more_channels if build else same_model,
        trainable=train_less if trainable else train_less_later if trainable_later else train_all,
        predict=second_best if predict else argmax,
        warm_up=(fuse,) if warm_up else (),
        end_step=(fuse,) if end_step else (),
    )


def mini(**changed: Any) -> Told:
    """Every combination of up to two of four classes, with void; train and val alike."""
    present = np.zeros((10, 256), bool)
    pairs = [*itertools.combinations(range(1, 5), 2), *((c,) for c in range(1, 5))]
    for row, classes in zip(present, pairs, strict=True):
        row[[0, VOID, *classes]] = True
    arguments = {"class_names": tuple("bcdef"), "present": {"train": present, "val": present}, **changed}
    return Told("mini", **arguments)


def grid(
    *sets: str,
    scenario: str = "mini/2-1/overlapped",
    method: str = "Probe",
    data: Told | None = None,
    branches: Collection[str] = (),
    **chosen: Any,
) -> Plan:
    config = read_config(
        None, sets, scenarios=(scenario,) if isinstance(scenario, str) else scenario,
        methods=(method,) if isinstance(method, str) else method, **chosen,
    )  # fmt: skip
    opened: SegmentationDataset = data or mini()
    return make_plan(config, lambda name: opened, branches)


def moved(one: Plan, other: Plan) -> dict[str, list[int]]:
    """Steps of the first run whose weights, observers and scores have other keys."""

    def keys(plan: Plan) -> dict[str, list[Any]]:
        cells = plan.runs[0].cells
        return {
            "weights": [c.node.key for c in cells],
            "observers": [sorted(c.node.observers) for c in cells],
            "scores": [c.score for c in cells],
        }

    before, after = keys(one), keys(other)
    return {k: [t for t, (a, b) in enumerate(zip(before[k], after[k], strict=True)) if a != b] for k in before}


def keys(plan: Plan, **wanted: Any) -> list[str]:
    """Step keys of the one run with these properties."""

    def fits(run: Run) -> bool:
        return all(getattr(run, k, None) == v or getattr(run.scenario, k, None) == v for k, v in wanted.items())

    (run,) = (r for r in plan.runs if fits(r))
    return [c.node.key for c in run.cells]


def print_keys(plugin: str, method: str) -> None:
    """The keys of training, evaluation and observers of the last step, with a plugin loaded."""
    load_plugins(plugin)
    cell = grid(method=method).runs[0].cells[-1]
    print(cell.node.key, cell.score, *cell.reads.values())
