"""Initial weights of an encoder from a file or from ImageNet, and what is said where they cannot be had."""

import re
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from contseg.benchmark.models.encoders import build_encoder
from contseg.benchmark.models.segmenter import build_model
from contseg.benchmark.models.weights import fetch_weights, load_weights
from contseg.benchmark.plan.model_config import ModelConfig, model_identity
from contseg.datasets.errors import UserError
from contseg.tests.unit.networks import images, same

# --- initial weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pth", "safetensors", "nested", "parallel"])
def test_weights_from_a_file(form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = get_model("resnet18", weights=None).state_dict()  # with its classifier, as torchvision gives it
    file = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(state, file)
    elif form == "nested":
        torch.save({"epoch": 7, "state_dict": state}, file)
    else:
        torch.save({("module." if form == "parallel" else "") + k: v for k, v in state.items()}, file)
    model = build_model(ModelConfig("resnet18", weights=str(file)), [3])
    loaded = model.encoder.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())
    fresh = build_model(ModelConfig("resnet18", weights="none"), [3])
    assert same(model.aspp, fresh.aspp)
    assert same(model.classifier, fresh.classifier)


@pytest.mark.parametrize("norm", ["frozen", "sync"])
def test_statistics_are_loaded_too(norm: str, tmp_path: Path) -> None:
    source = build_encoder("tiny", 4)
    source(images(4, 3, 24, 24))
    torch.save(source.state_dict(), tmp_path / "tiny.pth")
    model = build_model(ModelConfig("tiny", weights=str(tmp_path / "tiny.pth"), norm=norm), [3])
    assert torch.equal(model.encoder.stem[1].running_mean, source.stem[1].running_mean)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("stem.0")}, "lacks 'stem.0.weight'$"),
        (lambda s: {**s, "a.weight": torch.zeros(1), "b": torch.zeros(1)}, "has a foreign 'a.weight' and 1 more"),
        (lambda s: {**s, "stem.0.weight": torch.zeros(12, 1, 3, 3)}, "another shape for 'stem.0.weight'"),
        (lambda s: {"stem": 3}, "holds no state dict"),
        (lambda s: [torch.zeros(1)], "holds no state dict"),
    ],
)
def test_weights_of_another_network(change: object, line: str, tmp_path: Path) -> None:
    encoder = build_encoder("tiny", 4)
    file = tmp_path / "w.pth"
    torch.save(change(encoder.state_dict()), file)  # type: ignore[operator]
    with pytest.raises(UserError, match=line) as error:
        load_weights(encoder, file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_an_unreadable_file_of_weights(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="cannot be read") as error:
        build_model(ModelConfig("tiny", weights=str(file)), [3])
    assert "\n" not in str(error.value)


def test_a_file_of_weights_that_is_not_there(tmp_path: Path) -> None:
    for ask in (fetch_weights, model_identity):
        with pytest.raises(UserError, match="no such file"):
            ask(ModelConfig("tiny", weights=str(tmp_path / "none.pth")))


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_more: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        build_model(ModelConfig("resnet18"), [3])
    line = str(error.value)
    assert "\n" not in line
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in line
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in line
    assert re.search("model.weights=PATH.*model.weights=none", line)
    assert not list(tmp_path.rglob("*.pth*"))


def test_weights_once_downloaded_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, file)
    assert fetch_weights(ModelConfig("resnet18")) == file
    model = build_model(ModelConfig("resnet18"), [3])
    assert torch.equal(model.encoder.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("text.pth", lambda path: path.write_text("hello"), "it is damaged"),
        ("cut.safetensors", lambda path: path.write_bytes(b"12345678901"), "it is damaged"),
        ("model.pth", lambda path: torch.save(torch.nn.Linear(1, 1), path), "it holds Python objects"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_weights(name: str, write: Callable[[Path], object], what: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError) as found:
        load_weights(torch.nn.Linear(1, 1), tmp_path / name)
    assert str(found.value) == (
        f"model.weights={tmp_path / name} cannot be read, {what}: it has to be a state dict of torch.save, or "
        ".safetensors"
    )
