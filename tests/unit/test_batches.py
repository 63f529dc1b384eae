"""Shares of a step's images: every image once, the same number of batches for all, also where images are few."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
import torch

from contseg.benchmark.models.load import fresh, grow
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.train import batches as step_batches
from contseg.benchmark.train import slurm_job
from contseg.datasets.step_dataset import StepImages
from contseg.methods.base import StepContext
from contseg.methods.baselines import ClassMeans
from contseg.methods.plop import PseudoLabelCrossEntropy
from contseg.methods.registry import build_method
from contseg.methods.reminder import BatchPrototypes
from contseg.tests.unit.networks import make_images, make_labels, make_steps
from contseg.tests.unit.steps import Grid, Images


def shares(tmp_path: Path, images: int, processes: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The whole pass of every process."""
    grid = Grid(tmp_path, ("FT",), data=Images(images))
    node, config = grid.node(0), grid.plan.config
    device = torch.device("cpu")
    ranks = [SimpleNamespace(device=device, process_index=r, num_processes=processes) for r in range(processes)]
    shares: list[Any] = [step_batches.StepBatches(node, config, grid.data, r) for r in ranks]  # type: ignore[arg-type]
    return [list(s.whole_pass()) for s in shares]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 9, 11])
def test_a_pass_gives_every_process_as_many_batches_and_every_image_once(
    images: int, processes: int, tmp_path: Path
) -> None:
    found = shares(tmp_path, images, processes)
    assert len({len(batches) for batches in found}) == 1
    assert sum(len(x) for batches in found for x, _ in batches) == images
    for x, y in (b for batches in found for b in batches):
        assert x.shape == (len(y), 3, 32, 32) and y.shape == (len(x), 32, 32)
        assert x.dtype == torch.float32 and y.dtype == torch.int64


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("term", [ClassMeans, BatchPrototypes, PseudoLabelCrossEntropy])
def test_a_batch_without_an_image_counts_nothing(term: Any, norm: str, tmp_path: Path) -> None:
    """What terms make of a pass is the same with an empty batch in it."""
    first, second = make_steps(2, 1)
    method = build_method("FT")
    old = fresh(ModelConfig("tiny", norm=norm), first, method, 0).double().eval()
    model = fresh(ModelConfig("tiny", norm=norm), first, method, 0).double().eval()
    grow(model, second, method)
    images, labels = make_images(), make_labels(second)
    states = []
    for empty in (False, True):
        batches = [(images, labels)] + [(images[:0], labels[:0])] * empty
        ctx = StepContext(second, model, old, lambda b=batches: b)
        made = term()
        made.begin_step(ctx)
        made.end_step(ctx)
        states.append(made.state_dict())
    assert states[0].keys() == states[1].keys() and states[0]
    for name, value in states[0].items():
        assert torch.equal(value.nan_to_num(-1), states[1][name].nan_to_num(-1)), name


# --- decoded images in memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "processes"),
    [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_WORLD_SIZE": "2", "CONTSEG_WORKERS": "4"}, 8)],
    ids=["one", "torchrun", "workers of torchrun"],
)
def test_processes_on_one_machine_share_its_memory(
    environment: dict[str, str], processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    each = 4 * 32 * 32
    monkeypatch.setattr("contseg.datasets.step_dataset.room", lambda: 8 * each)
    monkeypatch.setattr(Images, "sizes", lambda self, split: torch.full((16, 2), 32).numpy())
    grid = Grid(tmp_path, ("FT",), ("run.keep_decoded=true",), data=Images(16))
    kept = grid.trainer().step_batches.images._kept
    assert kept is not None and kept.n == 8 // processes


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    images = Grid(tmp_path, ("FT",)).trainer().step_batches.images
    assert isinstance(images, StepImages) and images._kept is None


# --- loader processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "device", "cores", "here", "free", "expected"),
    [
        (-1, "cpu", 16, 1, 2**40, 0),
        (3, "cpu", 16, 1, 2**40, 3),
        (0, "cuda", 16, 1, 2**40, 0),  # what the user says
        (-1, "cuda", 16, 1, 2**40, 15),
        (-1, "cuda", 64, 1, 2**40, 16),
        (-1, "cuda", 64, 8, 2**40, 7),  # shared with seven other processes
        (-1, "cuda", 1, 1, 2**40, 0),
        (-1, "cuda", 16, 1, 2 * 3 * 4 * (8 * 4 * 32 * 32), 3),  # room for twice three loaders, each four batches ahead
        (-1, "cuda", 16, 1, 2**16, 0),  # a container with hardly any shared memory
    ],
)
def test_loader_processes(
    chosen: int, device: str, cores: int, here: int, free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_batches.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(step_batches, "processes_here", lambda: here)
    monkeypatch.setattr(step_batches, "room", lambda: free)
    assert step_batches.loader_processes(chosen, torch.device(device), 8, (32, 32)) == expected


@pytest.mark.parametrize("usable", [4, 16])  # bound to its own cores, as by Slurm's task/affinity, or not bound
def test_a_process_of_a_slurm_job_has_its_own_cores(usable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes of four cores each: three loaders each, not none."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(num_tasks=1, global_rank=0))
    child = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr(slurm_job.subprocess, "Popen", lambda call, **options: told.update(options) or child)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    slurm_job.RunStep((), "a")()
    for name, value in {**os.environ, **(told.get("env") or {}), "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(step_batches.os, "sched_getaffinity", lambda _: range(usable), raising=False)
    monkeypatch.setattr(step_batches, "room", lambda: 2**40)
    assert step_batches.loader_processes(-1, torch.device("cuda"), 8, (32, 32)) == 3


def test_the_number_of_loader_processes_changes_no_batch(tmp_path: Path) -> None:
    seen = []
    for workers in (0, 2):
        grid = Grid(tmp_path, ("FT",), (f"run.workers={workers}", "train.scale=0.5,1"))
        seen.append([torch.cat([i.flatten(), l.flatten()]) for i, l in grid.trainer().step_batches.updates(0, 3)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
