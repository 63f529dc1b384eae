"""Trials of a tuning are rows of a grid: equal in number, drawn from a seed, inside their spaces."""

import re
from dataclasses import replace
from typing import Annotated

import numpy as np
import pytest

from contseg.benchmark.plan.config import TrainConfig, read_config
from contseg.benchmark.plan.search import first_step, make_tuning, rate_space, selection, spaces, trials
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.view import step_view
from contseg.methods import registry
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import build_method
from contseg.tests.unit.probe import grid, mini

RATE = Search(3e-4, 1e-1)


def drawn(method: str, n: int = 16, seed: int = 0, first_rate: float = 0.01) -> list[str]:
    return trials(method, n, seed=seed, first_rate=first_rate, rate=RATE)


@pytest.mark.parametrize("method", ["FT", "MiB", "MiB[kd=3]", "PLOP+SDR", "LwF+SDR[matching=none]", "Joint"])
def test_every_method_has_as_many_trials_and_the_first_is_the_method_itself(method: str) -> None:
    made = drawn(method)
    assert (len(made), len({*made}), made[0]) == (16, 16, method)
    assert made == drawn(method) != drawn(method, seed=1)
    assert made[:8] == drawn(method, 8)
    assert [build_method(text).name for text in made]  # every value is one that the method takes


def test_what_is_given_is_left_alone() -> None:
    assert [*spaces("MiB+SDR[matching=0.5]")] == [(0, "kd"), (1, "attraction"), (1, "repulsion"), (1, "sparsity")]
    assert all("kd=3" in text for text in drawn("MiB[kd=3]"))
    assert all(text.endswith("train.lr=0.5]") for text in drawn("MiB[train.lr=0.5]"))


def test_values_lie_inside_their_spaces_and_cover_them() -> None:
    """Of 16 points of the sequence, each sixteenth of an axis holds one; the first point gave way to the default."""
    values = [re.findall(r"kd=([\d.]+),train.lr=\(0.01,([\d.]+)\)", text)[0] for text in drawn("MiB")[1:]]
    kd, lr = np.array(values, dtype=float).T
    for found, space in ((kd, Search(1, 100)), (lr, RATE)):
        share = np.log(found / space.low) / np.log(space.high / space.low)
        assert len({*np.floor(share * 16 + 1e-9).astype(int)}) >= 14  # of 15, as values have three digits
        assert share.min() >= 0 and share.max() <= 1


def test_one_training_alone_has_its_only_rate_varied() -> None:
    assert all(re.fullmatch(r"Joint\[train\.lr=[\d.]+\]", text) for text in drawn("Joint", first_rate=0.0)[1:])


def test_trials_share_step_0() -> None:
    plan = grid("train.lr=0.01,0.001", method=tuple(drawn("MiB", 4)))
    first, last = ({run.cells[t].node.key for run in plan.runs} for t in (0, -1))
    assert (len(plan.runs), len(first), len(last)) == (4, 1, 4)


def test_a_method_without_anything_to_vary_is_refused() -> None:
    with pytest.raises(UserError, match=r"FT\[train\.lr=1\]: nothing of it can be varied"):
        drawn("FT[train.lr=1]")


def test_the_rate_has_its_space() -> None:
    assert rate_space(TrainConfig()) == RATE
    assert rate_space(TrainConfig(optimizer="adamw")) == Search(1e-5, 1e-3)


def test_a_method_with_an_optimiser_of_its_own_has_the_space_of_that() -> None:
    config = read_config(None, methods=("MiB", "MiB[train.optimizer=adamw,train.lr=1e-4]"))
    adamw = replace(config, methods=("MiB[train.optimizer=adamw]",))
    scenario = parse_scenario("mini/2-1-1/overlapped", 4)
    for grid_, space in ((config, RATE), (adamw, Search(1e-5, 1e-3))):
        tuning = make_tuning(grid_, scenario, on="stream", n=8, seed=0)
        rates = [t.values["train.lr"] for t in next(iter(tuning.trials.values()))[1:]]
        assert len(rates) == 7 and all(space.low <= rate <= space.high for rate in rates)


def test_a_value_that_is_none_by_default_is_none_in_the_first_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods()))

    @registry.register_method("Optional")
    def optional(weight: Annotated[Weight | None, Search(0.1, 1)] = None) -> Method:
        """One term."""
        return Method("Optional", {"ce": CrossEntropy(weight=weight or 1.0)})

    config = read_config(None, methods=("Optional",))
    tuning = make_tuning(config, parse_scenario("mini/3-1/overlapped", 4), on="first", n=2, seed=0)
    first, second = (trial.values["weight"] for trial in tuning.trials["Optional"])
    assert np.isnan(first) and 0.1 <= second <= 1


# --- the stream on which trials are compared -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "n", "inner"),
    [
        ("15-1", 20, "[1-8|9|10|11|12|13|14|15]"),
        ("15-5", 20, "[1-8|9-13|14-15]"),
        ("8-6", 14, "[1-4|5-8]"),
        ("8-2", 14, "[1-4|5-6|7-8]"),
        ("[2,4,9|1]", 20, "[2,4|9]"),
    ],
)
def test_first_is_half_of_step_0_and_then_groups_of_the_later_size(task: str, n: int, inner: str) -> None:
    scenario = parse_scenario(f"mine/{task}/overlapped", n)
    assert first_step(scenario) == f"mine/{inner}/overlapped"
    groups = parse_scenario(first_step(scenario), n).groups
    assert sum(groups, ()) == scenario.groups[0]


def test_first_sees_the_images_of_step_0_and_no_others() -> None:
    data = mini()
    outer = parse_scenario("mini/3-1/overlapped", 4)
    inner = parse_scenario(first_step(outer), 4)
    seen = [{*step_view(data, inner, t, "ignore", "train").ids} for t in range(len(inner.steps))]
    assert set.union(*seen) == {*step_view(data, outer, 0, "ignore", "train").ids}


@pytest.mark.parametrize(
    ("on", "found"),
    [
        ("first", ("voc/[1-8|9|10|11|12|13|14|15]/overlapped", "tune")),
        ("stream", ("voc/15-1/overlapped", "tune")),
        ("test", ("voc/15-1/overlapped", "val")),
        ("other:ccp/25-1/overlapped", ("ccp/25-1/overlapped", "tune")),
    ],
)
def test_selections(on: str, found: tuple[str, str]) -> None:
    assert selection(on, parse_scenario("voc/15-1/overlapped", 20)) == found


@pytest.mark.parametrize(
    ("on", "scenario", "said"),
    [
        ("frist", "voc/15-1/overlapped", "unknown selection 'frist': did you mean 'first'"),
        ("other:", "voc/15-1/overlapped", "unknown selection 'other:'"),
        ("first", "voc/offline/overlapped", "no stream fits into step 0"),
        ("first", "voc/15-1/disjoint", "tune on `first` with the overlapped setup"),
        ("first", "voc/15-1@random/overlapped", "each seed draws its own class order; fix it, 15-1@random0"),
    ],
)
def test_a_selection_that_cannot_be(on: str, scenario: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        selection(on, parse_scenario(scenario, 20))
    assert said in str(caught.value)
