"""From a paper to a row of the leaderboard, as docs/add_a_method.md tells it, by the real command."""

from pathlib import Path

import pandas as pd
import pytest

from contseg.tests.integration.grid import call, small
from contseg.tests.pages import code


@pytest.fixture
def soft_kd(tmp_path: Path) -> Path:
    path = tmp_path / "soft_kd.py"
    path.write_text(code("docs/add_a_method.md", "@register_method"))
    return path


def test_it_keeps_the_contract(soft_kd: Path) -> None:
    done = call("check", "SoftKD", "--plugin", soft_kd)
    assert (done.returncode, done.stdout) == (0, "SoftKD: all 20 rules hold\n"), done.stderr


def test_it_has_its_rows(soft_kd: Path, tmp_path: Path) -> None:
    methods = ("FT", "SoftKD[temperature=2|4]", "SoftKD+SDR")
    done = call("run", *small(tmp_path, *methods), "--plugin", soft_kd)
    assert done.returncode == 0, done.stderr
    assert set(pd.read_csv(tmp_path / "leaderboard.csv").method) == {
        "FT",
        "SoftKD",
        "SoftKD[temperature=4]",
        "SoftKD+SDR",
    }


def test_it_is_listed_with_its_sources(soft_kd: Path) -> None:
    done = call("list", "methods", "--long", "--plugin", soft_kd)
    assert "temperature = 2.0   (float)   of both softmaxes; 2 lies in the range" in done.stdout
