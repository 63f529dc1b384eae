"""Paired intervals against scipy's own t test, and what they allow a table to say."""

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from contseg.benchmark.score.paired_test import all_pairs, holm, honest_difference, leader, paired


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


def test_nothing_leads_alone_or_without_numbers() -> None:
    nan = float("nan")
    assert leader({"A": {0: 1.0, 1: 1.0}}) is None
    assert leader({"A": {0: 1.0, 1: 1.0}, "B": {0: nan, 1: nan}}) is None


# --- all pairs, corrected for their number --------------------------------------------------------------------------


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_tukey_by_hand() -> None:
    """Block ANOVA of three methods over three seeds: residuals 1, -1, 0 ..., q(3, 4) = 5.040 in printed tables."""
    values = np.array([[10.0, 12, 14], [11, 15, 13], [20, 19, 24]])
    rest = [
        [y - row.mean() - column.mean() + values.mean() for y, column in zip(row, values.T, strict=True)]
        for row in values
    ]
    variance = sum(x * x for row in rest for x in row) / 4
    assert honest_difference(values) == pytest.approx(5.0402 * (variance / 3) ** 0.5, rel=1e-4)


def test_of_two_methods_tukey_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(60, 2, 5), rng.normal(58, 2, 5)
    d = paired(seeds(*a), seeds(*b))
    assert honest_difference(np.stack([a, b])) == pytest.approx(d.high - d.mean, rel=1e-6)


def test_pairs_and_the_groups_without_a_significant_difference() -> None:
    table = {"low": seeds(40, 41.5, 40.5), "far": seeds(70, 71, 70.5), "near": seeds(69, 72, 70)}
    pairs = all_pairs({**table, "once": {0: 99.0}, "gap": {0: 1.0, 1: float("nan")}})
    assert pairs.significant == {("low", "far"): True, ("low", "near"): True, ("far", "near"): False}
    assert pairs.alike == (("far", "near"),)
    assert pairs.test == "Tukey"
    assert pairs.said == (
        "analysis of variance over 3 seeds, Tukey's correction for 3 pairs, family error 5 % if spreads are equal; "
        "of one seed and not compared: once, gap"
    )


def test_groups_overlap_where_only_their_ends_differ() -> None:
    noise = np.array([0.1, -0.1, 0.0])
    pairs = all_pairs({name: seeds(*(mean + noise[order])) for name, mean, order in (
        ("a", 50.0, [0, 1, 2]), ("b", 50.3, [1, 2, 0]), ("c", 50.6, [2, 0, 1]), ("d", 60.0, [0, 2, 1]),
    )})  # fmt: skip
    assert pairs.alike == (("c", "b"), ("b", "a"))
    assert sum(pairs.significant.values()) == 4


def test_without_seeds_in_common_each_pair_is_tested_alone_and_holm_corrects() -> None:
    table = {"a": {0: 50.0, 1: 51.0, 2: 50.5}, "b": {0: 70.0, 1: 71.2, 2: 70.4, 8: 70.0, 9: 71.0},
             "c": {8: 70.3, 9: 70.9}}  # fmt: skip
    pairs = all_pairs(table)
    assert pairs.significant == {("a", "b"): True, ("b", "c"): False}
    assert pairs.said == "paired t tests, Holm's correction for 2 of 3 pairs, family error 5 %"
    assert pairs.alike == (("c", "b"),)
    assert all_pairs({"a": {0: 1.0, 1: 2.0}, "b": {2: 1.0, 3: 2.0}}) is None
    assert all_pairs({"a": {0: 1.0}, "b": {0: 2.0}}) is None


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]).tolist() == pytest.approx([1.0, 1.0])


def test_equal_rows_never_differ() -> None:
    same = seeds(50.1, 50.2, 50.4)
    assert all_pairs({"a": same, "b": dict(same), "c": seeds(*(x + 3 for x in same.values()))}).alike == (("a", "b"),)


FAMILIES = 1000
Claims = Callable[[Mapping[str, Mapping[int, float]]], bool]


def any_pair(table: Mapping[str, Mapping[int, float]]) -> bool:
    return any(all_pairs(table).significant.values())


def any_pair_uncorrected(table: Mapping[str, Mapping[int, float]]) -> bool:
    return any(paired(a, b).significant for a, b in combinations(table.values(), 2))


def false_claims(claims: Claims, methods: int, n: int, ragged: bool = False) -> int:
    """In how many of 1000 tables of equal methods, with effects of seeds and equal spreads, something is claimed."""
    rng = np.random.default_rng(methods * 100 + n)
    count = 0
    for _ in range(FAMILIES):
        values = rng.normal(60, 1, (methods, n)) + rng.normal(0, 2, n)
        table = {str(m): seeds(*row) for m, row in enumerate(values)}
        if ragged:  # the first method and the last one share one seed
            table["0"].pop(0)
            table[str(methods - 1)] = {k: v for k, v in table[str(methods - 1)].items() if k < 2}
        count += claims(table)
    return count


# what a true rate of 5 % exceeds once in a thousand such counts
AT_MOST = int(stats.binom.ppf(0.999, FAMILIES, 0.05))


@pytest.mark.parametrize(("methods", "n"), [(2, 3), (5, 3), (10, 3), (5, 5), (15, 5)])
def test_equal_methods_are_rarely_said_to_differ(methods: int, n: int) -> None:
    assert 0 < false_claims(any_pair, methods, n) <= AT_MOST
    assert false_claims(lambda table: leader(table) is not None, methods, n) <= AT_MOST


def test_holm_keeps_its_promise_too() -> None:
    assert false_claims(any_pair, 5, 3, ragged=True) <= AT_MOST


def test_without_correction_the_count_is_seen_to_grow() -> None:
    assert false_claims(any_pair_uncorrected, 5, 3) > 300
