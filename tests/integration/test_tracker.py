"""What a tracker is told while a grid is trained, read back by TensorBoard's own reader."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from accelerate import Accelerator

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.score.metrics import step_miou
from contseg.benchmark.store import tracker
from contseg.run_benchmark import main
from contseg.tests.integration.grid import small
from contseg.tests.records import make_run

Curves = dict[str, list[tuple[int, float]]]


def curves(folder: Path) -> Curves:
    """Every curve that TensorBoard shows, by its tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_has_the_scores_of_every_step_inside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard: pip install 'contseg[tensorboard]'")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    grid = small(out, "FT", "Joint", scenarios=("shapes/3-1/overlapped",), sets=("run.tracker=tensorboard",))
    words = ["run", *map(str, grid)]
    assert main(words) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    found = curves(out / "tensorboard" / "contseg")
    table = pd.read_csv(out / "leaderboard.csv").set_index("method")
    old, new, every = (dict(found[f"mIoU {part}/shapes/3-1/overlapped FT seed 0"]) for part in ("old", "new", "all"))
    assert (list(old), list(new), list(every)) == ([0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3])
    row = table.loc["FT"]
    assert [old[3], new[3], every[3]] == pytest.approx(row[["old", "new", "all"]].tolist(), abs=1e-3)
    assert sum(every.values()) / 4 == pytest.approx(row["avg"], abs=1e-3)
    assert old[0] == every[0] == pytest.approx(row["step0"], abs=1e-3)
    ((step, value),) = found["mIoU all/shapes/offline/overlapped Joint seed 0"]
    assert step == 0 and value == pytest.approx(table.loc["Joint", "all"], abs=1e-3)
    assert [tag for tag in found if tag.startswith("mIoU") and "Joint" in tag] == [
        "mIoU all/shapes/offline/overlapped Joint seed 0"
    ]
    assert "shapes/3-1/overlapped step 1 FT seed 0/ce" in found
    assert main(words) == 0  # nothing is left to train, and nothing is logged twice
    assert curves(out / "tensorboard" / "contseg") == found


def test_a_mistake_leaves_no_files_of_a_tracker(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard: pip install 'contseg[tensorboard]'")
    words = small(tmp_path / "out", "FT", scenarios=("shapes/9-9/overlapped",), sets=("run.tracker=tensorboard",))
    assert main(["run", *map(str, words)]) == 2
    assert not (tmp_path / "out").exists()


def test_a_step_without_later_classes_has_no_new_ones() -> None:
    """mIoU of a record alone is that of its step in the run."""
    first, second = make_run("FT")[:2]
    assert set(step_miou(first, PROTOCOLS["sdr"])) == {"old", "all"}
    assert set(step_miou(second, PROTOCOLS["sdr"])) == {"old", "new", "all"}


def test_wandb_gets_an_axis_that_may_fall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B ignores what is logged at a step below its last one, and every training begins at update 0."""
    told = list[Any]()
    run = SimpleNamespace(
        log=lambda values, step=None: told.append((values, step)),
        define_metric=lambda name, step_metric=None: told.append((name, step_metric)),
        finish=lambda: None,
    )
    stand_in = ModuleType("wandb")
    monkeypatch.setattr(stand_in, "init", lambda project: run if project == "contseg" else None, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    accelerator = Accelerator(cpu=True, **tracker.options("wandb", tmp_path))
    tracker.start(accelerator)
    tracker.start(accelerator)
    accelerator.log({"ce": 1.5}, step=30)
    accelerator.log({"ce": 2.5}, step=10)
    assert told == [("at", None), ("*", "at"), ({"ce": 1.5, "at": 30}, None), ({"ce": 2.5, "at": 10}, None)]
    assert list(tmp_path.iterdir()) == []


def test_mlflow_gets_names_that_it_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Letters, digits and ``_-. :/``; anything else raises in the middle of a training."""
    stand_in = MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    accelerator = Accelerator(cpu=True, **tracker.options("mlflow", tmp_path))
    tracker.start(accelerator)
    accelerator.log({"voc/15-1/overlapped step 2 MiB[kd=0.5]+SDR seed 0/ce": 1.5}, step=30)
    stand_in.log_metrics.assert_called_once_with({"voc/15-1/overlapped step 2 MiB_kd_0.5__SDR seed 0/ce": 1.5}, step=30)
