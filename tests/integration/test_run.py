"""The whole way, by the real command: plan, train, score, table; again; with observers; with a failing cell."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contseg.benchmark.train import step_runner
from contseg.run_benchmark import main
from contseg.tests.integration.grid import call, numbers, records, small, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    done = call(
        "run",
        *small(out, "FT", "MiB+SDR", "EWC", "Joint", scenarios=("shapes/3-3/overlapped", "shapes/3-1/overlapped")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Joint" in done.stdout and "shapes" in done.stdout
    return out


def test_records_hold_what_the_protocol_needs(finished: Path) -> None:
    found = records(finished)
    assert len(found) == 2 * 3 + 4 * 3 + 1
    for record in found.values():
        pixels = sum(map(sum, record["matrix"]["seen"])) + sum(map(sum, record["matrix"]["unseen"]))
        assert pixels == 200 * 48 * 48  # every image of the test set, counted once
        assert record["channels"] == [0, *sum(record["groups"][: record["step"] + 1], [])]
        assert record["cost"]["updates"] == (4 if record["step"] == 0 else 3)
        assert record["versions"]["torch"] and record["protocol"]["name"] == "sdr"


def test_one_step_0_serves_every_method_and_both_tasks(finished: Path) -> None:
    assert len({r["step_key"] for r in records(finished).values() if r["step"] == 0 and r["task"] != "offline"}) == 1


def test_leaderboard_has_the_promised_columns(finished: Path) -> None:
    table = pd.read_csv(finished / "leaderboard.csv")
    assert list(table.columns[:12]) == (
        [
            "dataset",
            "task",
            "setup",
            "protocol",
            "method",
            "seeds",
            "old",
            "old_std",
            "new",
            "new_std",
            "all",
            "all_std",
        ]
    )
    assert set(table["task"]) == {"3-3", "3-1"}  # Joint stands in each of them
    assert (table["method"] == "Joint").sum() == 2


def test_a_finished_grid_trains_nothing_and_prints_the_same_table(finished: Path) -> None:
    before = weights(finished), (finished / "leaderboard.md").read_text()
    again = call(
        "run",
        *small(finished, "FT", "MiB+SDR", "EWC", "Joint", scenarios=("shapes/3-3/overlapped", "shapes/3-1/overlapped")),
    )
    assert again.returncode == 0
    assert "to train now: 0 steps" in again.stdout
    assert (weights(finished), (finished / "leaderboard.md").read_text()) == before


def test_observers_change_no_weight(finished: Path, tmp_path: Path) -> None:
    alone = call("run", *small(tmp_path, "FT"))
    assert alone.returncode == 0
    key = next(r["step_key"] for r in records(tmp_path).values() if r["step"] == 0)
    path = f"{key[:2]}/{key}/model.safetensors"
    assert weights(tmp_path)[path] == weights(finished)[path]
    assert any("observer" in p for p in weights(finished)) and not any("observer" in p for p in weights(tmp_path))


def test_a_late_observer_replays_the_step_and_gets_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    assert call("run", *small(tmp_path, "FT")).returncode == 0
    late = call("run", *small(tmp_path, "MiB+SDR", "EWC"))
    assert late.returncode == 0, late.stderr[-2000:]
    mine, theirs = numbers(tmp_path), numbers(finished)
    assert mine and all(theirs[k] == v for k, v in mine.items())


def test_a_cell_that_diverges_is_named_and_the_others_finish(tmp_path: Path) -> None:
    sets = ("train.lr=0.05,1e30", "train.updates=4,12")
    done = call("run", *small(tmp_path, "FT", "Joint", sets=sets))
    assert done.returncode == 1
    assert "loss 'ce' is not finite at update" in done.stderr
    assert {r["method"] for r in records(tmp_path).values() if r["step"] == r["steps"] - 1} == {"Joint"}
    assert "Joint" in done.stdout


def test_a_finished_step_leaves_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []

    class Watched(step_runner.StepTrainer):
        def run(self) -> dict[str, Any]:
            networks.extend(weakref.ref(m) for m in (self.model, self.old) if m is not None)
            return super().run()

    monkeypatch.setattr(step_runner, "StepTrainer", Watched)
    assert main(["run", *map(str, small(tmp_path, "FT", "LwF"))]) == 0
    gc.collect()
    assert len(networks) == 4  # step 0, and two later steps: LwF has the previous network beside, FT has none
    assert not any(ref() for ref in networks)


def test_report_takes_the_records_own_protocol(tmp_path: Path) -> None:
    done = call("run", *small(tmp_path, "FT"), "--protocol", "strict")
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "leaderboard.csv").read_text()
    assert ",strict," in table
    (tmp_path / "leaderboard.csv").unlink()
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "leaderboard.csv").read_text() == table
