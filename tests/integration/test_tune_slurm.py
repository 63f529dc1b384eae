"""``contseg tune --launcher slurm`` on a real Slurm: jobs run the trials, and the same trial is chosen as inline."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg.tests.forked import call
from contseg.tests.integration.grid import numbers, small
from contseg.tests.slurm.controller import Slurm, missing

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=f"NO SLURM: {missing()}")]

JOBS = ("launch.gpus=false", "launch.cpus=1", "launch.minutes=10")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "run") as running:
        yield running


def test_trials_run_as_jobs(slurm: Slurm, tmp_path: Path) -> None:
    search = ("--trials", "2", "--on", "stream")
    assert call(tmp_path / "inline.log", "tune", *small(tmp_path / "inline", "FT"), *search)[0] == 0
    words = ("tune", *small(tmp_path / "slurm", "FT", sets=JOBS), *search, "--launcher", "slurm")
    code, said = call(tmp_path / "slurm.log", *words, **slurm.environment)
    assert code == 0, said[-3000:]
    assert "3 jobs: " in said  # step 0 once, a later step for each trial
    assert numbers(tmp_path / "slurm") == numbers(tmp_path / "inline")
    one, two = ((tmp_path / place / "trials.csv").read_bytes() for place in ("inline", "slurm"))
    assert one == two and (tmp_path / "slurm" / "tuned.toml").is_file()
