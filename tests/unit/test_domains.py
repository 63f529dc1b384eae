"""Cityscapes by city: the numbers of images that logs of SegACIL show, and what the released rule trains on."""

import doctest

import numpy as np
import pytest

from contseg.datasets import domains
from contseg.datasets.domains import CITIES, as_released, by_city, city_groups, trained_on

VAL = ("frankfurt", "lindau", "munster")
# train files ascending by city, then val files
CITY_OF = [
    city for val in (False, True) for city in sorted(CITIES) if (city in VAL) == val for _ in range(CITIES[city])
]

ONE_BY_ONE = [176, 198, 95, 75, 156, 76, 97, 213, 47, 139]
RELEASED = {
    "11-5": ([1504, 702, 573], [376, 552, 695], 496),
    "11-1": ([1504, *ONE_BY_ONE], [376, 421, 470, 494, 513, 552, 571, 595, 649, 661, 695], 501),
    "1-1": (
        [139, 252, 68, 87, 156, 79, 292, 115, 113, 76, 123, *ONE_BY_ONE],
        [35, 98, 115, 137, 176, 196, 269, 298, 326, 346, 376, 421, 470, 494, 513, 552, 571, 595, 649, 661, 695],
        541,
    ),
}


def test_cities():
    assert (len(CITIES), sum(CITIES.values()), sum(CITIES[c] for c in VAL)) == (21, 3475, 500)
    assert [g[0] for g in city_groups("11-5")] == ["aachen", "dusseldorf", "ulm"]
    assert city_groups("1-1") == tuple((c,) for c in CITIES)
    assert city_groups("offline") == (tuple(CITIES),)


@pytest.mark.parametrize("task", RELEASED)
def test_images_as_released(task):
    train, test, leaked = RELEASED[task]
    steps = as_released(CITY_OF, city_groups(task))
    assert [len(s.train) for s in steps] == train
    assert [len(s.test) for s in steps] == test
    assert trained_on(steps) == leaked
    assert trained_on(steps[:1]) == 0


def test_offline_as_released_has_no_leak():
    steps = as_released(CITY_OF, city_groups("offline"))
    assert (len(steps[0].train), len(steps[0].test), trained_on(steps)) == (2780, 695, 0)


@pytest.mark.parametrize("task", [*RELEASED, "offline"])
def test_by_city_has_no_leak(task):
    """Every image is in one place; tasks differ only in when a city comes, so their last tests are equal."""
    groups = city_groups(task)
    steps = by_city(CITY_OF, groups)
    trained = np.concatenate([s.train for s in steps])
    assert (len(trained), len(steps[-1].test), trained_on(steps)) == (2772, 703, 0)
    assert sorted([*trained, *steps[-1].test]) == list(range(3475))
    for t, (step, group) in enumerate(zip(steps, groups, strict=True)):
        assert {CITY_OF[i] for i in step.train} == set(group)
        assert {CITY_OF[i] for i in step.test} == {c for g in groups[: t + 1] for c in g}
    assert set(steps[-1].test) == set(by_city(CITY_OF, city_groups("1-1"))[-1].test)


def test_one_city_a_step_trains_as_released():
    """Where a step has one city, both rules train on the same images."""
    groups = city_groups("1-1")
    for a, b in zip(as_released(CITY_OF, groups), by_city(CITY_OF, groups), strict=True):
        np.testing.assert_array_equal(a.train, b.train)


def test_the_shuffle_is_a_literal():
    """Five and five images of two cities, the same on every platform."""
    steps = as_released(["a"] * 5 + ["b"] * 5, [("a",), ("b",)])
    assert [s.train.tolist() for s in steps] == [[2, 1, 4, 0], [7, 6, 9, 5]]
    assert [s.test.tolist() for s in steps] == [[3], [8, 5]]


def test_examples_in_the_text():
    assert doctest.testmod(domains).failed == 0
