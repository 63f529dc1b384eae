"""What there is to show: the rows of all tables by scenario and by method, the runs, and the address of every page.

An address depends on what a page shows and on nothing else, so a link in a paper stays valid as records are added.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from contseg.benchmark.report.tables import short_names
from contseg.benchmark.score.leaderboard import Contest, Leaderboard, ranked
from contseg.benchmark.score.metrics import part_name
from contseg.benchmark.score.records import Run
from contseg.benchmark.score.scores import Scored, plain_name
from contseg.benchmark.store.files import digest

Place: TypeAlias = tuple[str, str, str]  # data set, task, setup

SETUPS = {
    "sequential": "A step sees images with a new class and none with a future class; old classes stay labelled.",
    "disjoint": "A step sees images with a new class and none with a future class; old classes become background.",
    "overlapped": "A step sees every image with a new class; old and future classes are labelled background.",
    "partitioned": "Each image belongs to one step; old and future classes are labelled background.",
    "domain": "A step brings images of new domains and no class; all classes are labelled in every step.",
}


def slug(text: str) -> str:
    """A file name for a text: the text itself where that is one, else what is left of it and eight digits of its hash.

    >>> slug("MiB+SDR"), slug("a/b")
    ('MiB+SDR', 'a_b-f5effa31')
    """
    plain = re.sub(r"[^A-Za-z0-9+@=.-]+", "_", text).strip("_.")[:80]
    return plain if plain and plain == text else f"{plain}-{digest(text)[:8]}"


def scenario_page(place: Place) -> str:
    return f"scenario/{slug('-'.join(place))}.html"


def compare_page(place: Place) -> str:
    return f"compare/{slug('-'.join(place))}.html"


def method_page(plain: str) -> str:
    return f"method/{slug(plain)}.html"


def run_id(run: Run) -> str:
    """Twelve digits that name a run: its evaluations, scenario, method and seed."""
    last = run.last
    return digest([last[n] for n in ("run", "dataset", "task", "order", "setup", "method", "seed")])[:12]


def run_page(run: Run) -> str:
    return f"run/{run_id(run)}.html"


@dataclass(frozen=True)
class Row:
    """One row of a table: a method in a contest. ``short``: its name there; ``runs``: by seed.

    ``unscored``: the seeds whose run is consistent and was not scored again by its networks.
    """

    board: Leaderboard
    key: Contest
    index: int
    cell: dict[str, Any]
    short: str
    runs: tuple[Scored, ...]
    unscored: frozenset[int] = frozenset()

    @property
    def plain(self) -> str:
        """The method without parameters: whose page tells more of it."""
        return plain_name(self.cell["method"])

    @property
    def place(self) -> Place:
        return self.key[0], self.key[1], self.key[2]

    def leads(self, column: str) -> bool:
        """Whether the number in a column is significantly best."""
        return (self.index, column) in self.board.leaders


@dataclass(frozen=True)
class Catalogue:
    """All leaderboards of a site, one for each protocol. ``unscored``: by ``run_id``, the runs not scored again."""

    boards: tuple[Leaderboard, ...]
    unscored: frozenset[str] = frozenset()

    @cached_property
    def rows(self) -> list[Row]:
        return list(_rows(self.boards, self.unscored))

    @cached_property
    def scenarios(self) -> dict[Place, list[list[Row]]]:
        """The tables of every scenario, one for each contest, in the order of the boards."""
        tables: dict[Place, dict[Contest, list[Row]]] = {}
        for row in self.rows:
            tables.setdefault(row.place, {}).setdefault(row.key, []).append(row)
        return {place: list(by_key.values()) for place, by_key in tables.items()}

    @cached_property
    def methods(self) -> dict[str, list[Row]]:
        """The rows of every method, whatever its parameters, by name."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.plain, []).append(row)
        return dict(sorted(found.items(), key=lambda item: item[0].lower()))

    @cached_property
    def runs(self) -> dict[str, list[tuple[Row, Scored]]]:
        """Every run with the rows that it is part of; first the one under the protocol of its own record."""
        found: dict[str, list[tuple[Row, Scored]]] = {}
        for row in self.rows:
            for scored in row.runs:
                found.setdefault(run_id(scored.run), []).append((row, scored))
        for shown in found.values():
            shown.sort(key=lambda pair: pair[0].key[3] != pair[1].run.last["protocol"]["name"])
        return found


def _rows(boards: Sequence[Leaderboard], unscored: frozenset[str]) -> Iterator[Row]:
    for board in boards:
        for key, part in board.contests():
            short = short_names(board, key[0])
            for index, cell in zip(part.index.tolist(), part.to_dict("records"), strict=True):
                runs = tuple(board.of((*key, cell["method"])))
                seeds = frozenset(s.run.seed for s in runs if run_id(s.run) in unscored)
                values = {str(k): v for k, v in cell.items()}
                yield Row(board, key, int(index), values, short[cell["method"]], runs, seeds)


def alike(rows: Sequence[Row]) -> list[tuple[list[Row], str]]:
    """The rows of a table in groups that may be ranked together, and what those of a group are, as ``ranked`` says."""
    by_index = {row.index: row for row in rows}
    groups = ranked(rows[0].board.frame.loc[[*by_index]])
    return [([by_index[i] for i in part.index], kind) for part, kind in groups]


def groups_of(row: Row) -> tuple[tuple[Any, ...], ...]:
    """What each step of a scenario brings: foreground classes, or domains."""
    return tuple(tuple(part for part in group if part) for group in row.runs[0].score.groups)


def class_names(row: Row) -> list[str]:
    """The data set's classes by label."""
    return list(row.runs[0].run.last["class_names"])


def parts_shown(run: Scored) -> list[tuple[str, int, Any]]:
    """Name, step and label of every class; where steps bring domains, of every domain, then of the classes."""
    score, names = run.score, run.run.last["class_names"]
    parts = [(part_name(k, names), step, k) for step, group in enumerate(score.groups) for k in group]
    by_domain = any(isinstance(k, str) for _, _, k in parts)
    return parts + [(names[k], 0, k) for k in score.steps[-1].iou if by_domain]


def question(place: Place, groups: Sequence[Sequence[Any]]) -> str:
    """What a scenario asks, in one sentence.

    >>> question(("voc", "15-1", "overlapped"), [range(1, 16), [16], [17]])
    'voc: after 15 classes, then 1 at a time in 2 more steps, which method knows all 17 classes best?'
    """
    sizes = [len(group) for group in groups]
    by_domain = any(isinstance(part, str) for group in groups for part in group)
    thing, things = ("domain", "domains") if by_domain else ("class", "classes")
    first = f"{sizes[0]} {thing if sizes[0] == 1 else things}"
    if len(sizes) == 1:
        return f"{place[0]}: which mIoU does one training on all {sizes[0]} {things} reach?"
    later, steps = sizes[1:], len(sizes) - 1
    by = f"{later[0]} at a time" if len(set(later)) == 1 else f"{', '.join(map(str, later))} at a time"
    more = f"in {steps} more steps" if steps > 1 else "in one more step"
    if steps == 1:
        by = f"{later[0]} more" if later[0] else "no more"
    return f"{place[0]}: after {first}, then {by} {more}, which method knows all {sum(sizes)} {things} best?"
