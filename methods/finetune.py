"""Fine-tuning, the lower bound, and joint training, the upper bound."""

from __future__ import annotations

from contseg.datasets.scenario import Scenario
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.registry import register_method


@register_method("FT")
def finetune() -> Method:
    """Plain cross entropy on the labels of the step, with nothing against forgetting."""
    return Method("FT", terms={"ce": CrossEntropy()}, domains=True)


@register_method("Joint")
def joint() -> Method:
    """One training on all classes, or all domains, at once: the upper bound of every task of a data set."""
    return Method("Joint", terms={"ce": CrossEntropy()}, scenario=all_at_once, domains=True)


def all_at_once(scenario: Scenario) -> Scenario:
    """The scenario with a single step of all classes."""
    return scenario.offline()
