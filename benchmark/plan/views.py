"""What each step of a plan sees: the images of its scenario, and for a method with memory those that are stored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from contseg.benchmark.plan.config import TrainConfig
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.memory import Choice, Kept, next_memory, stored_table, with_memory
from contseg.datasets.scenario import Scenario
from contseg.datasets.view import StepView, step_view
from contseg.methods.base import Method
from contseg.methods.code import place
from contseg.methods.faults import is_a_plugins
from contseg.methods.memory import Memory
from contseg.methods.registry import build_method, methods, reason


class Views:
    """Views of steps, each made once. ``split`` and ``void``: as in ``step_view``."""

    def __init__(self, datasets: Mapping[str, SegmentationDataset], void: str, split: str) -> None:
        self.datasets, self.void, self.split = datasets, void, split
        self._plain: dict[tuple[Scenario, int], StepView] = {}
        self._kept: dict[tuple[Scenario, Choice, int], tuple[Kept, ...]] = {}

    def of(self, scenario: Scenario, index: int, memory: Memory | None, seed: int) -> StepView:
        """The view of a step, with the images that a method's memory holds then."""
        if memory is None or index == 0:
            return self._view(scenario, index)
        views = [self._view(scenario, t) for t in range(index + 1)]
        kept = self._memory(scenario, Choice(memory.size, memory.policy, seed), index)
        tables = [stored_table(memory.labels, one, views, scenario.steps[index]) for one in kept]
        return with_memory(views[index], kept, self.datasets[scenario.dataset], tables)

    def _view(self, scenario: Scenario, index: int) -> StepView:
        if (scenario, index) not in self._plain:
            dataset = self.datasets[scenario.dataset]
            self._plain[scenario, index] = step_view(dataset, scenario, index, self.void, self.split)
        return self._plain[scenario, index]

    def _memory(self, scenario: Scenario, choice: Choice, index: int) -> tuple[Kept, ...]:
        """The memory at the start of a step."""
        if index == 0:
            return ()
        if (scenario, choice, index) not in self._kept:
            before = self._memory(scenario, choice, index - 1)
            views = [self._view(scenario, t) for t in range(index)]
            dataset, channels = self.datasets[scenario.dataset], scenario.steps[index].n_old
            self._kept[scenario, choice, index] = next_memory(choice, before, dataset, views, channels)
        return self._kept[scenario, choice, index]


def check_slots(memory: Memory, train: TrainConfig, method: str) -> None:
    """``UserError`` if half of a step's batch is no image."""
    if memory.mix == "half" and not memory.slots(train.batch[0]):
        raise UserError(
            f"{method}: half of each batch are stored images, and train.batch is {train.batch[0]}: "
            "raise it to 2 or more, or take mix=append"
        )


def made_by(method: Method, scenario: Scenario) -> Scenario:
    """The scenario that a method makes of one. ``UserError`` for what a plugin's hook does instead."""
    try:
        made = method.scenario(scenario)
    except UserError:
        raise
    except Exception as error:
        if not is_a_plugins(error):
            raise
        raise UserError(f"{method.name}: its hook scenario fails on {scenario.name}: {reason(error)}") from error
    if not isinstance(made, Scenario):
        what = f"its hook scenario gives a {type(made).__name__}: return the scenario to train"
        raise UserError(f"{method.name}: {what} ({place(method.scenario)})")
    return made


def check_domains(scenario: Scenario, method: Method) -> None:
    """``UserError`` if steps bring domains and the method needs new classes; it names the methods that do not."""
    if not scenario.domains or method.domains:
        return
    found = []
    for name in methods():
        with contextlib.suppress(UserError):  # a parameter without default
            found += [name] if build_method(name).domains else []
    raise UserError(
        f"{scenario.name}: {method.name} is not made for steps without new classes; "
        f"these methods are: {', '.join(found)}"
    )
