"""A user's mistake: one clear line, exit code 2, no traceback, nothing half-written."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from run_benchmark import main

SMALL = ["--set", "model.backbone=tiny", "train.updates=2", "train.batch=4", "train.crop=48", "train.scale="]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does; gives its one line."""

    def call(*words: object) -> str:
        out = tmp_path / "out"
        before = sorted(out.rglob("*")) if out.exists() else []
        try:
            code = main([*map(str, words), "--out", str(out)])
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        err = capsys.readouterr().err.strip()
        assert code == 2, err
        lines = [x for x in err.splitlines() if x.startswith(("error:", "run_benchmark.py"))]
        assert len(lines) == 1 and "Traceback" not in err, err
        after = sorted(p for p in out.rglob("*") if p.is_file()) if out.exists() else []
        assert not [
            p for p in after if p not in before and ("records" in p.parts or p.suffix in (".tmp", ".safetensors"))
        ]
        return lines[0]

    return call


def grid(*methods: str, scenario: str = "shapes/3-3/overlapped") -> list[str]:
    return ["run", "--scenarios", scenario, "--methods", *(methods or ("FT",)), *SMALL]


def voc_folder(root: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """A data set of one's own: 2 classes, pictures of 60 x 50."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    (root / "class_names.txt").write_text("background\ncat\ndog\n")
    for i, name in enumerate(names):
        Image.new("RGB", (60, 50), (40 * i, 90, 200)).save(root / f"JPEGImages/{name}.jpg")
        label = Image.new("L", (60, 50), 0)
        label.paste(1 + i % 2, (5, 5, 40, 40))
        label.save(root / f"SegmentationClass/{name}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def own(root: Path, scenario: str = "mine/1-1/overlapped") -> list[str]:
    return [*grid(scenario=scenario), "--data", f"mine={root}"]


def test_wrong_path(fails: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fails(*own(tmp_path / "nowhere"))


def test_wrong_layout_says_what_was_looked_for(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "class_names.txt" in fails(*own(tmp_path / "empty"))
    line = fails(*grid(scenario="voc/15-5/overlapped"), "--data", f"voc={tmp_path / 'empty'}")
    assert "JPEGImages" in line and str(tmp_path / "empty") in line


def test_truncated_picture_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    whole = (root / "JPEGImages/b.jpg").read_bytes()
    (root / "JPEGImages/b.jpg").write_bytes(whole[: len(whole) // 2])
    assert "b.jpg" in fails(*own(root))


def test_unreadable_label_map_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    (root / "SegmentationClass/c.png").write_bytes(b"not a picture")
    assert "c.png" in fails(*own(root))


def test_label_out_of_range_names_file_and_value(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    Image.new("L", (60, 50), 7).save(root / "SegmentationClass/d.png")
    line = fails(*own(root))
    assert "d.png" in line and "7" in line


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (grid("Mib"), "'MiB'"),
        (grid("MiB[kdd=1]"), "'kd'"),
        (grid("MiB[kd=much]"), "float"),
        (grid("FT+SDRR"), "'SDR'"),
        (grid(scenario="shapes/3-3/overlaped"), "'overlapped'"),
        (grid(scenario="shpes/3-3/overlapped"), "'shapes'"),
        (grid(scenario="shapes/19-1/overlapped"), "19-1"),
        (grid(scenario="shapes/3-3"), "DATASET/TASK/SETUP"),
        ([*grid(), "model.backbone=resnet19"], "'resnet18'"),
        ([*grid(), "train.epoch=3"], "'epochs'"),
        ([*grid(), "trian.epochs=3"], "'train'"),
        ([*grid(), "train.epochs=many"], "train.epochs"),
        ([*grid(), "train.batch=0"], "train.batch"),
        ([*grid(), "--protocol", "strickt"], "'strict'"),
        ([*grid(), "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["run", "--methods", "FT"], "--scenarios"),
        (["run", "--scenarios", "shapes/3-3/overlapped"], "--methods"),
        ([*grid(), "--data", "voc"], "NAME=PATH"),
        ([*grid(), "--plugin", "/nowhere/plugin.py"], "/nowhere/plugin.py"),
        ([*grid(), "train.batch=1"], "BatchNorm"),
    ],
)  # fmt: skip
def test_names_and_values(fails: Callable[..., str], words: list[str], wanted: str) -> None:
    assert wanted in fails(*words)


def test_an_empty_step_is_known_before_anything_is_trained(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    for name in "abcd":  # every picture holds both classes: none is left for step 0
        label = Image.new("L", (60, 50), 1)
        label.paste(2, (5, 5, 40, 40))
        label.save(root / f"SegmentationClass/{name}.png")
    line = fails(*own(root, "mine/1-1/disjoint"))
    assert "step 0" in line and "disjoint" in line


def test_bad_toml(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("methods = [FT")
    assert "not valid TOML" in fails("run", "--config", path)
    path.write_text("metods = ['FT']")
    assert "'methods'" in fails("run", "--config", path)


def test_results_of_an_incompatible_version(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/contseg.json").write_text(json.dumps({"format": 99}))
    assert "incompatible version" in fails(*grid())


def test_no_weights_and_no_network(fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    line = fails(*grid()[:-5], "model.backbone=resnet18", "train.updates=1", "train.batch=2", "train.crop=64")
    assert "model.weights" in line and "resnet18" in line


def test_a_folder_that_cannot_be_written(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    assert "cannot write" in fails(*grid())
    shutil.copy(tmp_path / "out", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "a file where the folder should be"
