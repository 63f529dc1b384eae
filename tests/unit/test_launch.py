"""Where workers run: the GPUs they get, and how long before a time limit they are told."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contseg.benchmark.plan.build import Plan, make_plan
from contseg.benchmark.plan.config import read_config
from contseg.benchmark.plan.run_config import LaunchConfig
from contseg.benchmark.store.claims import Claim
from contseg.benchmark.store.files import Store
from contseg.benchmark.train import launch
from contseg.datasets import progress as module
from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset


@pytest.mark.parametrize(
    ("visible", "gpus", "workers", "got"),
    [
        (None, 2, 0, ["0", "1"]),
        ("2,3", 2, 0, ["2", "3"]),
        ("3, 2", 2, 4, ["3", "2", "3", "2"]),
        ("GPU-5ebe9f43,MIG-4aa1", 2, 0, ["GPU-5ebe9f43", "MIG-4aa1"]),
        ("7,-1,2", 1, 0, ["7"]),  # the driver stops at what it does not know
    ],
)
def test_workers_get_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: int, workers: int, got: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    n, environment = launch._local_workers(LaunchConfig(workers=workers))
    assert [environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(n)] == got


def test_workers_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    n, environment = launch._local_workers(LaunchConfig(workers=3))
    assert [environment(i) for i in range(n)] == [{"OMP_NUM_THREADS": "4"}] * 3


def test_a_signal_while_workers_are_started_reaches_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    plain = subprocess.Popen

    def start(*args: Any, **named: Any) -> Any:
        started.append(plain(*args, **named))
        signal.raise_signal(signal.SIGTERM)  # before the launcher knows of the worker
        return started[-1]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", "import time; time.sleep(8)"))
    monkeypatch.setattr(launch, "_watch", lambda *args, **named: None)
    monkeypatch.setattr(subprocess, "Popen", start)
    plan: Any = SimpleNamespace(config=SimpleNamespace(launch=LaunchConfig(workers=2)))
    code, wrong = launch.local(plan, Store(tmp_path), ())
    assert code == 128 + signal.SIGTERM and len(wrong) == 1 and wrong[0].startswith("interrupted: ")
    assert [w.returncode for w in started] == [-signal.SIGTERM]


def test_a_second_launcher_leaves_the_logs_of_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, log = Claim(tmp_path / "logs"), tmp_path / "logs/worker0.log"
    assert first.acquire()
    log.write_text("failed: step 1: of the first\n")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", "print('failed: step 2: of the second'); exit(1)"))
    monkeypatch.setattr(launch, "_watch", lambda *args, **named: None)
    plan: Any = SimpleNamespace(config=SimpleNamespace(launch=LaunchConfig(workers=1)))
    assert launch.local(plan, Store(tmp_path), ()) == (1, ["failed: step 2: of the second"])
    assert log.read_text() == "failed: step 1: of the first\n"
    first.release()
    assert launch.local(plan, Store(tmp_path), ())[0] == 1
    assert log.read_text() == "failed: step 2: of the second\n"
    assert not [*tmp_path.rglob("claim*")]


def test_a_killed_worker_gives_the_exit_code_of_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a run without launcher that is killed, by the kernel for want of memory, for example."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    monkeypatch.setattr(launch, "_watch", lambda *args, **named: None)
    plan: Any = SimpleNamespace(config=SimpleNamespace(launch=LaunchConfig(workers=1)))
    code, wrong = launch.local(plan, Store(tmp_path), ())
    assert code == 128 + signal.SIGKILL and "worker0 ended with exit code 137" in wrong[0]


def test_a_worker_that_fails_after_a_signal_wrote_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(2)); print('up', flush=True); time.sleep(8)"
    log = tmp_path / "logs/worker0.log"

    def watch(*args: Any, **named: Any) -> None:
        while "up" not in log.read_text():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, "-c", full))
    monkeypatch.setattr(launch, "_watch", watch)
    plan: Any = SimpleNamespace(config=SimpleNamespace(launch=LaunchConfig(workers=1)))
    code, (first, last) = launch.local(plan, Store(tmp_path), ())
    assert code == 128 + signal.SIGINT and first.startswith("worker0 ended with exit code 2")
    assert last == "interrupted: not every checkpoint is written; run the same command again to resume"


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        (LaunchConfig(), 600),
        (LaunchConfig(minutes=60), 360),
        (LaunchConfig(minutes=1440), 600),
        (LaunchConfig(minutes=1, signal_seconds=15), 15),
    ],
)
def test_the_signal_leads_the_time_limit(config: LaunchConfig, seconds: int) -> None:
    assert launch._lead(config) == seconds


def test_every_task_of_a_job_gets_its_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Since Slurm 22.05 srun does not take --cpus-per-task from its job: each task would be bound to one core."""
    submitit = pytest.importorskip("submitit")
    asked: dict[str, Any] = {}

    class Executor:
        def __init__(self, *args: Any, **named: Any) -> None: ...

        def update_parameters(self, **named: Any) -> None:
            asked.update(named)

        def submit(self, step: Any) -> Any:
            return SimpleNamespace(job_id="7")

    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    node: Any = SimpleNamespace(key="3f9a1c2e")
    assert launch._submit(LaunchConfig(processes=2, cpus=6), tmp_path, node, (), None) == "7"
    assert asked["cpus_per_task"] == 6 and "--cpus-per-task=6" in asked["srun_args"]


@pytest.mark.parametrize("config", [LaunchConfig(minutes=1, signal_seconds=90), LaunchConfig(signal_seconds=-1)])
def test_a_lead_that_leaves_nothing(config: LaunchConfig) -> None:
    with pytest.raises(UserError, match=r"leaves nothing of launch\.minutes"):
        launch._lead(config)


def test_time_left_is_judged_by_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 0 of the shapes has more images than step 1: half of the steps are not half of the work."""
    sets = ("model.backbone=tiny", "model.weights=none")
    grid = read_config(None, sets, scenarios=("shapes/3-3/overlapped",), methods=("FT",), seeds=(0,))
    plan = make_plan(grid, open_dataset)
    first, second = plan.nodes.values()
    assert first.images > second.images > 0
    monkeypatch.setattr(Plan, "trained", lambda self, store, key: key == first.key)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    launch._watch(plan, Store(tmp_path), lambda: False, pause=1)
    total = first.images + second.images
    assert f"1 of 2 steps: image {first.images} of {total}, " in capsys.readouterr().err
    store = Store(tmp_path)
    store.step(second.key).mkdir(parents=True)
    store.say_updates(second.key, second.updates // 2)  # under way
    launch._watch(plan, store, lambda: False, pause=1)
    half = second.images * (second.updates // 2) // second.updates
    assert f"1 of 2 steps: image {first.images + half} of {total}, " in capsys.readouterr().err
    store.drop_checkpoint(second.key)
    assert store.updates_said(second.key) == 0
    assert not list(store.step(second.key).iterdir())
