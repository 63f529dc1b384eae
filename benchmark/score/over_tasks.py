"""Methods compared over tasks and orders: the normalised score, its interquartile mean, and ranks.

A *block* is a task with its order, setup, data set and protocol. Raw mIoU is not averaged over blocks: the score
(all - FT) / (Joint - FT) is 0 for fine-tuning and 1 for joint training, of the same seed and configuration. Without FT
it is all / Joint. What a number of blocks or seeds cannot carry is refused: ``no_interval``, ``no_ranks``,
``no_profile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contseg.benchmark.score.leaderboard import Leaderboard, ranked
from contseg.benchmark.score.paired_test import LEVEL, holm
from contseg.benchmark.score.rows import NO_SEARCH
from contseg.benchmark.score.scores import CONTEST, marked_name, plain_name, unmarked

TO_FT = "(all - FT) / (Joint - FT)"
TO_JOINT = "all / Joint"
ENOUGH_SEEDS = 5  # below, a nominal 95 % bootstrap interval covers 83 to 87 %
ENOUGH_CELLS = 10  # below, mean ranks cannot separate methods
PROFILE_CELLS = 4
RESAMPLES = 2_000
ALONE = "no row of another task was tuned alike, saw the same external data and has the same configuration"
ALONE_TUNED = "a search chose them for one task, and no other task has them; the table of their task ranks them"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class OverTasks:
    """``values``: (methods, seeds, blocks), the score of each run. ``notes``: what was left out, and why.

    ``kind``: what its rows have in common, where not all rows may be ranked together.
    """

    score: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    blocks: tuple[tuple[str, ...], ...]
    values: Values
    notes: tuple[str, ...] = ()
    kind: str = ""

    @property
    def names(self) -> list[str]:
        """The methods as tables name them: with parameters only where they alone tell two methods from each other."""
        plain = [plain_name(m) for m in dict.fromkeys(map(unmarked, self.methods))]
        return [marked_name(m) if plain.count(plain_name(m)) == 1 else m for m in self.methods]

    @property
    def title(self) -> str:
        """The heading of its table and figures."""
        return f"over {len(self.blocks)} tasks · {self.blocks[0][3]}{self.kind}" if self.blocks else "over tasks"

    @property
    def cells(self) -> Values:
        """(methods, blocks): means over seeds."""
        return self.values.mean(1) if self.methods else self.values.sum(1)


def over_tasks(board: Leaderboard) -> list[OverTasks]:
    """One comparison of the rows that may be ranked together, if they have two blocks or more: the methods that every
    block has, over the seeds that all of them have.

    A comparison without methods says in its notes why there is no score. FT and Joint are the ends of the scale and not
    compared. A block whose Joint is not above FT has no scale, and is left out; so are rows that may be ranked with
    none of another block, as those that a search of each block chose.
    """
    runs = board.runs.assign(block=list(zip(*(board.runs[c] for c in CONTEST), strict=True)))
    runs = runs[~runs["method"].map(plain_name).isin(["FT", "Joint"])]
    order = {name: i for i, name in enumerate(board.frame[[*CONTEST, "method"]].itertuples(index=False, name=None))}
    place = [order[*block, method] for block, method in zip(runs["block"], runs["method"], strict=True)]
    runs = runs.assign(place=place).sort_values("place", kind="stable")
    found = list[OverTasks]()
    for _, same in runs.groupby("protocol", sort=False):
        if same["block"].nunique() < 2:
            continue
        kinds = ranked(same)
        compared = [replace(_over(part), kind=kind) for part, kind in kinds if part["block"].nunique() > 1]
        alone = [part for part, _ in kinds if part["block"].nunique() == 1]
        for why, tuned in ((ALONE, False), (ALONE_TUNED, True)):
            parts = [part for part in alone if (part["tuned_on"].iloc[0] != NO_SEARCH) is tuned]
            if not parts:
                continue
            names = [marked_name(m) for part in parts for m in dict.fromkeys(part["method"])]
            note = f"left out of the score over tasks: {_list(names, '; ')}: {why}"
            first = compared[0] if compared else _none(TO_FT, (), [])
            compared[:1] = [replace(first, notes=(*first.notes, note))]
        found += compared
    return found


def _over(runs: pd.DataFrame) -> OverTasks:
    blocks = list(dict.fromkeys(runs["block"]))
    span = runs["to_ft"] - runs["to_joint"]  # Joint - FT
    flat = set(runs["block"][span <= 0])
    joint = runs["all"] - runs["to_joint"]
    with_ft = set(runs["block"][runs["to_ft"].notna()])
    score = TO_FT if with_ft >= set(blocks) else TO_JOINT
    runs = runs.assign(score=runs["to_ft"] / span if score == TO_FT else runs["all"] / joint)
    notes = list[str]()
    if score == TO_FT:
        runs, blocks = runs[~runs["block"].isin(flat)], [b for b in blocks if b not in flat]
        notes = [f"left out of the score over tasks: {_name(b)}: Joint is not above FT" for b in sorted(flat)]
    if len(blocks) < 2:
        return _none(score, blocks, [*notes, "no score over tasks: fewer than two tasks have a scale"])
    scored = runs.dropna(subset="score")
    without = [_name(b) for b in blocks if b not in set(scored["block"])]
    if without:
        why = f"no score over tasks: no run of Joint has seed and configuration of another method in {_list(without)}"
        return _none(score, blocks, [*notes, why])
    return _complete(score, runs, blocks, notes)


def _complete(score: str, runs: pd.DataFrame, blocks: Sequence[tuple[str, ...]], notes: list[str]) -> OverTasks:
    """The methods of all blocks and the seeds of all of these. ``runs``: those without a score too."""
    every_run = [*runs[["method", "block", "seed", "score"]].itertuples(index=False, name=None)]
    by = {(m, b, s): v for m, b, s, v in every_run if not np.isnan(v)}
    present = {(m, b) for m, b, _, _ in every_run}
    seeds_of: dict[str, dict[tuple[str, ...], set[int]]] = {m: {} for m, *_ in every_run}
    for method, block, seed in by:
        seeds_of[method].setdefault(block, set()).add(seed)
    methods = [m for m, found in seeds_of.items() if len(found) == len(blocks)]
    ends = "FT and Joint" if score == TO_FT else "Joint"
    for m, found in seeds_of.items():
        for why, there in (("no run in", False), (f"no {ends} of its seed and configuration in", True)):
            lacking = [_name(b) for b in blocks if b not in found and ((m, b) in present) is there]
            notes += [f"left out of the score over tasks: {marked_name(m)}: {why} {_list(lacking)}"] if lacking else []
    if not methods:
        return _none(score, blocks, [*notes, "no score over tasks: no method has a run in every task"])
    seeds = sorted(set.intersection(*(s for m in methods for s in seeds_of[m].values())))
    if not seeds:
        return _none(score, blocks, [*notes, "no score over tasks: no seed that all methods have in all tasks"])
    every = {s for m, _, s, _ in every_run if m in methods}
    if len(every) > len(seeds):
        bare = f", with {ends}" if any(np.isnan(v) for m, _, _, v in every_run if m in methods) else ""
        which = f"the seeds that all methods have in all tasks{bare}"
        notes.append(f"score over tasks: {which}, {len(seeds)} of {len(every)}")
    values = np.array([[[by[m, b, s] for b in blocks] for s in seeds] for m in methods])
    return OverTasks(score, tuple(methods), tuple(seeds), tuple(blocks), values, tuple(notes))


def _none(score: str, blocks: Sequence[tuple[str, ...]], notes: list[str]) -> OverTasks:
    return OverTasks(score, (), (), tuple(blocks), np.empty((0, 0, len(blocks))), tuple(notes))


def _name(block: Sequence[str]) -> str:
    return "/".join(block[:3])


def _list(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- what the numbers carry -----------------------------------------------------------------------------------------


def no_interval(seeds: int) -> str | None:
    """Why there is no bootstrap interval; ``None`` if there is one."""
    if seeds >= ENOUGH_SEEDS:
        return None
    return f"no interval: {seeds} seed{'s' if seeds > 1 else ''}, a bootstrap needs {ENOUGH_SEEDS}"


def no_profile(cells: int) -> str | None:
    """Why there is no performance profile; ``None`` if there is one."""
    if cells >= PROFILE_CELLS:
        return None
    return f"no performance profile: {cells} tasks give it {cells + 1} heights, it needs {PROFILE_CELLS} tasks"


def no_ranks(cells: int, methods: int) -> str | None:
    """Why there are no ranks and no diagram of them; ``None`` if there are.

    The smallest p value of Wilcoxon's test over N cells is 2 / 2^N; Holm multiplies it by the number of pairs.
    """
    if methods < 2:
        return "no ranks: fewer than two methods"
    pairs = methods * (methods - 1) // 2
    least = next(n for n in range(1, 99) if 2 ** (1 - n) * pairs <= 1 - LEVEL + 1e-12)
    if cells < max(ENOUGH_CELLS, least):
        why = (
            f"Wilcoxon's test with Holm's correction cannot find a difference among {methods} methods ({pairs} pairs) "
            f"below {least}"
            if least > ENOUGH_CELLS
            else f"mean ranks need {ENOUGH_CELLS}"
        )
        return f"no ranks and no critical-difference diagram: {cells} tasks, {why}"
    return None


# --- the numbers ----------------------------------------------------------------------------------------------------


def interquartile_mean(values: Values) -> float:
    """The mean without the lowest and the highest quarter, over all runs (Agarwal et al., NeurIPS 2021)."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25, axis=None))


def bootstrap_interval(values: Values) -> tuple[float, float]:
    """95 % percentile interval of the interquartile mean; ``values``: (seeds, blocks).

    Seeds are resampled jointly for all blocks: tasks that share a step 0 depend on each other. The generator is fixed.
    """
    from scipy.stats import trim_mean

    n = len(values)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = trim_mean(values[drawn].reshape(RESAMPLES, -1), 0.25, axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_ranks(cells: Values) -> Values:
    """(methods, blocks) -> (methods,): mean over blocks of the rank, 1 for the highest; equal values share one."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.round(cells, 9), axis=0)).mean(1)


def wilcoxon_holm(cells: Values) -> Values:
    """(methods, blocks) -> (methods, methods): p values of Wilcoxon's signed-rank test, with Holm's correction.

    Each pair is tested by itself, as mean ranks depend on which other methods are in the table (arXiv 1505.02288).
    """
    from scipy.stats import wilcoxon

    pairs = list(combinations(range(len(cells)), 2))
    differences = np.array([np.round(cells[a] - cells[b], 9) for a, b in pairs])  # rounding is no difference
    p = np.ones(len(pairs))
    sizes = np.sort(np.abs(differences), axis=1)
    exact = (sizes[:, 0] > 0) & (np.diff(sizes, axis=1) > 0).all(1)
    if exact.any():
        p[exact] = wilcoxon(differences[exact], axis=1, method="exact").pvalue
    for i in np.flatnonzero(~exact & differences.any(1)):  # ties and zeros: the normal approximation
        p[i] = wilcoxon(differences[i]).pvalue
    p = holm(p.tolist())
    table = np.ones((len(cells), len(cells)))
    for (a, b), value in zip(pairs, p, strict=True):
        table[a, b] = table[b, a] = value
    return table


def profile(cells: Values, thresholds: Sequence[float] | Values) -> Values:
    """(methods, blocks) -> (methods, thresholds): the share of cells whose score is above each threshold."""
    return np.asarray((cells[:, :, None] > np.asarray(thresholds)).mean(1))


def summary(over: OverTasks) -> pd.DataFrame:
    """A row a method: mean and interquartile mean over runs, its 95 % interval, lowest and highest cell, mean rank.

    NaN where there is no interval (fewer than five seeds) or no rank (fewer than ten cells).
    """
    n = len(over.blocks)
    ranks = mean_ranks(over.cells) if no_ranks(n, len(over.methods)) is None else [np.nan] * len(over.methods)
    rows = []
    for method, values, cells, rank in zip(over.methods, over.values, over.cells, ranks, strict=True):
        low, high = (np.nan, np.nan) if no_interval(len(over.seeds)) else bootstrap_interval(values)
        rows.append((method, values.mean(), interquartile_mean(values), low, high, cells.min(), cells.max(), rank))
    columns = ["method", "mean", "iqm", "iqm_low", "iqm_high", "lowest", "highest", "rank"]
    return pd.DataFrame(rows, columns=columns)


def said(over: OverTasks) -> list[str]:
    """The lines below a summary: what the score is, over what, and what these numbers do not carry."""
    if not over.methods:
        return list(over.notes)
    n, m = len(over.blocks), len(over.methods)
    datasets = len({b[0] for b in over.blocks})
    lines = [
        f"score: {over.score}, of the same seed; {n} tasks of {datasets} data set{'s' if datasets > 1 else ''}, "
        f"{len(over.seeds)} seed{'s' if len(over.seeds) > 1 else ''}; IQM: interquartile mean over runs; lowest, "
        "highest: of the tasks. Tasks that share step 0 depend on each other, and nothing is said of another data set"
    ]
    if no_interval(len(over.seeds)) is None:
        lines.append("interval: 95 % bootstrap of the IQM, seeds resampled jointly; at 5 seeds it covers 86 to 93 %")
    refusals = [no_interval(len(over.seeds)), no_profile(n), no_ranks(n, m)]
    if no_ranks(n, m) is None:
        p = wilcoxon_holm(over.cells)
        alike = [(a, b) for a, b in combinations(range(m), 2) if p[a, b] > 1 - LEVEL]
        pairs = m * (m - 1) // 2
        listed = "; ".join(f"{over.names[a]}, {over.names[b]}" for a, b in alike)
        lines.append(
            f"ranks: significant difference for {pairs - len(alike)} of {pairs} pairs (Wilcoxon's signed-rank test "
            f"over {n} tasks, Holm's correction, family error 5 %)" + (f"; none between {listed}" if listed else "")
        )
    return [*lines, *filter(None, refusals), *over.notes]
