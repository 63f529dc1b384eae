"""The literature's table: its arithmetic, and the rules by which a number may stand beside a measured one."""

from pathlib import Path

import pandas as pd
import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS, parse_protocol
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.published import (
    HOME,
    NAMES,
    choose,
    citations,
    listing,
    load_published,
    other_test_sets,
    with_literature,
)
from contseg.benchmark.score.published_lint import class_counts, lint, unit, verdict
from contseg.datasets.errors import UserError
from contseg.tests.records import Record, joint_run, make_run

TABLE = load_published()
VOC = {
    "dataset": "voc",
    "task": "15-1",
    "groups": (tuple(range(1, 16)), (16,), (17,), (18,), (19,), (20,)),
    "external": ["in1k"],
}


def row(old: str, new: str, all_: str, task: str = "15-1", dataset: str = "voc", **more: str) -> dict:
    values = {"old": float(old), "new": float(new), "all": float(all_), "all_printed": all_}
    return {"dataset": dataset, "task": task, **values, **more}


def test_nothing_was_lost_and_every_source_is_cited() -> None:
    assert len(TABLE) == 723
    assert set(TABLE["source"]) == set(citations())
    assert set(TABLE["dataset"]) == {"voc", "ade"}
    assert not TABLE["backbone"].str.contains("see notes").any()


def test_mibs_ade_lists_are_a_partition() -> None:
    ade = TABLE[TABLE["dataset"] == "ade"]
    assert set(ade[ade["source"].isin(["mib2020", "sdr2021"])]["setup"]) == {"partitioned"}
    assert ade[ade["setup"] == "partitioned"]["note"].str.contains("partition").all()


@pytest.mark.parametrize(
    ("triple", "reading"),
    [
        (row("69.6", "25.6", "67.4", "19-1"), "no"),  # MiB, disjoint
        (row("65.12", "21.11", "54.64"), "yes"),  # PLOP, overlapped
        (row("55.4", "15.1", "34.3", "10-1"), "does not add up: off by -1.91 with, -0.95 without background"),  # RCIL
        (row("66.0", "58.8", "63.7", "10-10"), "fits only if background (implied IoU 90) is in all but not in old"),
        (row("50.0", "50.0", "50.0"), "both"),
        (row("nan", "50.0", "50.0"), ""),
        (row("50.0", "40.0", "48.0", "3-2", "mine"), ""),
        (row("50.0", "40.0", "47.5", "3-1", "mine", old_classes="1-3", new_classes="4"), "no"),
    ],
)
def test_the_reading_that_a_triple_fits(triple: dict, reading: str) -> None:
    assert verdict(triple) == reading


def test_classes_come_from_the_task_or_the_printed_ranges() -> None:
    assert class_counts(row("1", "1", "1", "100-50", "ade")) == (100, 50)
    assert class_counts(row("1", "1", "1", "2-1", "mine", old_classes="0-15", new_classes="16-20")) == (15, 5)
    assert class_counts(row("1", "1", "1", "2-1", "mine", old_classes="base", new_classes="16-20")) is None


def test_one_unit_of_the_last_digit() -> None:
    assert [unit(t) for t in ("54.64", "54.6", "54.60", "54", "100")] == pytest.approx([0.01, 0.1, 0.1, 0.1, 0.1])


def test_the_linter_finds_exactly_the_triples_that_the_collection_marks() -> None:
    found = TABLE.apply(verdict, axis=1).str.contains(" ")
    assert (found == (TABLE["check"] != "")).all()
    assert found.sum() == 39
    lines = lint(TABLE)
    assert lines[-1] == "723 printed results, 487 complete triples, 39 that do not fit"
    assert (
        "cfsseg2024: RCIL voc/10-1/overlapped 55.4/15.1/34.3: does not add up: "
        "off by -1.91 with, -0.95 without background"
    ) in lines


def test_a_wrong_reading_of_background_is_found() -> None:
    table = TABLE[(TABLE["source"] == "mib2020") & (TABLE["dataset"] == "voc")].assign(includes_background="yes")
    assert any("listed with background yes, the numbers fit only no" in line for line in lint(table))


def chosen(
    task: str, setup: str, background: str, dataset: str = "voc", source: str = ""
) -> dict[str, tuple[str, float]]:
    found = choose(TABLE, ("voc", task, setup), background, source)
    return {m: (r["source"], r["all"]) for m, r in found.to_dict("index").items()}


def test_own_before_rerun_before_quoted() -> None:
    with_background = chosen("15-1", "overlapped", "yes")
    assert with_background["PLOP"] == ("plop2021", 54.64)  # its own; four others print it too
    assert with_background["SDR"] == ("sdr2021", 39.2)
    assert with_background["MiB"] == ("plop2021", 29.29)  # MiB's own is without background
    assert with_background["EWC"] == ("cfsseg2024", 1.3)  # quoted, and the reading not known: nothing else there
    assert with_background["DKD"] == ("dkd2022", 69.67)  # the paper, not its repository
    assert chosen("15-1", "overlapped", "no")["MiB"] == ("mib2020", 29.7)


def test_a_preferred_source_comes_first() -> None:
    block = chosen("15-5", "disjoint", "yes", source="sdr2021")
    assert block["MiB"] == ("sdr2021", 44.3)
    assert chosen("15-5", "disjoint", "no")["MiB"] == ("mib2020", 64.7)


def test_no_other_reading_setup_or_kind_of_network_is_ever_taken() -> None:
    for background in ("yes", "no"):
        for task, setup in (("15-1", "overlapped"), ("15-5", "disjoint"), ("19-1", "sequential")):
            found = choose(TABLE, ("voc", task, setup), background)
            assert set(found["includes_background"]) <= {background, "unknown"}
            assert set(found["setup"]) <= {setup}
            assert not found["backbone"].str.contains("SegFormer").any()
            assert (found["method"].str.endswith("-M") == found.index.str.contains(r"-M(?:\[|$)")).all()
            assert found.index.is_unique
            assert set(found.index) <= set(NAMES.values())


def measured(**kwargs: object) -> list[Record]:
    return (
        joint_run(dataset="voc", external=["in1k"], n=20)
        + make_run("MiB[kd=10]+SDR", hit=lambda t, k: 0.5, **VOC)
        + make_run("Mine", **VOC)
    )


def test_difference_is_measured_minus_published_and_has_its_foot() -> None:
    board = with_literature(leaderboard(measured(), PROTOCOLS["sdr"]), TABLE)
    by_method = board.literature.set_index("method")
    assert list(by_method.index) == ["MiB[kd=10]+SDR", "Joint"]
    both = by_method.loc["MiB[kd=10]+SDR"]
    assert (both["published_all"], both["source"], both["provenance"]) == (39.5, "sdr2021", "own")
    assert both["difference"] == pytest.approx(both["all"] - 39.5)
    foot = next(n for n in board.notes if n.startswith(f"[{both['foot']}] "))
    assert foot.startswith(
        '[1] Michieli & Zanuttigh, "Continual Semantic Segmentation via Repulsion-Attraction of Sparse'
    )
    assert foot.endswith(
        "; the paper's own; ResNet-101 + DeepLabV3; external data in1k; "
        "the paper's text says DeepLab-V3+: a typo by its author's word (LTTM/SDR issue 1)"
    )


# background: 100 right of 100 + 20 x 50; old (9.09 + 15 x 50) / 16, all (9.09 + 20 x 50) / 21
LITERATURE = """\
| MiB+SDR | 47.4 | 50.0 | 48.1 | - | - | 39.5 | +8.6 | sdr2021, own [1] |
| Joint | 100.0 | 100.0 | 100.0 | 79.5 | 71.5 | 77.6 | +22.4 | dkd2022, rerun [2] |
"""


def test_markdown_sets_them_side_by_side() -> None:
    text = render(with_literature(leaderboard(measured(), PROTOCOLS["sdr"]), TABLE), "markdown")
    assert [line.split() for line in LITERATURE.splitlines()] == [
        line.split() for line in text.splitlines() if " [1] |" in line or " [2] |" in line
    ]
    assert "- voc: MiB+SDR is MiB[kd=10]+SDR" in text


def test_a_setting_is_shown_beside_its_own_rows_and_a_methods_own_bound_beside_none() -> None:
    names = ("CFSSeg", "CFSSeg[width=16384]", "MiB+AWT", "MiB+AWT[formulation=released]")
    records = [r for name in names for r in make_run(name, **VOC)]
    all_classes = (tuple(range(1, 21)),)
    records += make_run("Joint[like=RCIL]", dataset="voc", task="offline", groups=all_classes, external=["in1k"])
    board = with_literature(leaderboard(records, PROTOCOLS["sdr"]), TABLE)
    assert sorted(board.literature["method"]) == ["CFSSeg[width=16384]", "MiB+AWT[formulation=released]"]


def test_background_decides_which_number_stands_there() -> None:
    records = make_run("MiB", **VOC)
    for profile, source in (("sdr", "plop2021"), ("mib", "mib2020"), ("sdr[background_in_mean=no]", "mib2020")):
        board = with_literature(leaderboard(records, parse_protocol(profile)), TABLE)
        assert list(board.literature["source"]) == [source]


def test_an_unknown_reading_is_shown_without_a_difference() -> None:
    board = with_literature(leaderboard(make_run("EWC", **VOC), PROTOCOLS["sdr"]), TABLE)
    assert board.literature["difference"].isna().all()
    assert any(n.endswith("unknown whether the mean includes background") for n in board.notes)


@pytest.mark.parametrize("profile", ["plop", "strict"])
def test_rows_of_another_protocol_get_no_published_number(profile: str) -> None:
    assert with_literature(leaderboard(make_run("PLOP", **VOC), PROTOCOLS[profile]), TABLE).literature.empty


def test_a_smaller_test_set_is_said() -> None:
    records = make_run("FT", **VOC, config={"train": {"crop": [10, 20]}, "eval": {"crop": []}, "model": {}})
    # 21 classes and void: 2107 pixels
    assert other_test_sets(records) == [
        "voc: tested on 11 images, the literature on 1449: differences to published numbers say nothing about a method"
    ]
    assert other_test_sets(make_run("FT")) == []


def test_the_list_names_the_disagreements() -> None:
    text = listing(TABLE, task="15-1", setup="overlapped", method="MiB")
    assert text.splitlines()[0] == "voc · 15-1 · overlapped"
    assert text.splitlines()[-1] == "disagree: MiB, background in the mean: 29.29 to 36.7 in 5 sources"
    with pytest.raises(UserError, match="unknown task in the published results '15-11': did you mean '15-1'"):
        listing(TABLE, task="15-11")


def written(tmp_path: Path, **changes: object) -> Path:
    mine = pd.read_csv(HOME / "published_results.csv", dtype=str, keep_default_na=False).head(2).assign(**changes)
    mine.to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_a_table_of_ones_own_joins(tmp_path: Path) -> None:
    path = written(
        tmp_path, source="mine2026", method="FT", task="15-1", setup="overlapped", all="5.5", provenance="own"
    )
    table = load_published([path])
    assert len(table) == 725
    assert choose(table, ("voc", "15-1", "overlapped"), "yes").loc["FT", "source"] == "mine2026"


def test_required_columns_suffice(tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_text(
        "method,dataset,task,setup,old,new,all,includes_background,source,provenance\n"
        "MiB,camvid,6-5,overlapped,50,40,45.0,no,me,own\n"
    )
    assert load_published([tmp_path / "small.csv"])["backbone"].iloc[-1] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"all": "540.0"}, r"mine.csv line 2: all = '540.0' is not an mIoU in %$"),
        ({"old": "-1"}, r"mine.csv line 2: old = '-1' is not an mIoU in %$"),
        ({"new": "much"}, r"mine.csv line 2: new = 'much' is not an mIoU in %$"),
        ({"provenance": "qoted"}, r"^unknown value of provenance in .*mine.csv 'qoted': did you mean 'quoted'\?"),
    ],
)
def test_a_number_that_is_none_is_one_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_published([written(tmp_path, **changes)])


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("method,task\nFT,15-1\n")
    with pytest.raises(UserError, match=r"few.csv has no column dataset, setup, old, new, all, includes_background"):
        load_published([tmp_path / "few.csv"])
    with pytest.raises(UserError, match=r"no table of published results at .*none.csv"):
        load_published([tmp_path / "none.csv"])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"bytes.csv is not a CSV file"):
        load_published([tmp_path / "bytes.csv"])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty.csv is not a CSV file"):
        load_published([tmp_path / "empty.csv"])
