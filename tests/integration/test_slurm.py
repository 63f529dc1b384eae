"""The Slurm launcher against a real Slurm on loopback: same table, real dependencies, cancelled and requeued jobs.

Signals reach a job's processes as Slurm sends them before a time limit; the limit itself, minutes long, is under
``slow``.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from contseg.tests.forked import call, kill, start
from contseg.tests.integration.grid import numbers, records, small, weights
from contseg.tests.slurm.controller import Slurm, missing

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=f"NO SLURM: {missing()}")]

JOBS = ("launch.gpus=false", "launch.cpus=1", "launch.minutes=10")
CPU = {"ACCELERATE_USE_CPU": "true"}
COST = ["seconds", "peak_memory_mb"]
LONG = (*JOBS, "train.updates=240,3", "run.checkpoint_updates=10")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "run") as running:
        yield running


def wait_for(what: str, ready: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def test_the_same_table_as_inline(slurm: Slurm, tmp_path: Path) -> None:
    methods = ("MiB+SDR", "Joint")
    assert call(tmp_path / "inline.log", "run", *small(tmp_path / "inline", *methods))[0] == 0
    words = small(tmp_path / "slurm", *methods, sets=JOBS)
    code, said = call(tmp_path / "slurm.log", "run", *words, "--launcher", "slurm", **slurm.environment)
    assert code == 0, said[-3000:]
    assert numbers(tmp_path / "slurm") == numbers(tmp_path / "inline")
    assert weights(tmp_path / "slurm") == weights(tmp_path / "inline")
    one, two = (pd.read_csv(tmp_path / f / "leaderboard.csv") for f in ("inline", "slurm"))
    pd.testing.assert_frame_equal(one.drop(columns=COST), two.drop(columns=COST), check_exact=True)
    assert "MiB+SDR" in said
    # one job a step, and a child waits for its parent
    mine = {j["JobName"]: j for j in slurm.jobs().values() if j["JobName"].startswith("contseg-")}
    assert len(mine) == 3 and {j["JobState"] for j in mine.values()} == {"COMPLETED"}
    keys = {r["step"]: r["step_key"][:8] for r in records(tmp_path / "slurm").values() if r["steps"] == 2}
    assert mine[f"contseg-{keys[1]}"]["StartTime"] >= mine[f"contseg-{keys[0]}"]["EndTime"]


def test_two_nodes_train_what_two_processes_of_one_node_train(slurm: Slurm, tmp_path: Path) -> None:
    environment = {**CPU, **slurm.environment, "MASTER_ADDR": "elsewhere"}  # left in a user's shell by other programs
    places = {"processes": ["0(1)", "0(1)"], "nodes": ["0(2)", "1(2)"]}  # the node of each process, of how many
    for name, nodes in places.items():
        out = tmp_path / name
        words = small(out, "Joint", sets=(*JOBS, f"launch.{name}=2", "model.norm=group"))
        code, said = call(tmp_path / "log", "run", *words, "--launcher", "slurm", **environment)
        assert code == 0, said[-3000:]
        logs = [path.read_text() for path in sorted((out / "logs/slurm").glob("*_log.out"))]
        assert [re.findall(r"node=(\d\(\d\))", log) for log in logs] == [[node] for node in nodes]
        (record,) = records(out).values()
        assert record["provenance"]["processes"] == 2
        assert sum(map(sum, record["matrix"]["seen"] + record["matrix"]["unseen"])) == 200 * 48 * 48
    assert numbers(tmp_path / "nodes") == numbers(tmp_path / "processes")
    assert weights(tmp_path / "nodes") == weights(tmp_path / "processes")


FAILS = """\
import os

from contseg.methods.base import Method
from contseg.methods.registry import register_method

if os.environ.get("SLURM_PROCID") == "1":
    os._exit(3)


@register_method("Mine")
def mine() -> Method:
    return Method("Mine", {})
"""


def test_a_process_that_fails_ends_the_job_of_all(slurm: Slurm, tmp_path: Path) -> None:
    """Before it meets the others, which would wait for it until their time is over."""
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    words = (*small(tmp_path, "Joint", sets=(*JOBS, "launch.nodes=2", "model.norm=group")), "--plugin", plugin)
    code, said = call(tmp_path / "log", "run", *words, "--launcher", "slurm", **CPU, **slurm.environment)
    assert code == 1 and re.search(r"srun: error: \S+-2: task 1: Exited with exit code 1", said), said[-3000:]
    assert "Traceback" not in said


def is_requeued(slurm: Slurm, job: str, out: Path) -> None:
    """Wait for it; the step has written its checkpoint."""
    wait_for("the requeue", lambda: slurm.jobs()[job]["Restarts"] == "1", seconds=300)
    assert "goes on from there" in (out / f"logs/slurm/{job}_0_log.out").read_text()


def goes_on(slurm: Slurm, job: str, out: Path) -> None:
    """Start a requeued job at once, and wait for its next checkpoint."""
    (checkpoint,) = out.rglob("checkpoint.safetensors")
    before = checkpoint.stat().st_mtime_ns

    def later() -> bool:
        """Slurm would let it wait for two minutes, and hears this only once the job has left the node."""
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return checkpoint.stat().st_mtime_ns > before

    wait_for("its next checkpoint", later, seconds=300)


def test_a_job_that_is_signalled_is_requeued_and_one_that_is_cancelled_is_continued(
    slurm: Slurm, tmp_path: Path
) -> None:
    out = tmp_path / "slurm"
    assert call(tmp_path / "inline.log", "run", *small(tmp_path / "inline", "FT", sets=LONG))[0] == 0

    words = ("run", *small(out, "FT", sets=LONG), "--launcher", "slurm")
    log = tmp_path / "launcher.log"
    launcher = start(log, *words, **slurm.environment)
    try:
        wait_for("the jobs", lambda: log.exists() and " jobs: " in log.read_text())
        base, child = re.findall(r"2 jobs: (\d+), (\d+)", log.read_text())[0]
        assert slurm.jobs()[child]["Dependency"].startswith(f"afterok:{base}")
        wait_for("a checkpoint", lambda: [*out.rglob("checkpoint.safetensors")])

        slurm("scancel", "--signal=USR2", base)  # what Slurm does before the time limit
        is_requeued(slurm, base, out)
        assert slurm.jobs()[child]["JobState"] == "PENDING"
        goes_on(slurm, base, out)

        slurm("scancel", base)
        launcher.join(300)
        assert launcher.exitcode == 1
    finally:
        kill(launcher)
    assert f"job {base} ended" in log.read_text() and f"job {child} ended" in log.read_text()
    assert slurm.jobs()[child]["JobState"] == "CANCELLED"  # its dependency can never be met

    code, said = call(tmp_path / "again.log", *words, **slurm.environment)
    assert code == 0, said[-3000:]
    assert numbers(out) == numbers(tmp_path / "inline") and weights(out) == weights(tmp_path / "inline")
    assert max(r["cost"]["resumed"] for r in records(out).values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_time_limit_requeues(slurm: Slurm, tmp_path: Path, nodes: int) -> None:
    """One minute is the least that Slurm can limit; the step would take far longer."""
    sets = (*JOBS[:2], "launch.minutes=1", "launch.signal_seconds=15", f"launch.nodes={nodes}")
    out, log = tmp_path / "slurm", tmp_path / "log"
    words = small(out, "Joint", sets=(*sets, "train.updates=100000,3", "model.norm=group"))
    launcher = start(log, "run", *words, "--launcher", "slurm", **CPU, **slurm.environment)
    try:
        wait_for("the job", lambda: log.exists() and " jobs: " in log.read_text())
        (job,) = re.findall(r"1 jobs: (\d+)", log.read_text())
        is_requeued(slurm, job, out)
        goes_on(slurm, job, out)  # to the checkpoint of the second time limit
        wait_for("the second requeue", lambda: slurm.jobs()[job]["Restarts"] == "2")
        logs = [path.read_text() for path in (out / "logs/slurm").glob("*_log.out")]
        assert len(logs) == nodes and not any("\nexit code" in log for log in logs)
    finally:
        kill(launcher)
        slurm("scancel", "--me")


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("launch.partition=gpuu", "invalid partition"),
        ("launch.processes=3", "a batch of 4 cannot be split over 3 processes"),
        ("launch.options=constraint=a100", "Slurm refuses the job"),
    ],
)
def test_what_slurm_does_not_take_is_one_line(slurm: Slurm, tmp_path: Path, setting: str, wanted: str) -> None:
    words = small(tmp_path, "FT", sets=(*JOBS, setting))
    code, said = call(tmp_path / "log", "run", *words, "--launcher", "slurm", **slurm.environment)
    assert code == 2
    (line,) = [x for x in said.splitlines() if x.startswith("error:")]
    assert wanted in line and "Traceback" not in said


def test_without_slurm_it_is_one_line(tmp_path: Path) -> None:
    words = small(tmp_path, "FT", sets=JOBS)
    code, said = call(tmp_path / "log", "run", *words, "--launcher", "slurm", PATH="/nowhere")
    assert code == 2 and "there is no Slurm here" in said
