"""Fine-tuning, the lower bound, and joint training, the upper bound."""

from __future__ import annotations

from dataclasses import replace

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Scenario
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.fit import one_training
from contseg.methods.grammar import recipe
from contseg.methods.registry import build_method, register_method


@register_method("FT")
def finetune() -> Method:
    """Plain cross entropy on the labels of the step, with nothing against forgetting."""
    return Method("FT", terms={"ce": CrossEntropy()}, domains=True)


@register_method("Joint")
def joint(like: str | None = None) -> Method:
    """One training on all classes, or all domains, at once: the upper bound of every task of a data set.

    like: a method whose network, losses, rates and prediction of step 0 it has, such as RCIL; none: plain cross entropy
    """
    if like is None:
        return Method("Joint", terms={"ce": CrossEntropy()}, scenario=all_at_once, domains=True)
    if given := recipe(like):
        key, value = next(iter(given.items()))
        raise UserError(f"Joint[like={like}]: the recipe belongs to Joint, write train.{key}={value} beside like")
    whole = build_method(like)
    if one_training(whole):
        raise UserError(f"Joint[like={like}]: {like} trains all classes at once itself; name another method")
    return replace(whole, name="Joint", scenario=all_at_once, memory=None)


def all_at_once(scenario: Scenario) -> Scenario:
    """The scenario with a single step of all classes."""
    return scenario.offline()
