"""Rows of different kinds are never ranked together, and none is lost without a word."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.plan.search import Trial
from contseg.benchmark.report.elsewhere import eval_results
from contseg.benchmark.report.exports import latex_number
from contseg.benchmark.report.figures import file_name
from contseg.benchmark.report.paper import Choice, as_paper
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.report.tables import cell_text, number
from contseg.benchmark.report.tuning import budget_table
from contseg.benchmark.score.leaderboard import paired_differences
from contseg.benchmark.score.over_tasks import over_tasks
from contseg.benchmark.score.published import load_published, with_literature
from contseg.benchmark.score.records import configurations, gather_runs
from contseg.benchmark.score.tuning import trial_frame
from contseg.benchmark.site import scenarios
from contseg.benchmark.site.build import boards_of
from contseg.benchmark.site.catalogue import Catalogue
from contseg.benchmark.site.charts import Point, scatter
from contseg.tests.records import Record, joint_run, make_run

SDR = PROTOCOLS["sdr"]


def config(epochs: float = 1.0, **train: Any) -> dict[str, Any]:
    return {"model": {"backbone": "tiny"}, "train": {"epochs": [epochs], "batch": [8], **train}, "eval": {}}


def seeds(method: str, level: float, n: int = 3, **given: Any) -> list[Record]:
    """Runs whose seeds differ a little."""
    return [r for s in range(n) for r in make_run(method, s, hit=lambda t, k, s=s: level + 0.01 * s, **given)]


def two_kinds(**given: Any) -> list[Record]:
    """Two methods trained for an epoch, and two that were trained thirty times as long."""
    short = [*seeds("FT", 0.2, config=config(), **given), *seeds("MiB", 0.5, config=config(), **given)]
    long = [*seeds("FT", 0.3, config=config(30), **given), *seeds("MiB", 0.8, config=config(30), **given)]
    return short + long


def test_a_longer_schedule_is_not_ranked_with_a_shorter_one() -> None:
    board = leaderboard(two_kinds(), SDR)
    best = {board.frame["method"][i] for i, column in board.leaders if column == "all"}
    assert best == {"MiB", "MiB (2)"}
    pairs = paired_differences(board)[["a", "b"]].to_numpy().tolist()
    assert pairs == [["FT", "MiB"], ["FT (2)", "MiB (2)"]]
    said = [n for n in board.notes if n.startswith("toy/2-1/overlapped, configuration ")]
    assert [n.partition(" (")[0].partition(", ")[2] for n in said] == [
        f"configuration {k}: significant difference in 'all' for 1 of 1 pairs" for k in (1, 2)
    ]
    assert "have another configuration (marked) are not ranked together" in board.notes[-1]


def test_no_note_on_kinds_where_every_table_has_one() -> None:
    board = leaderboard(make_run("FT", external=["in1k"]) + make_run("FT", dataset="other", external=[]), SDR)
    assert not any("ranked together" in note for note in board.notes)


def test_rows_tested_on_other_crops_are_two_configurations() -> None:
    """A recipe's crop is that of training; the size that was tested is the grid's."""
    wide, narrow = config(crop=[512]), config(crop=[128])
    runs = gather_runs(
        make_run("FT", config=wide)
        + make_run("DKD[train.crop=128]", config={**narrow, "eval": {"crop": [512]}})
        + make_run("LwF[train.crop=128]", config={**narrow, "eval": {"crop": [256]}})
    )
    assert configurations(runs) == [1, 1, 2]


def test_seeds_that_saw_other_data_are_two_rows_of_two_names() -> None:
    board = leaderboard(make_run("FT", 0, external=[]) + make_run("FT", 1, external=["sal"]), SDR)
    assert board.frame[["method", "seeds"]].to_numpy().tolist() == [["FT", 1], ["FT (2)", 1]]
    assert any("external data of FT none / sal" in note for note in board.notes)


def test_the_front_page_has_the_best_of_each_kind() -> None:
    (question,) = scenarios.front(Catalogue(tuple(boards_of(two_kinds(), (), load_published()))))["questions"]
    assert [(b["name"], b["kind"], b["leads"]) for b in question["best"]] == [
        ("MiB", ", configuration 1", True),
        ("MiB (2)", ", configuration 2", True),
    ]


def test_a_pareto_line_joins_one_kind() -> None:
    points = [Point(n, o, w, kind=k) for n, o, w, k in (("a", 9, 1, 0), ("b", 1, 9, 0), ("c", 8, 2, 1), ("d", 2, 8, 1))]
    assert scatter(points, "x").count('class="pareto"') == 2


def test_a_scenario_page_has_no_note_of_another_scenario() -> None:
    records = two_kinds() + two_kinds(task="1-1", groups=((1,), (2,), (3,)))
    catalogue = Catalogue(tuple(boards_of(records, (), load_published())))
    ((_, lines),) = scenarios.about(("toy", "2-1", "overlapped"), catalogue)["feet"]
    assert sum(line.startswith("toy/2-1/overlapped, configuration") for line in lines) == 2
    assert not any(line.startswith("toy/1-1/") for line in lines)


# --- what is not in a table -----------------------------------------------------------------------------------------


def test_joint_of_some_classes_does_not_stand_for_joint_of_all() -> None:
    names = ["background", "class 1", "class 2", "class 3"]
    some = make_run("FT", task="[1|2]", groups=((1,), (2,))) + joint_run(n=2, hit=lambda t, k: 0.5)
    for r in some[2:]:
        r["run"] = "e" * 64
    for r in some:  # of a data set with three classes
        r["class_names"] = names
        r["matrix"]["seen"].insert(3, [100] + [0] * (len(r["channels"]) - 1))
        r["matrix"]["unseen"].insert(3, [0] * len(r["channels"]))
    board = leaderboard(make_run("FT") + joint_run(hit=lambda t, k: 0.9) + some, PROTOCOLS["mib"])
    joint = board.frame[board.frame["method"] == "Joint"].set_index("task")["all"]
    assert joint.to_dict() == {"2-1": pytest.approx(90), "[1|2]": pytest.approx(50)}
    assert not any("not in the table" in note for note in board.notes)


def test_a_run_that_a_later_one_replaces_is_named() -> None:
    early, late = make_run(hit=lambda t, k: 0.2), make_run(hit=lambda t, k: 0.7)
    for r in late:
        r["run"], r["provenance"]["time"] = "f" * 64, "2026-03-01"
    (note,) = (n for n in leaderboard(late + early, SDR).notes if n.startswith("not in the table"))
    assert note == (
        f"not in the table, where another run has their place: toy/2-1/overlapped FT seed 0 ({early[0]['run'][:8]})"
    )


def test_a_method_of_one_seed_is_named_beside_the_count_of_pairs() -> None:
    board = leaderboard(seeds("FT", 0.2) + seeds("MiB", 0.5) + seeds("LwF", 0.4, 1), SDR)
    (note,) = (n for n in board.notes if "1 of 1 pairs" in n)
    assert note.endswith("if spreads are equal; of one seed and not compared: LwF)")


def test_over_tasks_a_row_without_its_joint_and_a_seed_without_its_ends_are_named() -> None:
    records = [
        *joint_run(0, config=config(), hit=lambda t, k: 0.9),
        *joint_run(1, config=config(), hit=lambda t, k: 0.9),
    ]
    for place in ({}, {"task": "1-1", "groups": ((1,), (2,), (3,))}):
        records += seeds("FT", 0.2, config=config(), **place) + seeds("MiB", 0.5, config=config(), **place)
        records += seeds("LwF", 0.6, config=config(9), **place)
    first, second = sorted(over_tasks(leaderboard(records, SDR)), key=lambda over: over.kind)
    assert (first.methods, first.seeds) == (("MiB",), (0, 1))
    assert first.notes == ("score over tasks: the seeds that all methods have in all tasks, with FT and Joint, 2 of 3",)
    assert (second.kind, second.methods) == (", configuration 2", ())
    assert second.notes[-1].startswith("no score over tasks: no run of Joint has seed and configuration")


def test_over_tasks_a_method_that_lacks_its_ends_in_one_task_is_said_to_lack_them() -> None:
    records = [*joint_run(0, hit=lambda t, k: 0.9)]
    for place in ({}, {"task": "1-1", "groups": ((1,), (2,), (3,))}):
        records += seeds("FT", 0.2, 1, **place) + seeds("MiB", 0.5, 1, **place)
    records += seeds("LwF", 0.5, 1) + make_run("LwF", 7, task="1-1", groups=((1,), (2,), (3,)))
    (over,) = over_tasks(leaderboard(records, SDR))
    (note,) = over.notes
    assert note.endswith("tasks: LwF: no FT and Joint of its seed and configuration in toy/1-1/overlapped")


def test_the_best_of_k_trials_is_one_that_would_be_chosen() -> None:
    """A trial that diverged with a seed is not chosen; one that diverged with all does not end the line."""
    names = [f"MiB[kd={k}]" for k in range(1, 5)]
    records = seeds(names[0], 0.4, 2) + seeds(names[1], 0.9, 1) + seeds(names[3], 0.5, 2)
    trials = {"MiB": [Trial(n, {"kd": float(k)}) for k, n in enumerate(names, 1)]}
    frame = trial_frame(trials, leaderboard(records, PROTOCOLS["mib"]))
    assert frame["best_so_far"].round(6).tolist() == [40.5, 40.5, 40.5, 50.5]
    assert frame["chosen"].tolist() == [False, False, False, True]
    assert frame["all"].isna().tolist() == [False, False, True, False]
    assert "40.5" in budget_table(frame) and not pd.isna(frame["best_so_far"]).any()


# --- LaTeX ----------------------------------------------------------------------------------------------------------


def test_a_number_below_zero_keeps_its_spread_in_latex() -> None:
    assert latex_number("-4.6 ± 0.1") == r"$-4.6 \pm 0.1$"
    assert latex_number("4.6 ± 0.1") == r"4.6 $\pm$ 0.1"
    rising = [r for s in range(2) for r in make_run("FT", s, hit=lambda t, k, s=s: 0.2 + 0.1 * t + 0.03 * s)]
    table = render(leaderboard(rising, SDR), "latex").partition(r"\end{tabular}")[0]
    assert "±" not in table and r"$-4.6 \pm" in table


def test_the_caption_of_a_paper_explains_what_its_rows_show() -> None:
    board = leaderboard(two_kinds(), SDR)
    assert "better than every other row that was tuned alike" in as_paper(board)
    assert "Bold" not in as_paper(board, Choice(rows=("FT",))).partition(r"\begin{tabular}")[0]
    one = leaderboard(seeds("FT", 0.2) + seeds("MiB", 0.5), SDR)
    assert "better than every other row, by a paired" in as_paper(one)


def test_a_paper_cites_only_the_published_numbers_that_it_shows(tmp_path: Path) -> None:
    groups = (tuple(range(1, 16)), *((k,) for k in range(16, 21)))
    records = [r for m in ("MiB", "PLOP") for r in make_run(m, dataset="voc", task="15-1", groups=groups)]
    board = with_literature(leaderboard(records, SDR), load_published())
    assert sum(note.startswith("[") for note in board.notes) == 2
    text = as_paper(board, Choice(rows=("MiB",)))
    assert text.partition(r"\end{tabular}")[2].partition(r"\end{table")[0].count(r"\par" + "\n") == 1
    assert "In italics" not in as_paper(board, Choice(columns=("forgetting",)))


def test_zero_has_no_sign_and_two_tasks_have_two_names() -> None:
    assert number(-0.04, 0.01) == "0.0 ± 0.0" and number(-0.06) == "-0.1"
    assert cell_text({"to_ft": -0.04}, "to_ft") == "+0.0"
    assert file_name("toy-[1-2|3]") != file_name("toy-[1|2-3]")
    tasks = {"[1,3|2]": ((1, 3), (2,)), "[1|3|2]": ((1,), (3,), (2,))}
    records = [r for task, groups in tasks.items() for r in make_run("FT", task=task, groups=groups)]
    assert len(eval_results(leaderboard(records, SDR), {"toy": "a/b"})) == 2
