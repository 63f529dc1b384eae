"""Where a tuning looks for a weight is declared with the weight."""

import math
import typing
from typing import Annotated

import pytest

from contseg.benchmark.cli.listing import LISTS
from contseg.benchmark.plan.config import TrainConfig
from contseg.methods.ranges import Search, Weight, admit, search, type_name
from contseg.methods.registry import Entry, addons, methods

ENTRIES = [*methods().values(), *addons().values()]
# every weight of a distillation or a penalty, method by method
WEIGHTS = {
    "ALIFE": {"ali", "kd"},
    "MiB": {"kd"},
    "LwF": {"kd"},
    "LwF-MC": {"kd"},
    "ILT": {"kd", "features"},
    "CIL": {"kd"},
    "DKD": {"kd", "evidence"},
    "EWC": {"weight"},
    "PI": {"weight"},
    "RW": {"weight"},
    "PLOP": {"pod", "pod_logits"},
    "RCIL": {"kd", "factor", "last"},
    "REMINDER": {"csw", "pod", "pod_logits"},
    "STAR": {"pkd", "contrast"},
    "DKD-M": {"kd", "evidence"},
    "STAR-M": {"pkd", "contrast"},
    "MiB-AugM": {"kd"},
    "SSUL-M": set(),
    "UAC": {"weight"},
    "UCD": {"weight"},
    "FT": set(),
    "Joint": set(),
}


def test_every_weight_has_a_space() -> None:
    found = {e.name: {p.name for p in e.parameters if search(p.annotation)} for e in ENTRIES}
    assert {name: found[name] for name in WEIGHTS} == WEIGHTS
    terms = {"matching", "attraction", "repulsion", "sparsity"}
    assert [{p.name for p in table["SDR"].parameters if search(p.annotation)} for table in (methods(), addons())] == [
        {"kd", *terms},
        terms,
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind} {e.name}")
def test_a_default_lies_inside_its_space_and_the_space_inside_the_range(entry: Entry) -> None:
    for p in entry.parameters:
        if space := search(p.annotation):
            assert space.low < p.default < space.high, p.name
            assert [admit(p.name, value, p.annotation) for value in (space.low, space.high)] == [space.low, space.high]


def test_the_rate_of_later_steps_has_a_space_around_its_default() -> None:
    space = search(typing.get_type_hints(TrainConfig, include_extras=True)["lr"])
    assert space == Search(3e-4, 1e-1)
    assert space.low < TrainConfig().lr[-1] < space.high


def test_a_space_is_crossed_in_equal_factors_or_in_equal_steps() -> None:
    assert [Search(1, 100).at(s) for s in (0.0, 0.5, 1.0)] == pytest.approx([1, 10, 100])
    assert [Search(1, 100, log=False).at(s) for s in (0.0, 0.5, 1.0)] == pytest.approx([1, 50.5, 100])
    assert math.isclose(Search(3e-4, 1e-1).at(0.25), 3e-4 * (1000 / 3) ** 0.25)


@pytest.mark.parametrize(("low", "high", "log"), [(2, 1, True), (1, 1, False), (0, 1, True)])
def test_a_space_without_values_is_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        Search(low, high, log)


def test_a_space_changes_neither_type_nor_range() -> None:
    kind = Annotated[Weight, Search(1, 100)]
    assert (type_name(kind), admit("kd", 1000, kind), search(Weight)) == ("float >= 0", 1000.0, None)


def test_the_long_list_shows_them() -> None:
    long = LISTS["methods"](True)
    assert (
        "(tune: 1 to 100, log)" in long and "every method: train.lr of later steps   (tune: 0.0003 to 0.1, log)" in long
    )
    assert "tune:" not in LISTS["methods"](False)
