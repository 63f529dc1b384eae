"""Methods over tasks: the normalised score, and what a number of tasks or seeds cannot carry."""

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.profiles import critical_difference, draw, write_over_tasks
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.report.tables import over_rows
from contseg.benchmark.score import over_tasks as module
from contseg.benchmark.score.over_tasks import (
    OverTasks,
    bootstrap_interval,
    interquartile_mean,
    mean_ranks,
    no_interval,
    no_profile,
    no_ranks,
    over_tasks,
    profile,
    said,
    summary,
    wilcoxon_holm,
)
from contseg.benchmark.score.rows import Search, Tuned
from contseg.datasets import errors
from contseg.tests.records import Record, joint_run, make_run

MIB = PROTOCOLS["mib"]  # without background in the mean: 'all' is the mean of what is hit


def tasks(n: int, seeds: int = 1, **hits: float) -> list[Record]:
    """``n`` tasks on which FT has 10 %, Joint 90 % and a method its share, 1 % more a task, 2 % more a seed."""
    records: list[Record] = []
    for s in range(seeds):
        records += joint_run(s, hit=lambda t, k: 0.9)
        for i in range(n):
            records += make_run("FT", s, task=f"2-1@{i}", hit=lambda t, k: 0.1)
            for method, hit in hits.items():
                value = hit + 0.01 * i + 0.02 * s
                records += make_run(method, s, task=f"2-1@{i}", hit=lambda t, k, value=value: value)
    return records


def made(n: int, seeds: int) -> OverTasks:
    """Two methods on ``n`` tasks, without records."""
    rng = np.random.default_rng(0)
    values = np.array([0.3, 0.6])[:, None, None] + rng.normal(0, 0.02, (2, seeds, n))
    blocks = tuple(("toy", f"2-1@{i}", "overlapped", "mib") for i in range(n))
    return OverTasks("(all - FT) / (Joint - FT)", ("LwF", "MiB[kd=3]"), tuple(range(seeds)), blocks, values)


def test_the_score_is_that_between_ft_and_joint_by_hand() -> None:
    (over,) = over_tasks(leaderboard(tasks(2, 2, MiB=0.5, LwF=0.3), MIB))
    assert (over.score, over.methods, over.seeds) == ("(all - FT) / (Joint - FT)", ("LwF", "MiB"), (0, 1))
    expected = [[[0.20, 0.21], [0.22, 0.23]], [[0.40, 0.41], [0.42, 0.43]]]  # method, seed, task
    assert over.values == pytest.approx(np.array(expected) / 0.8)
    frame = summary(over).set_index("method")
    assert frame.loc["MiB", "mean"] == pytest.approx(0.415 / 0.8)
    assert frame.loc["MiB", ["lowest", "highest"]].tolist() == pytest.approx([0.41 / 0.8, 0.42 / 0.8])
    assert frame[["iqm_low", "iqm_high", "rank"]].isna().all(axis=None)


def test_one_task_is_no_comparison_over_tasks() -> None:
    assert over_tasks(leaderboard(tasks(1, MiB=0.5), MIB)) == []
    assert over_tasks(leaderboard([], MIB)) == []


def test_without_ft_it_is_the_share_of_joint_and_without_joint_nothing() -> None:
    records = tasks(2, MiB=0.45)
    (over,) = over_tasks(leaderboard([r for r in records if r["method"] != "FT"], MIB))
    assert (over.score, over.values.ravel().tolist()) == ("all / Joint", pytest.approx([0.5, 46 / 90]))
    (none,) = over_tasks(leaderboard([r for r in records if r["method"] != "Joint"], MIB))
    assert none.methods == ()
    with warnings.catch_warnings(action="error"):
        assert none.cells.shape == (0, 2)
    assert said(none) == [
        "no score over tasks: no run of Joint has seed and configuration of another method in toy/2-1@0/overlapped, "
        "toy/2-1@1/overlapped"
    ]


def test_methods_and_seeds_that_are_not_everywhere_are_left_out_and_named() -> None:
    records = tasks(2, 3, MiB=0.5, LwF=0.3, SDR=0.6)
    records = [r for r in records if not (r["method"] == "LwF" and r["task"] == "2-1@1")]
    records = [r for r in records if not (r["method"] == "SDR" and r["seed"] == 2)]
    (over,) = over_tasks(leaderboard(records, MIB))
    assert (over.methods, over.seeds) == (("MiB", "SDR"), (0, 1))
    assert over.notes == (
        "left out of the score over tasks: LwF: no run in toy/2-1@1/overlapped",
        "score over tasks: the seeds that all methods have in all tasks, 2 of 3",
    )


def test_rows_that_have_no_like_in_another_task_are_named() -> None:
    """Each task has a search of its own, as ``tune`` makes it: its rows are compared in their task alone."""
    records = tasks(2, MiB=0.5, LwF=0.3)
    tuned = {}
    for i in range(2):
        best = make_run(f"MiB[kd={i + 3}]", task=f"2-1@{i}", hit=lambda t, k: 0.6)
        tuned[best[0]["run"]] = [Tuned(Search("first", f"toy/[{i + 1}|3]/overlapped", 4), default=False)]
        records += best
    (over,) = over_tasks(leaderboard(records, MIB, tuned=tuned))
    assert over.methods == ("LwF", "MiB")
    assert over.notes == (
        "left out of the score over tasks: MiB, tuned on first (toy/[1|3]/overlapped), 4 trials; MiB, tuned on first "
        "(toy/[2|3]/overlapped), 4 trials: a search chose them for one task, and no other task has them; the table "
        "of their task ranks them",
    )
    bare = [r for r in records if r["method"] not in ("MiB", "LwF")]
    (alone,) = over_tasks(leaderboard(bare, MIB, tuned=tuned))
    assert (alone.methods, alone.notes, alone.title) == ((), over.notes, "over tasks")
    assert "a search chose them for one task, and no other" in render(leaderboard(bare, MIB, tuned=tuned))


def test_a_task_whose_joint_is_not_above_ft_has_no_scale() -> None:
    records = tasks(3, MiB=0.5)
    for r in records:
        if r["method"] == "FT" and r["task"] == "2-1@1":
            r["matrix"] = next(
                q["matrix"] for q in joint_run(hit=lambda t, k: 0.95) + make_run(hit=lambda t, k: 0.95)
                if q["channels"] == r["channels"]
            )  # fmt: skip
    (over,) = over_tasks(leaderboard(records, MIB))
    assert [b[1] for b in over.blocks] == ["2-1@0", "2-1@2"]
    assert "left out of the score over tasks: toy/2-1@1/overlapped: Joint is not above FT" in said(over)


def test_ways_of_scoring_are_not_averaged() -> None:
    other = [{**r, "protocol": PROTOCOLS["plop"].as_dict()} for r in tasks(2, MiB=0.4)]
    boards = over_tasks(leaderboard(tasks(3, MiB=0.5) + [{**r, "run": r["run"][::-1]} for r in other], MIB))
    assert [len(over.blocks) for over in boards] == [3, 2]


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([[0.0, 10, 20, 30], [40, 50, 60, 900]])) == 35  # of 20, 30, 40, 50
    assert interquartile_mean(np.array([[1.0, 2, 6]])) == 3  # a quarter of three is no whole number


def test_ranks_profile_and_wilcoxon_by_hand() -> None:
    cells = np.array([[0.9, 0.8, 0.7], [0.5, 0.8, 0.9], [0.1, 0.1, 0.1]])
    assert mean_ranks(cells).tolist() == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3])
    assert profile(cells, [0.0, 0.75, 0.8, 0.95]).tolist() == [[1, 2 / 3, 1 / 3, 0], [1, 2 / 3, 1 / 3, 0], [1, 0, 0, 0]]
    up = np.stack([np.arange(10) / 100, 0.5 + np.arange(10) / 50, 0.5 + np.arange(10) / 50])
    p = wilcoxon_holm(up)  # ten differences of one sign: 2 / 2^10, Holm: times three; and no difference at all
    assert p[0, 1] == pytest.approx(3 * 2 / 2**10)
    assert (p[1, 2], p.diagonal().tolist()) == (1, [1, 1, 1])
    assert (p == p.T).all()


def test_what_the_numbers_do_not_carry() -> None:
    assert no_interval(5) is None and no_profile(4) is None
    assert no_interval(4) == "no interval: 4 seeds, a bootstrap needs 5"
    assert no_profile(3) == "no performance profile: 3 tasks give it 4 heights, it needs 4 tasks"
    assert no_ranks(9, 3) == "no ranks and no critical-difference diagram: 9 tasks, mean ranks need 10"
    assert no_ranks(10, 7) is None and no_ranks(11, 10) is None and no_ranks(6, 1) is not None
    assert no_ranks(10, 10) == (
        "no ranks and no critical-difference diagram: 10 tasks, Wilcoxon's test with Holm's correction cannot find a "
        "difference among 10 methods (45 pairs) below 11"
    )


def test_the_interval_resamples_seeds_for_all_tasks_together() -> None:
    """Seeds move all tasks alike: resampled task by task, the interval would be far narrower."""
    values = np.repeat(np.array([[0.1], [0.3], [0.5], [0.7], [0.9]]), 16, axis=1)
    low, high = bootstrap_interval(values)
    assert low < 0.25 and high > 0.75
    assert bootstrap_interval(values) == (low, high)
    flat = np.tile(np.linspace(0, 1, 16), (5, 1))
    assert bootstrap_interval(flat) == pytest.approx((0.5, 0.5))


def test_five_seeds_and_twelve_tasks_have_interval_and_ranks() -> None:
    over = made(12, 5)
    frame = summary(over).set_index("method")
    assert frame["rank"].to_dict() == {"LwF": 2, "MiB[kd=3]": 1}
    assert (frame["iqm_low"] < frame["iqm"]).all() and (frame["iqm"] < frame["iqm_high"]).all()
    head, rows = over_rows(over)
    assert head == ["method", "mean", "IQM", "95 % interval", "lowest", "highest", "mean rank"]
    assert [(row[0], row[-1]) for row in rows] == [("LwF", "2.0"), ("MiB", "1.0")]
    assert said(over)[-1].startswith(
        "ranks: significant difference for 1 of 1 pairs (Wilcoxon's signed-rank test over 12"
    )
    assert over_rows(made(9, 4))[0] == ["method", "mean", "IQM", "lowest", "highest"]


def test_text_shows_the_comparison_and_what_it_does_not_carry() -> None:
    text = render(leaderboard(tasks(2, MiB=0.5), MIB))
    expected = """over 2 tasks · mib

method      mean    IQM    lowest    highest
--------  ------  -----  --------  ---------
MiB        0.506  0.506     0.500      0.512

score: (all - FT) / (Joint - FT), of the same seed; 2 tasks of 1 data set, 1 seed; IQM: interquartile mean over runs"""
    assert expected in text
    assert "\nno interval: 1 seed, a bootstrap needs 5\nno performance profile: 2 tasks" in text


def test_equal_methods_are_rarely_said_to_differ_over_tasks() -> None:
    """Of 400 tables of five equal methods on twelve tasks, those with a false claim: 5 % and what chance adds."""
    rng = np.random.default_rng(0)
    tables = rng.normal(0.5, 0.1, (400, 5, 12)) + rng.normal(0, 0.2, (400, 1, 12))
    false = sum(bool((wilcoxon_holm(cells) <= 0.05).any()) for cells in tables)
    assert 0 < false <= stats.binom.ppf(0.999, 400, 0.05)


def test_figures_are_drawn_or_refused_with_a_reason(tmp_path: Path) -> None:
    written, refused = write_over_tasks(leaderboard(tasks(2, MiB=0.5, LwF=0.3), MIB), tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [
        f"over-tasks-mib/scores.{ending}" for ending in ("png", "pdf")
    ]
    assert refused == [no_profile(2), no_ranks(2, 2)]


def test_enough_tasks_have_profiles_and_the_diagram(tmp_path: Path) -> None:
    pytest.importorskip("scikit_posthocs")
    written, refused = draw(made(12, 5), tmp_path)
    names = ["scores", "profiles", "critical-difference"]
    assert [p.name for p in written] == [f"{n}.{ending}" for n in names for ending in ("png", "pdf")]
    assert refused == []


def test_without_the_extra_the_diagram_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    assert critical_difference(made(12, 1)) == (
        "not drawn: the critical-difference diagram needs scikit_posthocs, which is not installed: "
        "pip install 'contseg[diagram]'"
    )


def test_the_smallest_number_of_tasks_is_that_of_the_smallest_p_value() -> None:
    least = [next(n for n in range(1, 40) if no_ranks(n, m) is None) for m in range(2, 16)]
    assert least == [10, 10, 10, 10, 10, 10, 11, 11, 11, 12, 12, 12, 12, 13]
    assert all(a <= b for a, b in pairwise(least))
    assert module.ENOUGH_CELLS == 10
