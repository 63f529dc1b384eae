"""Which differences between methods are significant: paired over seeds, with a 95 % confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

LEVEL = 0.95


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


def not_significant(methods: Mapping[str, Mapping[int, float]]) -> list[tuple[str, str]]:
    """The pairs of methods whose interval includes 0, among those with at least two common seeds."""
    names = list(methods)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    compared = [(pair, paired(methods[pair[0]], methods[pair[1]])) for pair in pairs]
    return [pair for pair, d in compared if d is not None and d.n > 1 and not d.significant]
