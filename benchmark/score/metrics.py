"""Confusion matrix -> IoU -> old / new / all, forgetting and the rest. Every number is derived from stored counts.

``n`` foreground labels of the data set, ``C`` seen classes with background, ``T`` steps. A record's matrix has a row
for each raw label 0..n, a last one for void, and a column for each predicted channel. Everything is in per cent.
``docs/metrics.md`` lists every definition with its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contseg.benchmark.plan.protocol import Protocol

Counts: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]
Part: TypeAlias = int | str  # what a step brings: foreground labels, or domains
Groups: TypeAlias = Sequence[Sequence[Part]]
NAN = float("nan")


def scored_counts(record: dict[str, Any], protocol: Protocol) -> Counts:
    """The square confusion matrix (C, C) of a record under a protocol's scoring: rows truth, columns prediction.

    Rows and columns follow the record's ``channels``. Pixels that the protocol ignores are removed, so they are not
    false positives of any class, as in the released code.
    """
    stored = record["matrix"]
    rows = np.asarray(stored["seen"], dtype=np.int64)
    if protocol.test_images == "all":
        rows = rows + np.asarray(stored["unseen"], dtype=np.int64)
    return _scored(rows, record, protocol)


def _scored(rows: Counts, record: dict[str, Any], protocol: Protocol) -> Counts:
    rows, channels = rows[:-1].copy(), list(record["channels"])
    if protocol.future_at_test == "background":
        rows[0] += np.delete(rows, channels, axis=0).sum(0)
    if not protocol.counts_class0(record["dataset"]):
        rows[0] = 0
    return rows[channels]


def class_iou(counts: Counts, eps: float = 0.0) -> Values:
    """IoU_c = TP_c / (GT_c + P_c - TP_c) of a matrix (C, C) -> (C,), NaN where a class has no ground truth (F-MIOU).

    The released code adds ``eps`` = 1e-6 to the denominator; the effect is below rounding, and the default is 0.
    """
    hits, truth = np.diag(counts).astype(float), counts.sum(1)
    union = truth + counts.sum(0) - hits + eps
    return np.where(truth > 0, 100 * hits / np.where(truth > 0, union, 1), NAN)


def pixel_accuracy(counts: Counts) -> float:
    """Share of the scored pixels with the right class."""
    total = counts.sum()
    return float(100 * np.trace(counts) / total) if total else NAN


def mean(values: Sequence[float] | Values) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else NAN


def harmonic(a: float, b: float) -> float:
    """Harmonic mean 2ab / (a + b); 0 if both are 0."""
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


@dataclass(frozen=True)
class StepScore:
    """One step of a run under a protocol: ``iou`` by raw label, in the order of the channels; NaN without ground truth.

    ``in_mean``: the labels that the protocol includes in means.
    """

    iou: dict[int, float]
    in_mean: frozenset[int]
    accuracy: float

    def miou(self, parts: Sequence[Any]) -> float:
        """Mean IoU over the given labels, as far as they are seen and in the mean."""
        return mean([self.iou[k] for k in parts if k in self.in_mean])

    def of(self, part: Part) -> float:
        """The IoU of a class, in the mean or not; by domain the mIoU of a domain. NaN without test pixels."""
        return self.iou.get(part, NAN) if isinstance(part, int) else self.miou([part])

    def foreground(self, parts: Sequence[Any]) -> float:
        """Mean IoU without background, under any protocol."""
        return mean([self.iou[k] for k in parts if k and k in self.iou])


@dataclass(frozen=True)
class DomainScore(StepScore):
    """One step of a run by domain: a mean is over all classes, of the test images of the given domains together.

    ``counts``: the scored matrix of each domain tested so far.
    """

    counts: dict[str, Counts]
    absent: float  # IoU of a class without ground truth

    def miou(self, parts: Sequence[Any]) -> float:
        return mean([v for k, v in self._iou(parts).items() if k in self.in_mean])

    def foreground(self, parts: Sequence[Any]) -> float:
        return mean([v for k, v in self._iou(parts).items() if k])

    def _iou(self, domains: Sequence[str]) -> dict[int, float]:
        known = [self.counts[d] for d in domains if d in self.counts]
        return _by_label(sum(known[1:], known[0]), [*self.iou], self.absent) if known else {}


def score_step(record: dict[str, Any], protocol: Protocol) -> StepScore:
    """Score one record under a protocol."""
    counts, absent = scored_counts(record, protocol), 0.0 if protocol.absent_classes == "zero" else NAN
    iou = _by_label(counts, record["channels"], absent)
    with0 = protocol.background_in_mean == "yes" and protocol.counts_class0(record["dataset"])
    in_mean = frozenset(iou) - (set() if with0 and record.get("background", True) else {0})
    if not record.get("domains"):
        return StepScore(iou, in_mean, pixel_accuracy(counts))
    by_domain = {d: _scored(np.asarray(m, dtype=np.int64), record, protocol) for d, m in _matrices(record).items()}
    return DomainScore(iou, in_mean, pixel_accuracy(counts), by_domain, absent)


def _matrices(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["matrix"]["domains"]
    return found


def _by_label(counts: Counts, labels: Sequence[int], absent: float) -> dict[int, float]:
    """IoU by label of a matrix (C, C); ``absent`` where a class has no ground truth."""
    return {k: absent if np.isnan(v) else v for k, v in zip(labels, class_iou(counts).tolist(), strict=True)}


def part_name(part: Part, class_names: Sequence[str]) -> str:
    """The name of a class or of a domain."""
    return class_names[part] if isinstance(part, int) else part


@dataclass(frozen=True)
class RunScore:
    """All steps of a run under a protocol, with a scenario's groups of classes; background is in the first group.

    By domain, groups are domains: old are the domains of step 0, new all later ones.

    ``groups`` may be finer than the run's own steps: Joint has one step and is shown with every task's groups.
    """

    steps: tuple[StepScore, ...]
    groups: tuple[tuple[Part, ...], ...]
    by_group: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        """``by_group[t][g]``: mIoU of group g after step t; NaN before the group is learned."""
        table = tuple(tuple(s.miou(group) for group in self.groups) for s in self.steps)
        object.__setattr__(self, "by_group", table)

    @property
    def _base(self) -> tuple[Part, ...]:
        return self.groups[0]

    @property
    def _later(self) -> tuple[Part, ...]:
        return tuple(k for group in self.groups[1:] for k in group)

    @property
    def incremental(self) -> bool:
        """Whether the run has the scenario's steps (Joint has not)."""
        return len(self.steps) == len(self.groups) > 1

    def old(self, t: int = -1) -> float:
        """mIoU of the classes of step 0; with background if the protocol includes it."""
        return self.steps[t].miou(self._base)

    def new(self, t: int = -1) -> float:
        """mIoU of all later classes seen by then."""
        return self.steps[t].miou(self._later)

    def all(self, t: int = -1) -> float:
        """mIoU of all classes seen by then."""
        return self.steps[t].miou(self._base + self._later)

    def summary(self) -> dict[str, float]:
        """All metrics of a table's row, after the last step unless noted."""
        last = self.steps[-1]
        old, new = self.old(), self.new()
        return {
            "old": old,
            "new": new,
            "all": self.all(),
            "harmonic": harmonic(old, new),
            "old_foreground": last.foreground(self._base),
            "all_foreground": last.foreground(self._base + self._later),
            "accuracy": last.accuracy,
            **self.over_steps(),
        }

    def over_steps(self) -> dict[str, float]:
        """What compares steps; NaN where the run has not the scenario's steps (Joint). A is ``by_group``.

        ``avg``: mean of all mIoU over the steps. ``step0``: all mIoU after step 0. ``forgetting``: mean over the groups
        before the last of ``max_t<T-1 A[t][g] - A[T-1][g]`` (Chaudhry et al. 2018). ``backward_transfer``: mean over
        the same of ``A[T-1][g] - A[g][g]`` (Lopez-Paz and Ranzato 2017). ``plasticity``: mean of ``A[g][g]``, g >= 1.
        """
        if not self.incremental:
            return dict.fromkeys(("avg", "step0", "forgetting", "backward_transfer", "plasticity"), NAN)
        a, final, earlier = self.by_group, self.by_group[-1], range(len(self.groups) - 1)
        return {
            "avg": mean([self.all(t) for t in range(len(self.steps))]),
            "step0": self.all(0),
            "forgetting": mean([max(row[g] for row in a[g:-1]) - final[g] for g in earlier]),
            "backward_transfer": mean([final[g] - a[g][g] for g in earlier]),
            "plasticity": mean([a[g][g] for g in earlier[1:]] + [final[-1]]),
        }


def score_run(records: Sequence[dict[str, Any]], protocol: Protocol, groups: Groups) -> RunScore:
    """Score a run's records, in the order of its steps, with a scenario's groups of foreground labels or domains."""
    first, *later = groups
    background = () if records[-1].get("domains") else (0,)
    return RunScore(
        tuple(score_step(r, protocol) for r in records), ((*background, *first), *(tuple(g) for g in later))
    )


def step_miou(record: dict[str, Any], protocol: Protocol) -> dict[str, float]:
    """mIoU of ``old``, ``new`` and ``all`` classes (by domain: domains) after the step of one record, in per cent.

    Without those that have no class yet; of a run with one step, as Joint, ``all`` alone.
    """
    groups = record.get("domains") or record["groups"]
    score = score_run([record], protocol, groups)
    found = {"old": score.old(), "new": score.new(), "all": score.all()}
    return {part: v for part, v in found.items() if not np.isnan(v) and (part == "all" or len(groups) > 1)}
