"""Which differences between methods are significant: paired over seeds, with a 95 % confidence interval.

The best number of a table needs no correction: it must differ from every other one. Claims on all pairs are corrected
for their number, so that equal methods give a false one in at most 5 % of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import inf, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95

Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Paired:
    """The mean of a - b over common seeds; ``low .. high`` is its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """Student's t interval of the per-seed differences of two methods (seed -> value); ``None`` without a common seed.

    One common seed gives an unbounded interval, which is never significant.
    """
    differences = [a[s] - b[s] for s in sorted(a.keys() & b.keys()) if not np.isnan(a[s] - b[s])]
    n = len(differences)
    if n == 0:
        return None
    mean = float(np.mean(differences))
    if n == 1:
        return Paired(mean, -inf, inf, 1)
    from scipy.special import stdtrit  # slow to import, and only needed with several seeds

    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(np.std(differences, ddof=1)) / sqrt(n)
    return Paired(mean, mean - half, mean + half, n)


def leader(methods: Mapping[str, Mapping[int, float]], higher: bool = True) -> str | None:
    """The significantly best method: its difference to every other one excludes 0. ``None`` if there is none."""
    sign = 1.0 if higher else -1.0
    known = {m: v for m, v in methods.items() if any(not np.isnan(x) for x in v.values())}
    if len(known) < 2:
        return None
    best = max(known, key=lambda m: sign * float(np.nanmean(list(known[m].values()))))
    for other in known:
        difference = paired(known[best], known[other]) if other != best else None
        if other != best and (difference is None or not difference.significant or sign * difference.mean <= 0):
            return None
    return best


@dataclass(frozen=True)
class Pairs:
    """All pairs of methods, corrected for their number.

    ``significant``: pair -> whether the two differ, in the order of the methods. ``test``: ``Tukey`` or ``Holm``.
    ``said``: test, seeds and number of pairs in words. ``alike``: groups of methods without a significant difference
    between any two of them, best first.
    """

    significant: dict[Pair, bool]
    test: str
    said: str
    alike: tuple[tuple[str, ...], ...]


def all_pairs(methods: Mapping[str, Mapping[int, float]]) -> Pairs | None:
    """Every pair of the methods with at least two seeds; ``None`` if there is none.

    Seeds that all methods have are blocks: analysis of variance with method and seed, then Tukey's honest significant
    difference. It assumes equal spreads; if they differ four-fold, the family error is 10 to 14 % instead of 5 %.
    With fewer than two such seeds: Student's t test of each pair over its own common seeds, with Holm's correction.
    """
    known = {m: {s: x for s, x in v.items() if not np.isnan(x)} for m, v in methods.items()}
    single = [m for m, v in known.items() if len(v) == 1]
    known = {m: v for m, v in known.items() if len(v) > 1}
    pairs = list(combinations(known, 2))
    if not pairs:
        return None
    common = sorted(set.intersection(*(set(v) for v in known.values())))
    number = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    if len(common) > 1:
        values = np.array([[v[s] for s in common] for v in known.values()])
        apart = np.abs(values.mean(1)[:, None] - values.mean(1)) > honest_difference(values)
        index = {m: i for i, m in enumerate(known)}
        significant = {(a, b): bool(apart[index[a], index[b]]) for a, b in pairs}
        test, assumed = "Tukey", "if spreads are equal"
        said = f"analysis of variance over {len(common)} seeds, Tukey's correction for {number}"
    else:
        ps = {pair: _t_test(known[pair[0]], known[pair[1]]) for pair in pairs}
        tested = {pair: p for pair, p in ps.items() if p is not None}
        if not tested:
            return None
        significant = dict(zip(tested, (holm(list(tested.values())) <= 1 - LEVEL).tolist(), strict=True))
        test, assumed = "Holm", ""
        said = f"paired t tests, Holm's correction for {len(tested)} of {number}"
    best_first = sorted(known, key=lambda m: -float(np.mean(list(known[m].values()))))
    said = f"{said}, family error 5 % {assumed}".rstrip()
    said += f"; of one seed and not compared: {', '.join(single)}" if single else ""
    return Pairs(significant, test, said, _alike(best_first, significant))


def honest_difference(values: NDArray[np.float64]) -> float:
    """Tukey's honest significant difference of means over complete blocks; ``values``: (methods, seeds).

    The residual of the additive model y = method + seed has (M - 1)(S - 1) degrees of freedom. With two methods this
    is half the width of the paired t interval.
    """
    m, n = values.shape
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (m - 1) * (n - 1)
    return max(_studentized_range(m, freedom) * sqrt(float((rest**2).sum()) / freedom / n), 1e-9)


@lru_cache(maxsize=256)
def _studentized_range(m: int, freedom: int) -> float:
    from scipy.stats import studentized_range  # slow to import, slow to invert

    return float(studentized_range.ppf(LEVEL, m, freedom))


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """Holm's adjusted p values (Scandinavian Journal of Statistics 1979), in the given order."""
    ordered = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[ordered] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p)[ordered]))
    return adjusted


def _t_test(a: Mapping[int, float], b: Mapping[int, float]) -> float | None:
    """The p value of the paired t test over common seeds; ``None`` with fewer than two."""
    d = np.array([a[s] - b[s] for s in sorted(a.keys() & b.keys())])
    if len(d) < 2:
        return None
    spread = float(d.std(ddof=1))
    if spread == 0:
        return float(d.mean() == 0)
    from scipy.special import stdtr

    return 2 * float(stdtr(len(d) - 1, -abs(float(d.mean())) * sqrt(len(d)) / spread))


def _alike(best_first: Sequence[str], significant: Mapping[Pair, bool]) -> tuple[tuple[str, ...], ...]:
    """The largest runs of neighbours without a significant difference; what they leave out follows as pairs."""

    def differ(a: str, b: str) -> bool:
        return significant.get((a, b), significant.get((b, a), True))

    groups: list[tuple[str, ...]] = []
    for i in range(len(best_first)):
        j = i + 1
        while j < len(best_first) and not any(differ(best_first[j], m) for m in best_first[i:j]):
            j += 1
        if j - i > 1 and not (groups and set(best_first[i:j]) <= set(groups[-1])):
            groups.append(tuple(best_first[i:j]))
    covered = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    rest = [pair for pair, apart in significant.items() if not apart and frozenset(pair) not in covered]
    return (*groups, *rest)
