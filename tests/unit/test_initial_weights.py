"""Weights are had before anything begins: by ``plan``, and by ``run`` once for all its workers."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from contseg import run_benchmark
from contseg.benchmark.cli.grid import fetch_initial_weights
from contseg.benchmark.contract import toy_run
from contseg.benchmark.models import weights
from contseg.benchmark.plan.model_config import ModelConfig

GRID = ["--scenarios", "shapes/3-3/overlapped", "--methods", "FT", "MiB"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is asked of a network that cannot be reached."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    urls: list[str] = []

    def offline(url: str, *_: Any, **__: Any) -> None:
        urls.append(url)
        print(f'Downloading: "{url}"')  # as torch does
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    return urls


def test_a_plan_fetches_them_and_says_what_is_missing(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", *GRID, "--set", "model.backbone=resnet18", "--out", str(tmp_path)]
    assert run_benchmark.main(words) == 0
    said = capsys.readouterr()
    assert "2 runs" in said.out
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert said.err.startswith("before `run`: no ImageNet weights for resnet18") and said.err.count("\n") == 1


def test_a_plan_as_json_is_json(asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--json", *GRID, "--set", "model.backbone=resnet18", "--out", str(tmp_path)]
    assert run_benchmark.main(words) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["runs"] == 2
    assert len(asked) == 1


@pytest.mark.parametrize("launcher", ["inline", "local"])
def test_a_run_without_them_begins_nothing(
    launcher: str, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *GRID, "--launcher", launcher, "--out", str(tmp_path / "out")]
    assert run_benchmark.main([*words, "--set", "model.backbone=resnet18", "train.updates=1", "train.batch=2"]) == 2
    assert len(asked) == 1
    assert capsys.readouterr().err.startswith("error: no ImageNet weights for resnet18")
    assert not list(tmp_path.rglob("model.safetensors")) and not (tmp_path / "out" / "leaderboard.md").exists()


def test_a_file_of_another_network_is_told_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    words = ["plan", *GRID, "--out", str(tmp_path / "out"), "--set", f"model.weights={tmp_path / 'w.pth'}"]
    assert run_benchmark.main([*words, "model.backbone=timm:tf_efficientnet_lite0"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("before `run`: model.weights=") and "is not for this backbone: it lacks" in said


def test_nothing_is_fetched_where_no_first_step_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        class config:  # noqa: N801
            model = ModelConfig("resnet18")

        @staticmethod
        def to_train(_store: Any) -> list[Any]:
            return []

    monkeypatch.setattr(weights, "fetch_weights", lambda _: pytest.fail("fetched"))
    fetch_initial_weights(Done, None)  # type: ignore[arg-type]


def test_the_check_takes_another_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(toy_run, "NETWORK", toy_run.NETWORK)
    assert run_benchmark.main(["check", "RCIL", "--set", "model.backbone=timm:tf_efficientnet_lite0"]) == 1
    assert ModelConfig("timm:tf_efficientnet_lite0", 16, "none") == toy_run.NETWORK
    said = capsys.readouterr().out
    assert "RCIL folds a BatchNorm without activation into the convolution before it" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train.lr=1", "only model.KEY=VALUE can be set"),
        ("model.backbone=timm:resnet18x", "did you mean timm:resnet18 or"),
        ("model.backbne=tiny", "did you mean 'backbone'"),
    ],
)
def test_a_network_that_the_check_cannot_have(setting: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_benchmark.main(["check", "FT", "--set", setting]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
