"""Trials of a tuning: a method with drawn parameters, and the stream on which its trials are compared.

A trial is a row of a grid as any other, ``MiB[kd=31.6,train.lr=(0.01,0.00316)]``: what it shares with other trials is
trained once, and it runs wherever a grid runs. Selection as in Chaudhry et al. (arXiv 1812.00420: a part of the
stream), and Cha and Cho (arXiv 2403.09066: another data set or class order).
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from scipy.stats import qmc

from contseg.benchmark.plan.config import SELECTIONS, Config, TrainConfig, TunedConfig
from contseg.benchmark.plan.recipe import own_recipe
from contseg.benchmark.plan.views import made_by
from contseg.datasets.errors import UserError, unknown
from contseg.datasets.scenario import Scenario
from contseg.methods.grammar import parse, recipe, value_text, with_parameters, with_recipe
from contseg.methods.ranges import Search, search
from contseg.methods.registry import build_method, expand_methods, parts_of


@dataclass(frozen=True)
class Trial:
    """A row of the grid that a tuning runs. ``name``: as the grid calls it; ``values``: what is varied, by name."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class Tuning:
    """A grid of trials.

    ``config``: that grid; ``trials``: by the name of the method; ``target``: the grid that was asked for; ``said``: how
    a trial is chosen, in a line; ``search``: the same as ``[tuned]`` of a grid, nothing chosen yet.
    """

    config: Config
    trials: dict[str, list[Trial]]
    target: Config
    said: str
    search: TunedConfig

    def chosen(self, names: Sequence[str], record: str = "") -> Config:
        """The grid that was asked for, with the trials of these names as its methods, and with what chose them.

        ``record``: the SHA-256 of the file of all trials.
        """
        numbers = tuple(self.numbers[name] for name in names)
        tuned = replace(self.search, methods=tuple(names), numbers=numbers, record=record)
        return replace(self.target, methods=tuple(names), tuned=tuned)

    @property
    def numbers(self) -> dict[str, int]:
        """The name of a trial -> its number; a value drawn twice has the number of its first trial, 0: the default."""
        drawn = [(trial.name, n) for those in self.trials.values() for n, trial in enumerate(those)]
        return dict(reversed(drawn))


Split: TypeAlias = Literal["tune", "val"]
SPLITS: dict[Split, str] = {"tune": "a held-out fifth of the training images", "val": "its test images: an oracle"}


def spaces(method: str) -> dict[tuple[int, str], Search]:
    """What is varied of a method: (number of the part, parameter) -> its space. What the text gives is left alone."""
    given = [own for _, own in parse(method)]
    return {
        (n, p.name): space
        for n, entry in enumerate(parts_of(method))
        for p in entry.parameters
        if (space := search(p.annotation)) and p.name not in given[n]
    }


def trials(method: str, n: int, *, seed: int, first_rate: float, rate: Search | None) -> list[str]:
    """``n`` texts of a method: the method as it is, then points of a scrambled Sobol sequence.

    ``rate``: the space of the learning rate of later steps, after ``first_rate`` at step 0; a ``first_rate`` of 0: of
    the only step. ``None``, or a method that gives its own rate: the rate is not varied. Values have three digits.
    Raises ``UserError`` for a method of which nothing can be varied.
    """
    found = spaces(method)
    varied = rate is not None and "lr" not in recipe(method)
    axes = [*found.values(), *([rate] if rate is not None and varied else [])]
    if n < 1 or (n > 1 and not axes):
        what = f"{method}: nothing of it can be varied; leave it out" if n > 1 else "a tuning has at least one trial"
        raise UserError(what)
    if n == 1:
        return [method]
    drawn = qmc.Sobol(len(axes), scramble=True, rng=seed).random_base2((n - 1).bit_length())
    made = [method]
    for shares in drawn[1:n]:
        values = [value_text(float(f"{axis.at(share):.3g}")) for axis, share in zip(axes, shares, strict=True)]
        text, own = _with_values(method, dict(zip(found, values, strict=False))), recipe(method)
        if varied:
            own["lr"] = f"({value_text(first_rate)},{values[-1]})" if first_rate else values[-1]
        made.append(with_recipe(text, own))
    return made


def _with_values(method: str, values: dict[tuple[int, str], str]) -> str:
    parts = []
    for n, (name, own) in enumerate(parse(method)):
        mine = own | {key: value for (part, key), value in values.items() if part == n}
        parts.append(with_parameters(name, [f"{key}={value}" for key, value in mine.items()]))
    return "+".join(parts)


def selection(on: str, scenario: Scenario) -> tuple[str, Split]:
    """The scenario on which trials are compared, and ``eval.split``.

    ``first``: a stream inside step 0, scored on a held-out fifth of its images: what later steps bring is unseen.
    ``other:SCENARIO``: that one, likewise. ``stream``: the scenario itself, likewise; test images are unseen.
    ``test``: the scenario itself and its test images, an oracle.
    """
    kind, _, other = on.partition(":")
    if kind == "other" and other:
        return other, "tune"
    if on == "first":
        return first_step(scenario), "tune"
    if on in ("stream", "test"):
        return scenario.name, "tune" if on == "stream" else "val"
    raise unknown("selection", on, SELECTIONS)


def first_step(scenario: Scenario) -> str:
    """A stream inside step 0: half of its classes, then groups of the size of the task's later steps.

    Raises ``UserError`` where step 0 has one class, there is no later step, its images are chosen by later classes, or
    every seed has another step 0.
    """
    groups = scenario.groups
    if len(groups) < 2 or len(groups[0]) < 2:
        raise UserError(f"{scenario.name}: no stream fits into step 0; tune on `stream` or `other:SCENARIO`")
    if scenario.setup != "overlapped":
        raise UserError(
            f"{scenario.name}: tune on `first` with the overlapped setup; elsewhere later classes choose its images"
        )
    if scenario.order == "random":
        raise UserError(
            f"{scenario.name}: each seed draws its own class order; fix it, {scenario.task}@random0, to tune on "
            "`first`, as the first classes of one seed are later ones of another"
        )
    classes, size = groups[0], len(groups[1])
    half = -(-len(classes) // 2)
    inner = [classes[:half], *(classes[k : k + size] for k in range(half, len(classes), size))]
    return f"{scenario.dataset}/[{'|'.join(_labels(group) for group in inner)}]/{scenario.setup}"


def _labels(group: Sequence[int]) -> str:
    whole = len(group) > 1 and list(group) == list(range(group[0], group[-1] + 1))
    return f"{group[0]}-{group[-1]}" if whole else ",".join(map(str, group))


ADAMW_RATES = Search(1e-5, 1e-3)  # around the 6e-5 of Swin and the 1e-4 of ConvNeXt (docs/networks.md)


def rate_space(train: TrainConfig) -> Search | None:
    """The space of the learning rate, of later steps or of the only one: SGD's is the declared one."""
    declared = search(typing.get_type_hints(TrainConfig, include_extras=True)["lr"])
    return declared if train.optimizer == "sgd" else ADAMW_RATES


def make_tuning(config: Config, scenario: Scenario, *, on: str, n: int, seed: int) -> Tuning:
    """The grid of ``n`` trials of every method of ``config``, to be tuned for its one scenario.

    A method with one step alone (Joint) has its only learning rate varied, others that of later steps. Raises
    ``UserError``.
    """
    where, which = selection(on, scenario)
    found: dict[str, list[Trial]] = {}
    for text in (one for given in config.methods for one in expand_methods(given)):
        method = build_method(text)
        several = len(made_by(method, scenario).steps) > 1
        first = config.train.lr[0] if several else 0.0
        name, train = own_recipe(config, method.name)
        drawn = trials(method.name, n, seed=seed, first_rate=first, rate=rate_space(train))
        found[name] = [_trial(config, method.name, one, several) for one in drawn]
    grid = replace(
        config,
        scenarios=(where,),
        methods=tuple(t.name for those in found.values() for t in those),
        eval=replace(config.eval, split=which),
        tuned=TunedConfig(),
    )
    said = f"tuned on {on} ({where}, {SPLITS[which]}), {n} trials a method, Sobol seed {seed}, best 'all' mIoU"
    return Tuning(grid, found, config, said, TunedConfig(on=on, scenario=where, trials=n, draw=seed))


def _trial(config: Config, method: str, text: str, several: bool) -> Trial:
    """A trial by the name it has in the grid, with what is varied of it."""
    given, values = parse(text), dict[str, float]()
    entries = parts_of(method)
    for n, key in spaces(method):
        (default,) = (p.default for p in entries[n].parameters if p.name == key)
        value = given[n][1].get(key, default)
        values[key if n == 0 else f"{entries[n].name}.{key}"] = float("nan" if value is None else value)
    name, train = own_recipe(config, build_method(text).name)
    if "lr" not in recipe(method):
        values["train.lr"] = train.lr[-1] if several else train.lr[0]
    return Trial(name, values)
