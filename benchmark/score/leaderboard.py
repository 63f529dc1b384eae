"""The leaderboard: cells, which of their numbers are significantly best, and notes.

A table is a query over records; nothing here trains or reads a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import pandas as pd

from contseg.benchmark.plan.protocol import Protocol
from contseg.benchmark.score.paired_test import all_pairs, leader, paired
from contseg.benchmark.score.records import Record, Run, differing, gather_runs, identity
from contseg.benchmark.score.rows import NO_SEARCH, Searches, note
from contseg.benchmark.score.scores import (
    ALIKE,
    CELL,
    CONTEST,
    LOWER_IS_BETTER,
    RANKED,
    Scored,
    cell_frame,
    configuration_of,
    plain_name,
    run_frame,
    score_runs,
    searches_of,
)
from contseg.methods.external import CODES

Contest: TypeAlias = tuple[str, str, str, str]
Seeds: TypeAlias = dict[int, float]


@dataclass(frozen=True)
class Leaderboard:
    """A table and its notes. ``frame``: one row for each cell; ``runs``: one row for each run, with the same columns.

    ``scored``: the runs themselves, in the order of ``runs``.
    ``leaders``: (row index, column) of the significantly best numbers of each contest.
    ``literature``: the published number of a row, and the difference to it.
    """

    frame: pd.DataFrame
    runs: pd.DataFrame
    scored: tuple[Scored, ...]
    protocol: Protocol
    notes: tuple[str, ...] = ()
    leaders: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    literature: pd.DataFrame = field(default_factory=pd.DataFrame)

    def of(self, cell: tuple[str, ...]) -> list[Scored]:
        """The runs of a row, sorted by seed."""
        return self._of.get(cell, [])

    @cached_property
    def _of(self) -> dict[tuple[str, ...], list[Scored]]:
        found: dict[tuple[str, ...], list[Scored]] = {}
        for s in sorted(self.scored, key=lambda s: s.run.seed):
            found.setdefault(s.cell, []).append(s)
        return found

    def contests(self) -> Iterable[tuple[Contest, pd.DataFrame]]:
        """The parts of the frame that stand in one table. Which of their rows are ranked together: ``ranked``."""
        yield from self.frame.groupby(CONTEST, sort=False)


NOT_TOGETHER = (
    "rows that were tuned otherwise, saw other data besides the task, or have another configuration (marked) are not "
    "ranked together: bold is the best of the rows of one kind"
)


def ranked(part: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of a contest in groups that may be ranked together, those of one configuration that are equal in
    ``ALIKE``; and what the rows of a group are, to stand behind the contest's name: "" if they are all of its rows."""
    kinds = part[ALIKE].assign(configuration=part["method"].map(configuration_of))
    varied = [column for column in kinds if kinds[column].nunique() > 1]
    words = {"tuned_on": "tuned on {}", "external": "external data {}", "configuration": "configuration {}"}
    groups = []
    for kind, index in kinds.groupby([*kinds], sort=False).groups.items():
        said = {c: NO_SEARCH if v == NO_SEARCH else words[c].format(v) for c, v in zip(kinds, kind, strict=True)}
        groups.append((part.loc[index], "".join(f", {said[column]}" for column in varied)))
    return groups


def _external_notes(scored: Sequence[Scored]) -> list[str]:
    """What the codes of external data in a table mean."""
    used = dict.fromkeys(code.partition("=")[0] for s in scored for code in s.external)
    return [f"external data: {'; '.join(f'{code}: {CODES[code]}' for code in CODES if code in used)}"] if used else []


def leaderboard(
    records: Sequence[Record], protocol: Protocol, order: Sequence[str] = (), tuned: Searches | None = None
) -> Leaderboard:
    """Score records under a protocol and group them into cells.

    ``order``: the methods in the order of the grid; ``tuned``: the searches that chose rows (``rows.read_rows``).
    """
    runs = gather_runs(records)
    whole = [r for r in runs if r.complete]
    scored = score_runs(whole, protocol, tuned)
    frame = run_frame(scored)
    cells = cell_frame(frame, order)
    searches = dict.fromkeys(note(s.search) for s in scored if s.search)
    rows = [r for r in whole if searches_of(r, tuned or {})]
    notes = [*_incomplete(runs), *_tried(len(whole) - len(rows)), *_replaced(rows, scored)]
    notes += [*_mixed_versions(whole), *_seed_notes(cells, frame)]
    notes += [*_difference_notes(cells, frame), *_configuration_notes(scored), *searches, *_external_notes(scored)]
    notes += [NOT_TOGETHER] if any(len(ranked(part)) > 1 for _, part in cells.groupby(CONTEST)) else []
    return Leaderboard(cells, frame, tuple(scored), protocol, tuple(notes), _leaders(cells, frame))


def _by_cell(frame: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """The runs of each cell; a table is gone over once, however many columns are asked for."""
    return dict(iter(frame.groupby(CELL, sort=False)))


def _values(runs_of: Mapping[tuple[str, ...], pd.DataFrame], part: pd.DataFrame, column: str) -> dict[str, Seeds]:
    """method -> seed -> value, for one contest, without Joint, which is an upper bound and not ranked."""
    cells = part[CELL].itertuples(index=False, name=None)
    runs = {cell[-1]: runs_of[cell] for cell in cells if plain_name(cell[-1]) != "Joint"}
    return {method: dict(zip(rows["seed"], rows[column], strict=True)) for method, rows in runs.items()}


def _leaders(cells: pd.DataFrame, frame: pd.DataFrame) -> frozenset[tuple[int, str]]:
    found, runs_of = set[tuple[int, str]](), _by_cell(frame)
    for part in (rows for _, whole in cells.groupby(CONTEST, sort=False) for rows, _ in ranked(whole)):
        for column in RANKED:
            best = leader(_values(runs_of, part, column), higher=column not in LOWER_IS_BETTER)
            found |= {(int(i), column) for i in part.index[part["method"] == best]}
    return frozenset(found)


def _seed_notes(cells: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    notes, corrected, runs_of = list[str](), False, _by_cell(frame)
    if len(cells) and (cells["seeds"] == 1).all():
        notes.append(
            "one seed: the standard deviation is unknown and nothing is bold (two seeds of one method on VOC 15-1 "
            "differed by 3.3 points in public reports, MiB issue 22)"
        )
    for key, part, kind in (
        (k, rows, kind) for k, whole in cells.groupby(CONTEST, sort=False) for rows, kind in ranked(whole)
    ):
        pairs = all_pairs(_values(runs_of, part, "all"))
        if pairs:
            corrected = True
            apart = sum(pairs.significant.values())
            listed = "; ".join(", ".join(group) for group in pairs.alike)
            notes.append(
                f"{'/'.join(key[:3])}{kind}: significant difference in 'all' for {apart} of "
                f"{len(pairs.significant)} pairs ({pairs.said})" + (f"; none within: {listed}" if listed else "")
            )
    if corrected:
        notes.append(
            "bold: better than every other row, each by its own paired 95 % confidence interval; this one claim needs "
            "no correction, claims on pairs do"
        )
    return notes


def _difference_notes(cells: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """The rows whose difference to FT or Joint is over fewer seeds than the row itself: it is no difference of rows."""
    few: dict[tuple[Contest, str, int, int], list[str]] = {}
    runs_of = _by_cell(frame)
    for cell in cells[CELL].itertuples(index=False, name=None):
        for column, end in (("to_ft", "FT"), ("to_joint", "Joint")):
            known = runs_of[cell][column].notna()
            if known.any() and not known.all():
                few.setdefault((cell[:4], end, int(known.sum()), len(known)), []).append(cell[4])
    return [
        f"{'/'.join(key[:3])}: Δ {end} over {n} of {seeds} seeds, those that {end} has too: {', '.join(methods)}"
        for (key, end, n, seeds), methods in few.items()
    ]


def _incomplete(runs: Sequence[Run]) -> list[str]:
    return [
        f"incomplete, not in the table: {run}: {len(run.records)} of {run.last['steps']} steps"
        for run in runs
        if not run.complete
    ]


def _tried(n: int) -> list[str]:
    """The trials that were compared on the images of this table: the best of them would be chosen by its test."""
    trials = f"{n} trial" + "s" * (n != 1)
    return [f"not in the table: {trials} of a search on the test images, as `tuned/` says"] if n else []


def _replaced(runs: Sequence[Run], scored: Sequence[Scored]) -> list[str]:
    """Complete runs in no table: a later one has their row and seed, or Joint of the tasks' own setup their place."""
    shown = {id(s.run) for s in scored}
    lost = [f"{run} ({str(run.last['run'])[:8]})" for run in runs if id(run) not in shown]
    more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
    return [f"not in the table, where another run has their place: {'; '.join(lost[:4])}{more}"] if lost else []


def _mixed_versions(runs: Sequence[Run]) -> list[str]:
    versions = [r["versions"] for run in runs for r in run.records]
    return [
        f"mixed versions of {name}: {', '.join(sorted({str(v.get(name)) for v in versions}))}"
        for name in differing(versions)
    ]


def _configuration_notes(scored: Sequence[Scored]) -> list[str]:
    """How each further configuration of a data set differs from its first one."""
    notes, kinds = [], dict[tuple[str, int], dict[str, object]]()
    for s in scored:
        kinds.setdefault((s.run.dataset, s.configuration), {}).update(identity(s.run))
    for (dataset, number), kind in kinds.items():
        first = kinds.get((dataset, 1))
        if number > 1 and first is not None:
            common = first.keys() & kind.keys()
            pair = [{k: c[k] for k in common} for c in (first, kind)]
            names = differing(pair)
            what = "; ".join(f"{n} {pair[0][n]} / {pair[1][n]}" for n in names[:4])
            more = f"; and {len(names) - 4} more" if len(names) > 4 else ""
            notes.append(f"{dataset}: rows marked ({number}) have another configuration than the others: {what}{more}")
    return notes


def paired_differences(board: Leaderboard, column: str = "all") -> pd.DataFrame:
    """Every pair that may be ranked together: mean difference over common seeds, its 95 % confidence interval, seeds.

    The interval is that of the pair alone. ``significant``: the verdict of ``test``, corrected for the number of pairs;
    ``None`` if a method has one seed.
    """
    rows, runs_of = [], _by_cell(board.runs)
    for key, part in ((key, group) for key, whole in board.contests() for group, _ in ranked(whole)):
        values = _values(runs_of, part, column)
        names = list(part["method"][part["method"].isin(values)])
        all_of = all_pairs(values)
        verdicts = all_of.significant if all_of else {}
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                d = paired(values[a], values[b])
                if d is not None:
                    corrected = verdicts.get((a, b))
                    test = all_of.test if all_of and corrected is not None else ""
                    rows.append((*key, a, b, d.mean, d.low, d.high, d.n, corrected, test))
    columns = [*CONTEST, "a", "b", "difference", "low", "high", "seeds", "significant", "test"]
    return pd.DataFrame(rows, columns=columns)
