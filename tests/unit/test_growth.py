"""What grows with a field grows no faster than it: calls are counted, at once, twice and four times the size.

A count is the same on every machine; what happens inside one call of C is not seen. Work that is linear has twice the
increase from two to four times the size that it has from one to two, work that is quadratic four times. (Tests of all
pairs of methods are quadratic in methods by their nature, so the tables grow by seeds and by tasks.)
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from contseg.benchmark.cli.cache import listing
from contseg.benchmark.cli.plan_view import as_table
from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import Config
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.records import read_records
from contseg.benchmark.store.files import Store
from contseg.tests.benchmarks.field import write_cache
from contseg.tests.benchmarks.grid import Resident
from contseg.tests.records import make_run, write_records


def calls(work: Callable[[], object]) -> Counter[str]:
    """How often each function is called, by name; those of C under the name of their kind."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found["(C)"] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def linear(work: Callable[[int], Callable[[], object]]) -> list[Counter[str]]:
    """The calls at three sizes; asserts that their number grows no faster than the size."""
    work(1)()  # what is imported and remembered once
    found = [calls(work(size)) for size in (1, 2, 4)]
    one, two, four = (counts.total() for counts in found)
    assert four - two <= 2.1 * (two - one), (one, two, four)
    return found


def hits(method: str, seed: int) -> Callable[[int, int], float]:
    """Other numbers for each method and seed."""
    return lambda step, label: 0.5 + 0.01 * (len(method) * seed % 7 + label - step)


def table(folder: Path) -> None:
    """What ``report`` does."""
    records, problems = read_records(folder)
    assert not problems
    board = leaderboard(records, PROTOCOLS["sdr"])
    for form in ("text", "markdown", "csv"):
        render(board, form)


@pytest.mark.parametrize("grows", ["seeds", "tasks"])
def test_a_report_reads_each_record_once_and_is_linear(grows: str, tmp_path: Path) -> None:
    def work(size: int) -> Callable[[], object]:
        seeds, tasks = (3 * size, 2) if grows == "seeds" else (2, 3 * size)
        cells = product(("FT", "MiB", "PLOP"), range(seeds), range(tasks))
        runs = [make_run(method, seed, task=f"2-1@{task}", hit=hits(method, seed)) for method, seed, task in cells]
        folder = write_records(tmp_path / str(size), list(chain(*runs)))
        return lambda: table(folder)

    for size, found in zip((1, 2, 4), linear(work), strict=True):
        n = 3 * 2 * 2 * 3 * size  # records
        assert [found[name] for name in ("read_record", "fault", "score_step")] == [n, n, n]


def test_a_listing_reads_the_head_of_each_step_once_and_is_linear(tmp_path: Path) -> None:
    def work(size: int) -> Callable[[], object]:
        store = write_cache(tmp_path / str(size), 10 * size)
        return lambda: listing(store)

    assert [found["read_meta"] for found in linear(work)] == [10, 20, 40]


@pytest.mark.parametrize("grows", ["seeds", "methods"])
def test_a_plan_is_linear(grows: str, tmp_path: Path) -> None:
    data = Resident(64, 16, 16, classes=6)

    def work(size: int) -> Callable[[], object]:
        seeds, weights = (size, 4) if grows == "seeds" else (1, 4 * size)
        methods = tuple(f"{name}[kd={i + 2}]" for i in range(weights) for name in ("LwF", "MiB"))
        methods += tuple(f"FT+Memory[size={i + 2}]" for i in range(weights))
        config = replace(Config(), scenarios=("resident/2-1/overlapped",), methods=methods, seeds=tuple(range(seeds)))
        return lambda: as_table(make_plan(config, lambda _: data), Store(tmp_path))

    for size, found in zip((1, 2, 4), linear(work), strict=True):
        assert found["_step_key"] == 12 * 4 * size  # once for each cell
