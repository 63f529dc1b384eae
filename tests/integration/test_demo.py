"""The demo tells the field's story: what is planned, and (slow) what comes out of it with seeds 0, 1 and 2."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import read_config
from contseg.datasets.registry import open_dataset
from contseg.tests.material import ROOT

DEMO = ROOT / "benchmark" / "configs" / "demo.toml"
DISTILLING = ("LwF", "ILT", "MiB", "SDR", "MiB+SDR")


def test_every_method_starts_from_the_one_step_0() -> None:
    plan = make_plan(read_config(DEMO), open_dataset)
    assert [run.method.split("[")[0] for run in plan.runs if run.scenario.task == "3-1"][:4] == [
        "FT",
        "LwF",
        "ILT",
        "MiB",
    ]
    assert len(plan.runs) == 2 * 6 + 1  # Joint is one training for both tasks
    assert len({run.cells[0].node.key for run in plan.runs}) == 2  # step 0, and Joint
    assert len(plan.nodes) == 2 + 6 * (1 + 3)
    assert sum(node.updates for node in plan.nodes.values()) < 7500  # what fits into five minutes on two cores


def test_the_committed_table_tells_it() -> None:
    check_story(pd.read_csv(ROOT / "results" / "demo" / "leaderboard.csv"))


@pytest.mark.slow
def test_the_story_holds_with_every_seed(tmp_path: Path) -> None:
    command = [sys.executable, "run_benchmark.py", "--config", str(DEMO), "--out", str(tmp_path), "--seeds"]
    for seed in ("0", "1", "2"):
        out = tmp_path / seed
        subprocess.run([*command[:-2], str(out), "--seeds", seed], cwd=ROOT, check=True)
        check_story(pd.read_csv(out / "leaderboard.csv"))


def check_story(board: pd.DataFrame) -> None:
    """FT's old classes are gone, Joint leads, whoever distils keeps much more than FT."""
    board = board.assign(method=board["method"].str.replace(r"\[[^]]*\]", "", regex=True))
    for task in ("3-3", "3-1"):
        rows = board[board["task"] == task].set_index("method")
        assert set(rows.index) == {"FT", "Joint", *DISTILLING}
        assert rows.loc["FT", "old_foreground"] < 5  # all that is left of old is background
        assert rows["all"].idxmax() == "Joint"
        assert rows["old"].idxmax() == "Joint"
        for method in DISTILLING:
            assert rows.loc[method, "old"] > rows.loc["FT", "old"] + 25
            assert rows.loc[method, "all"] > rows.loc["FT", "all"] + 15
        if task == "3-1":  # the more steps, the more the background shift matters
            for method in ("MiB", "SDR", "MiB+SDR"):
                assert rows.loc[method, "all"] > rows.loc["LwF", "all"] + 5
