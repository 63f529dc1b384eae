"""Paired intervals against scipy's own t test, and what they allow a table to say."""

import numpy as np
import pytest
from scipy import stats

from contseg.benchmark.score.paired_test import leader, not_significant, paired


def test_interval_is_the_paired_t_tests() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(60, 2, 5), rng.normal(58, 2, 5)
    d = paired(dict(enumerate(a)), dict(enumerate(b)))
    reference = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (d.low, d.high) == pytest.approx((reference.low, reference.high))
    assert d.mean == pytest.approx(np.mean(a - b))
    assert d.n == 5


def test_only_common_seeds_are_paired() -> None:
    d = paired({0: 10.0, 1: 20.0, 7: 99.0}, {1: 15.0, 0: 5.0, 3: -50.0})
    assert (d.mean, d.n) == (5.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_carries_nothing() -> None:
    d = paired({0: 90.0}, {0: 10.0})
    assert (d.mean, d.n, d.significant) == (80.0, 1, False)
    assert leader({"A": {0: 90.0}, "B": {0: 10.0}}) is None


def test_a_leader_beats_every_other_beyond_the_seeds() -> None:
    far = {0: 70.0, 1: 71.0, 2: 70.5}
    near = {0: 69.0, 1: 72.0, 2: 70.0}
    low = {0: 40.0, 1: 41.5, 2: 40.5}
    assert leader({"far": far, "low": low}) == "far"
    assert leader({"far": far, "low": low}, higher=False) == "low"
    assert leader({"far": far, "near": near, "low": low}) is None
    assert not_significant({"far": far, "near": near, "low": low}) == [("far", "near")]


def test_nothing_leads_alone_or_without_numbers() -> None:
    nan = float("nan")
    assert leader({"A": {0: 1.0, 1: 1.0}}) is None
    assert leader({"A": {0: 1.0, 1: 1.0}, "B": {0: nan, 1: nan}}) is None
