"""Tables as literal text, and what they refuse to rank."""

import re
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.reporter import Leaderboard, leaderboard, render, write_leaderboard
from contseg.benchmark.score.leaderboard import NOT_TOGETHER, paired_differences
from contseg.benchmark.score.scores import COST, METRICS
from contseg.datasets.errors import UserError
from contseg.tests.records import Record, joint_run, make_run

SDR = PROTOCOLS["sdr"]


def grid(seeds: int = 3) -> list[Record]:
    """FT forgets, MiB and MiB+SDR do not differ clearly, Joint leads; each class loses pixels to background only."""
    records: list[Record] = []
    for s in range(seeds):
        records += joint_run(s, hit=lambda t, k: 0.95)
        records += make_run("MiB+SDR", s, hit=lambda t, k, s=s: 0.80 + 0.01 * s)
        records += make_run("MiB", s, hit=lambda t, k, s=s: 0.83 - 0.01 * s)
        records += make_run("FT", s, hit=lambda t, k, s=s: 0.9 - 0.01 * s if k == 0 or t == 0 or k == 3 else 0.0)
    return records


MARKDOWN = """\
## toy · 2-1 · overlapped · sdr

tiny from scratch; 1 epochs, batch 8; protocol sdr; n = 3; no search; external data: none

| method   |   n |        old |   old no bg |            new |        all |        avg |   forgetting |   step 0 |   Δ FT |   Δ Joint |   images |   updates |   time |   memory |
|----------|-----|------------|-------------|----------------|------------|------------|--------------|----------|--------|-----------|----------|-----------|--------|----------|
| FT       |   3 | 10.7 ± 0.0 |         0.0 | **89.0 ± 1.0** | 30.3 ± 0.3 | 58.5 ± 0.7 |   75.9 ± 1.1 |     86.7 |   +0.0 |     -62.7 |    1 600 |       200 |    5 s |    64 MB |
| MiB      |   3 | 76.3 ± 1.1 |        82.0 |     82.0 ± 1.0 | 77.7 ± 1.1 | 78.5 ± 1.0 |    2.9 ± 0.1 |     79.2 |  +47.4 |     -15.3 |    1 600 |       200 |    5 s |    64 MB |
| MiB+SDR  |   3 | 75.2 ± 1.1 |        81.0 |     81.0 ± 1.0 | 76.7 ± 1.1 | 77.4 ± 1.0 |    2.9 ± 0.1 |     78.2 |  +46.4 |     -16.3 |    1 600 |       200 |    5 s |    64 MB |
| Joint    |   3 | 92.3 ± 0.0 |        95.0 |     95.0 ± 0.0 | 93.0 ± 0.0 |          - |            - |        - |  +62.7 |      +0.0 |      800 |       100 |    2 s |    64 MB |

- mIoU in % after the last step; old: classes of step 0 (with background), new: all later ones; avg: mean of 'all' over the steps; Δ: 'all' minus that of FT, of Joint; mean ± sample standard deviation over n seeds
- protocol sdr (version 1): void_in_training background, eval_view crop, test_images any_seen, future_at_test ignore, background_in_mean yes, class0_at_test true_background, absent_classes drop
- toy/2-1/overlapped: significant difference in 'all' for 2 of 3 pairs (analysis of variance over 3 seeds, Tukey's correction for 3 pairs, family error 5 % if spreads are equal); none within: MiB, MiB+SDR
- bold: better than every other row, each by its own paired 95 % confidence interval; this one claim needs no correction, claims on pairs do
"""  # noqa: E501

TEXT = """\
toy · 2-1 · overlapped · sdr

tiny from scratch; 1 epochs, batch 8; protocol sdr; n = 1; no search; external data: none

method      n    old    old no bg    new    all    avg    forgetting    step 0    Δ FT    Δ Joint    images    updates    time    memory
--------  ---  -----  -----------  -----  -----  -----  ------------  --------  ------  ---------  --------  ---------  ------  --------
FT          1   10.8          0.0   90.0   30.6   59.2          77.0      87.8    +0.0      -62.4     1 600        200     5 s     64 MB
MiB         1   77.4         83.0   83.0   78.8   79.5           2.8      80.2   +48.2      -14.2     1 600        200     5 s     64 MB
MiB+SDR     1   74.2         80.0   80.0   75.6   76.4           3.0      77.1   +45.1      -17.4     1 600        200     5 s     64 MB
Joint       1   92.3         95.0   95.0   93.0      -             -         -   +62.4       +0.0       800        100     2 s     64 MB
"""  # noqa: E501

CSV = """\
dataset,task,setup,protocol,method,seeds,old,old_std,new,new_std,all,all_std,avg,avg_std,forgetting,forgetting_std,step0,backward_transfer,plasticity,harmonic,accuracy,old_foreground,all_foreground,to_ft,to_joint,images,updates,seconds,peak_memory_mb,parameters,tuned_on,external
toy,2-1,overlapped,sdr,FT,1,10.7527,,90.0000,,30.5645,,59.1711,,77.0251,,87.7778,-77.0251,90.0000,19.2102,47.5000,0.0000,30.0000,0.0000,,1600,200,5.0000,64.0000,147000,no search,none
"""  # noqa: E501


def test_markdown_over_three_seeds() -> None:
    assert render(leaderboard(grid(), SDR), "markdown") == MARKDOWN


def test_text_of_one_seed_says_so_and_bolds_nothing() -> None:
    board = leaderboard(grid(1), SDR)
    text = render(board, "text")
    assert text.startswith(TEXT)
    assert text.rstrip().splitlines()[-1].startswith("one seed: the standard deviation is unknown and nothing is bold")
    assert "**" not in render(board, "markdown")


def test_csv_has_the_promised_columns_first_and_one_row_a_cell() -> None:
    assert render(leaderboard(make_run("FT", hit=FORGETS), SDR), "csv") == CSV


def FORGETS(step: int, label: int) -> float:  # noqa: N802
    return 0.9 if label in (0, 3) or step == 0 else 0.0


def test_files_are_written_and_the_folder_holds_nothing_else(tmp_path: Path) -> None:
    board = write_leaderboard(tmp_path / "new", grid(1), SDR)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["leaderboard.csv", "leaderboard.md"]
    assert (tmp_path / "new" / "leaderboard.md").read_text(encoding="utf-8") == render(board, "markdown")


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        render(leaderboard([], SDR), "markdwon")


def test_no_record_is_an_empty_table() -> None:
    board = leaderboard([], SDR)
    assert render(board).startswith("no complete run yet\n")
    assert render(board, "csv") == CSV.splitlines()[0] + "\n"


def methods(board: Leaderboard) -> list[str]:
    return list(board.frame["method"])


def test_rows_follow_the_grid_between_ft_and_joint() -> None:
    assert methods(leaderboard(grid(1), SDR, ["Joint", "MiB+SDR", "FT", "MiB"])) == ["FT", "MiB+SDR", "MiB", "Joint"]


def test_tasks_are_in_the_order_of_their_numbers() -> None:
    records = [r for task in ("15-1", "5-3", "15-1@b", "10-1") for r in make_run(task=task)]
    assert list(leaderboard(records, SDR).frame["task"]) == ["5-3", "10-1", "15-1", "15-1@b"]


def test_joint_is_shown_in_every_task_of_its_data_set_under_that_tasks_groups() -> None:
    joint = joint_run(hit=lambda t, k: 1 - k / 10)
    records = joint + make_run(task="2-1") + make_run(task="1-1", setup="disjoint", groups=((1,), (2,), (3,)))
    frame = leaderboard([*records, *make_run(dataset="other")], PROTOCOLS["mib"]).frame
    shown = frame[frame["method"] == "Joint"].set_index(["dataset", "task"])[["old", "new", "all"]].round(4)
    assert {k: tuple(v) for k, v in zip(shown.index, shown.to_numpy().tolist(), strict=True)} == {
        ("toy", "1-1"): (90.0, 75.0, 80.0),
        ("toy", "2-1"): (85.0, 70.0, 80.0),
    }


def test_joint_of_a_drawn_order_has_the_old_classes_of_its_own_seed() -> None:
    """``2-1@random``: every seed has an order of its own. IoU of Joint's classes 1, 2, 3: 20, 40, 90."""
    joint = [r for s in (0, 1) for r in joint_run(s, hit=lambda t, k: (1, 0.2, 0.4, 0.9)[k])]
    orders = {0: ((1, 2), (3,)), 1: ((2, 3), (1,))}
    drawn = [r for s, groups in orders.items() for r in make_run(seed=s, groups=groups, order="random")]
    runs = leaderboard(joint + drawn, PROTOCOLS["mib"]).runs
    mine = runs[runs["method"] == "Joint"].sort_values("seed")[["old", "new"]].to_numpy()
    assert mine.tolist() == [pytest.approx([30, 90]), pytest.approx([65, 20])]


def test_joint_alone_is_a_table_of_its_own() -> None:
    assert list(leaderboard(joint_run(), SDR).frame["task"]) == ["offline"]


def test_joint_of_the_same_setup_is_preferred_and_one_training_counts_once() -> None:
    overlapped, disjoint = joint_run(hit=lambda t, k: 0.9), joint_run(setup="disjoint", hit=lambda t, k: 0.5)
    frame = leaderboard(overlapped + disjoint + make_run(), PROTOCOLS["mib"]).frame
    assert frame[frame["method"] == "Joint"]["all"].tolist() == pytest.approx([90])
    shared = [{**r, "setup": "disjoint"} for r in overlapped]
    both = leaderboard(overlapped + shared + make_run(setup="sequential"), SDR).frame
    assert both[both["method"] == "Joint"]["seeds"].tolist() == [1]


def test_rows_of_different_labelling_never_share_a_ranking() -> None:
    records = [r for s in range(3) for r in make_run("FT", s, hit=lambda t, k, s=s: 0.9 - s / 100)]
    records += [r for s in range(3) for r in make_run("MiB", s, protocol=PROTOCOLS["plop"], hit=lambda t, k: 0.1)]
    board = leaderboard(records, PROTOCOLS["plop"])
    assert set(board.frame["protocol"]) == {"plop", "plop scoring, trained with void as background"}
    assert board.leaders == frozenset()
    assert board.frame.set_index("method")["to_ft"].isna().tolist() == [True, False]
    assert len(list(board.contests())) == 2
    assert paired_differences(board).empty


def test_joint_is_a_bound_and_never_bold() -> None:
    board = leaderboard(grid(), SDR)
    bold = {(board.frame["method"][i], column) for i, column in board.leaders}
    assert not any(m == "Joint" for m, _ in bold)
    assert ("FT", "new") in bold
    assert ("MiB+SDR", "all") not in bold


def test_paired_differences_by_hand() -> None:
    pairs = paired_differences(leaderboard(grid(), PROTOCOLS["mib"])).set_index(["a", "b"])
    row = pairs.loc[("MiB", "MiB+SDR")]  # 83, 82, 81 against 80, 81, 82
    assert (row["difference"], row["seeds"]) == (pytest.approx(1), 3)
    assert row["low"] == pytest.approx(1 - 4.302653 * 2 / 3**0.5, abs=1e-5)
    assert pairs[["significant", "test"]].to_numpy().tolist() == [[True, "Tukey"], [True, "Tukey"], [False, "Tukey"]]


def test_pairs_of_single_seeds_have_no_verdict() -> None:
    pairs = paired_differences(leaderboard(grid(1), SDR))
    assert pairs[["significant", "test"]].to_numpy().tolist() == [[None, ""]] * 3


def test_incomplete_runs_are_listed_not_shown() -> None:
    board = leaderboard(make_run("FT") + make_run("LwF", 4)[:1], SDR)
    assert methods(board) == ["FT"]
    assert "incomplete, not in the table: toy/2-1/overlapped LwF seed 4: 1 of 2 steps" in board.notes


def test_two_configurations_are_two_rows_and_the_foot_says_what_differs() -> None:
    longer = {
        "model": {"backbone": "tiny"},
        "train": {"epochs": [30.0], "batch": [8]},
        "eval": {"split": "val"},
        "run": {"workers": 9},
    }
    board = leaderboard(make_run(seed=0) + make_run(seed=1, config=longer), SDR)
    assert methods(board) == ["FT", "FT (2)"]
    assert board.notes[-2:] == (
        "toy: rows marked (2) have another configuration than the others: "
        "step 0 train.epochs [1.0] / [30.0]; step 1 train.epochs [1.0] / [30.0]",
        NOT_TOGETHER,
    )


def named(board: Leaderboard, form: str) -> list[str]:
    """The names of the rows as a format prints them."""
    text = render(board, form)
    if form == "html":
        return re.findall(r'<button type="button" aria-expanded="false">(.*?)</button>', text)
    if form == "csv":
        return [line.split(",")[4] for line in text.splitlines()[1:]]
    rows = {"markdown": r"^\| (\S.*?) +\| +1 ", "text": r"^(\S.*?) +1  ", "latex": r"^(\S.*?) & 1 & "}[form]
    return re.findall(rows, text, re.M)


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "latex", "html"])
def test_rows_of_two_configurations_keep_their_marks_in_every_format(form: str) -> None:
    short, long = ({"model": {}, "train": {"epochs": [e]}, "eval": {}} for e in (1.0, 30.0))
    records = [r for c in (short, long) for m in ("FT", "MiB[kd=3]") for r in make_run(m, config=c)]
    board = leaderboard(records, SDR)
    mib = "MiB[kd=3]" if form == "csv" else "MiB"
    assert named(board, form) == ["FT", "FT (2)", mib, f"{mib} (2)"]
    assert form == "csv" or "rows marked (2) have another configuration" in render(board, form)


def test_parameters_stay_where_they_alone_tell_two_methods_apart() -> None:
    short, long = ({"model": {}, "train": {"epochs": [e]}, "eval": {}} for e in (1.0, 30.0))
    records = make_run("FT", config=short) + make_run("MiB[kd=1]", config=short) + make_run("MiB[kd=3]", config=long)
    assert named(leaderboard(records, SDR), "markdown") == ["FT", "MiB[kd=1]", "MiB[kd=3] (2)"]


def test_what_changes_no_number_does_not_part_the_seeds() -> None:
    config = {**make_run()[0]["config"], "run": {"workers": 9}, "data": {"toy": "/elsewhere"}}
    assert leaderboard(make_run(seed=0) + make_run(seed=1, config=config), SDR).frame["seeds"].tolist() == [2]


def test_mixed_versions_are_said() -> None:
    board = leaderboard(make_run(seed=0) + make_run(seed=1, versions={"contseg": "0.1.0", "torch": "2.11.0"}), SDR)
    assert "mixed versions of torch: 2.11.0, 2.15.0" in board.notes


def test_tuning_numbers_never_meet_test_numbers() -> None:
    board = leaderboard(make_run("FT") + make_run("MiB", split="tune"), SDR)
    assert set(board.frame["protocol"]) == {"sdr", "sdr, on the held-out fifth of the training images"}


def test_a_second_configuration_has_one_number_for_all_methods_and_its_own_references() -> None:
    short, long = ({"model": {}, "train": {"epochs": [e]}, "eval": {}} for e in (1.0, 30.0))
    records = make_run("MiB", config=short, hit=lambda t, k: 0.4) + make_run("FT", config=long, hit=lambda t, k: 0.6)
    records += make_run("FT", config=short, hit=lambda t, k: 0.1) + joint_run(config=long, hit=lambda t, k: 0.9)
    frame = leaderboard(records, PROTOCOLS["mib"]).frame.set_index("method")
    assert list(frame.index) == ["FT", "FT (2)", "MiB", "Joint (2)"]
    assert frame["to_ft"].round(4).to_dict() == {"FT": 0, "FT (2)": 0, "MiB": 30, "Joint (2)": 30}
    assert frame["to_joint"].round(4).dropna().to_dict() == {"FT (2)": -30, "Joint (2)": 0}


def test_a_difference_over_fewer_seeds_than_the_row_is_said() -> None:
    """The row's 'all' is a mean of three seeds, its differences are of the one that FT and Joint have."""
    three = [r for m in ("MiB", "PLOP") for s in range(3) for r in make_run(m, s, hit=lambda t, k, s=s: 0.5 + s / 10)]
    board = leaderboard(three + make_run("FT", hit=lambda t, k: 0.2) + joint_run(hit=lambda t, k: 0.9), SDR)
    assert [n for n in board.notes if "Δ" in n] == [
        "toy/2-1/overlapped: Δ FT over 1 of 3 seeds, those that FT has too: MiB, PLOP",
        "toy/2-1/overlapped: Δ Joint over 1 of 3 seeds, those that Joint has too: MiB, PLOP",
    ]
    assert not any("Δ" in n for n in leaderboard(three, SDR).notes)  # no FT: an empty column
    assert not any("Δ" in n for n in leaderboard(grid(), SDR).notes)


def test_of_two_runs_of_one_cell_and_seed_the_later_is_shown() -> None:
    early, late = make_run(hit=lambda t, k: 0.2), make_run(hit=lambda t, k: 0.7)
    for r in late:
        r["run"], r["provenance"]["time"] = "f" * 64, "2026-03-01"
    frame = leaderboard(late + early, PROTOCOLS["mib"]).frame
    assert (frame["seeds"].tolist(), frame["all"].tolist()) == ([1], [pytest.approx(70)])


def test_every_column_is_defined_in_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [c for c in [*METRICS, *COST] if f"`{c}`" not in text] == []
