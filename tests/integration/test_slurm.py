"""The Slurm launcher against a real Slurm on loopback: same table, real dependencies, cancelled and requeued jobs.

Signals reach a job's processes as Slurm sends them before a time limit; the limit itself, minutes long, is under
``slow``.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.integration.grid import HOME, call, command, numbers, records, small, weights
from tests.slurm.controller import Slurm, missing

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=f"NO SLURM: {missing()}")]

JOBS = ("launch.gpus=false", "launch.cpus=1", "launch.minutes=10")
COST = ["seconds", "peak_memory_mb"]
LONG = (*JOBS, "train.updates=1500,3", "run.checkpoint_updates=50")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "run") as running:
        yield running


def wait_for(what: str, ready: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def test_the_same_table_as_inline(slurm: Slurm, tmp_path: Path) -> None:
    methods = ("FT", "MiB+SDR", "Joint")
    assert call("run", *small(tmp_path / "inline", *methods)).returncode == 0
    done = call("run", *small(tmp_path / "slurm", *methods, sets=JOBS), "--launcher", "slurm", **slurm.environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert numbers(tmp_path / "slurm") == numbers(tmp_path / "inline")
    assert weights(tmp_path / "slurm") == weights(tmp_path / "inline")
    one, two = (pd.read_csv(tmp_path / f / "leaderboard.csv") for f in ("inline", "slurm"))
    pd.testing.assert_frame_equal(one.drop(columns=COST), two.drop(columns=COST), check_exact=True)
    assert "MiB+SDR" in done.stdout
    # one job a step: step 0, one for each method that goes on, Joint; children wait for their parent
    mine = [j for j in slurm.jobs().values() if j["JobName"].startswith("contseg-")]
    assert len(mine) == 4 and {j["JobState"] for j in mine} == {"COMPLETED"}
    (parent,) = {r["step_key"] for r in records(tmp_path / "slurm").values() if r["step"] == 0 and r["steps"] == 2}
    base = next(j for j in mine if j["JobName"] == f"contseg-{parent[:8]}")
    later = {r["step_key"] for r in records(tmp_path / "slurm").values() if r["step"] == 1}
    assert len(later) == 2
    for job in mine:
        if job["JobName"].removeprefix("contseg-") in {k[:8] for k in later}:
            assert job["StartTime"] >= base["EndTime"]


def test_two_processes_a_job(slurm: Slurm, tmp_path: Path) -> None:
    sets = (*JOBS, "launch.processes=2", "model.norm=group")
    done = call("run", *small(tmp_path, "Joint", sets=sets), "--launcher", "slurm", ACCELERATE_USE_CPU="true",
                **slurm.environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = records(tmp_path).values()
    assert record["provenance"]["processes"] == 2
    assert sum(map(sum, record["matrix"]["seen"] + record["matrix"]["unseen"])) == 200 * 48 * 48


def test_a_job_that_is_signalled_is_requeued_and_one_that_is_cancelled_is_continued(
    slurm: Slurm, tmp_path: Path
) -> None:
    out, words = tmp_path / "slurm", ("FT",)
    whole = call("run", *small(tmp_path / "inline", *words, sets=LONG))
    assert whole.returncode == 0

    env = {**os.environ, "OMP_NUM_THREADS": "1", **slurm.environment}
    line = command("run", *small(out, *words, sets=LONG), "--launcher", "slurm")
    with (tmp_path / "launcher.log").open("w") as log:
        launcher = subprocess.Popen(line, cwd=HOME, env=env, stdout=log, stderr=log)
    said = (tmp_path / "launcher.log").read_text
    try:
        wait_for("the jobs", lambda: " jobs: " in said())
        base, child = re.findall(r"2 jobs: (\d+), (\d+)", said())[0]
        assert slurm.jobs()[child]["Dependency"].startswith(f"afterok:{base}")
        wait_for("a checkpoint", lambda: [*out.rglob("checkpoint.safetensors")])

        slurm("scancel", "--signal=USR2", base)  # what Slurm does before the time limit
        wait_for("the requeue", lambda: slurm.jobs()[base]["Restarts"] == "1")
        assert slurm.jobs()[child]["JobState"] == "PENDING"
        log_of_job = out / f"logs/slurm/{base}_0_log.out"
        assert "goes on from there" in log_of_job.read_text()
        slurm("scontrol", "update", f"JobId={base}", "StartTime=now")  # Slurm would let it wait two minutes
        wait_for("its next start", lambda: slurm.jobs()[base]["JobState"] == "RUNNING")
        wait_for("its next training", lambda: log_of_job.read_text().count("to train now") == 2)
        time.sleep(1)

        slurm("scancel", base)
        assert launcher.wait(120) == 1
    finally:
        launcher.kill()
    assert f"job {base} ended" in said() and f"job {child} ended" in said()
    assert slurm.jobs()[child]["JobState"] == "CANCELLED"  # its dependency can never be met

    again = call("run", *small(out, *words, sets=LONG), "--launcher", "slurm", **slurm.environment)
    assert again.returncode == 0, again.stderr[-3000:]
    assert numbers(out) == numbers(tmp_path / "inline") and weights(out) == weights(tmp_path / "inline")
    assert max(r["cost"]["resumed"] for r in records(out).values()) == 2


@pytest.mark.slow
def test_the_time_limit_requeues(slurm: Slurm, tmp_path: Path) -> None:
    """One minute is the least that Slurm can limit: the step takes longer, in two or more goes."""
    sets = (*JOBS[:2], "launch.minutes=1", "launch.signal_seconds=15", "train.updates=6000,3")
    line = command("run", *small(tmp_path, "Joint", sets=sets), "--launcher", "slurm")
    launcher = subprocess.Popen(line, cwd=HOME, env={**os.environ, "OMP_NUM_THREADS": "1", **slurm.environment})
    try:
        assert launcher.wait(890) == 0
    finally:
        launcher.send_signal(signal.SIGKILL)
    (record,) = records(tmp_path).values()
    assert record["cost"]["resumed"] >= 1 and record["cost"]["updates"] == 6000


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("launch.partition=gpuu", "invalid partition"),
        ("launch.processes=3", "a batch of 4 cannot feed 3 processes"),
        ("launch.cpus=99", "Slurm does not take the job"),
    ],
)
def test_what_slurm_does_not_take_is_one_line(slurm: Slurm, tmp_path: Path, setting: str, wanted: str) -> None:
    words = small(tmp_path, "FT", sets=(*JOBS, setting))
    done = call("run", *words, "--launcher", "slurm", **slurm.environment)
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    assert wanted in line and "Traceback" not in done.stderr


def test_without_slurm_it_is_one_line(tmp_path: Path) -> None:
    done = call("run", *small(tmp_path, "FT", sets=JOBS), "--launcher", "slurm", PATH="/nowhere")
    assert done.returncode == 2 and "there is no Slurm here" in done.stderr
