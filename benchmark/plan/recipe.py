"""A method's own recipe: ``train.KEY=VALUE`` in its brackets, in the place of what ``[train]`` says.

``DKD[train.lr=(0.01,0.001),train.epochs=60]`` is trained with these two, and with the grid's values of all else. Only
what differs from the grid stays in the name, so that one recipe has one name.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from contseg.benchmark.plan.config import PER_STEP, Config, TrainConfig, checked, override
from contseg.datasets.errors import UserError
from contseg.methods.grammar import recipe, value_text, with_recipe


def own_recipe(config: Config, name: str) -> tuple[str, TrainConfig]:
    """The canonical name of a method in a grid, and what the method is trained with.

    Raises ``UserError`` for an unknown key, or for a value of another type or out of its range.
    """
    given = recipe(name)
    if not given:
        return name, config.train
    if "precision" in given:
        raise UserError(f"{name}: train.precision is one for a whole grid; set it in [train]")
    changed = config
    try:
        for key, text in given.items():
            changed = override(changed, f"train.{key}={text}")
        train = checked(changed).train
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if "epochs" in given and train.updates:
        raise UserError(f"{name}: train.updates goes before train.epochs; write train.updates=() beside it")
    own = {f.name: _steady(f.name, getattr(train, f.name)) for f in fields(train) if f.name in given}
    train = replace(train, **own)
    differs = {key: _text(v) for key, v in own.items() if v != _steady(key, getattr(config.train, key))}
    return with_recipe(name, differs), train


def _steady(key: str, value: Any) -> Any:
    """A value of each step, without the last one's repetitions: the last one serves all later steps."""
    while key in PER_STEP and len(value) > 1 and value[-1] == value[-2]:
        value = value[:-1]
    return value


def _text(value: Any) -> str:
    return value_text(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
