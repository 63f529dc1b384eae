"""Every command that README and documents print is run, page by page, in the order of the page, in a folder that is not
the checkout. A training is cut to one update on few drawn images; what needs data, GPUs or a cluster is planned on
stand-ins of the data sets; what needs a network is parsed."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg import run_benchmark
from contseg.datasets.formats import shapes
from contseg.methods import registry
from contseg.tests.material import ROOT
from contseg.tests.pages import PAGES, code, commands
from contseg.tests.unit.trees import write_label

CODE = (ROOT / "run_benchmark.py", ROOT / "benchmark/cli/examples.py")
SOURCES = [*PAGES, *sorted((ROOT / "benchmark/configs").glob("*.toml")), *CODE]
ONE_UPDATE = ["train.updates=1", "train.batch=4", "run.eval_batch=50"]
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def pair(image: Path, label: Path, classes: list[int], low: int = 0) -> None:
    """An image of 16x16 and its labels: columns of ``classes`` over ``low``."""
    values = np.full((16, 16), low)
    values[4:] = np.array(classes)[np.arange(16) * len(classes) // 16]
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(classes[0]).integers(0, 256, (16, 16, 3), np.uint8)).save(image)
    write_label(label, values)


def voc(root: Path) -> None:
    """Two training images and one test image of each class, by itself."""
    lists: dict[str, list[str]] = {"train_aug": [], "val": []}
    for c in range(1, 21):
        for split, name in (("train_aug", f"a{c}"), ("train_aug", f"b{c}"), ("val", f"v{c}")):
            pair(root / f"JPEGImages/{name}.jpg", root / f"SegmentationClassAug/{name}.png", [c])
            lists[split].append(name)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")


def ade(root: Path) -> None:
    for c in range(1, 151):
        for part in ("training", "validation"):
            pair(root / f"images/{part}/{c}.jpg", root / f"annotations/{part}/{c}.png", [c])


def cityscapes(root: Path) -> None:
    """Four images of a city of each split, which together have every id of the download."""
    for split, city in (("train", "aachen"), ("val", "munster")):
        for k in range(4):
            name = f"{city}_{k:06}_000019"
            image, label = (root / part / split / city / f"{name}_{part}" for part in ("leftImg8bit", "gtFine"))
            pair(
                image.with_suffix(".png"),
                label.with_name(f"{label.name}_labelIds.png"),
                [*range(34)][9 * k : 9 * k + 9],
            )


def segnet_camvid(root: Path) -> None:
    """CamVid as the SegNet tutorial ships it: labels from 0, 11 is void, every class in every image."""
    for part, n in (("train", 6), ("val", 3), ("test", 2)):
        for k in range(n):
            pair(root / f"{part}/{part}{k}.png", root / f"{part}annot/{part}{k}.png", [*range(11)], low=11)
    (root / "class_names.txt").write_text("\n".join(CAMVID) + "\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of the data sets, and a small grid that is trained: what the pages' folders hold."""
    place = tmp_path_factory.mktemp("place")
    voc(place / "data/VOCdevkit/VOC2012")
    ade(place / "data/ADEChallengeData2016")
    cityscapes(place / "data/cityscapes")
    segnet_camvid(place / "CamVid")
    assert run_benchmark.main(["data", "init", str(place / "CamVid"), "--first-class", "0", "--void", "11", "--out",
                               str(place / "data/camvid")]) == 0  # fmt: skip
    for scenario in ("15-5", "15-1"):
        assert run_benchmark.main(["data", "export-splits", f"voc/{scenario}/overlapped", "--root", str(place / "data"),
                                   "--out", str(place / f"lists/{scenario}")]) == 0  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "COUNTS", {"train": 30, "val": 6})
        words = ["--scenarios", "shapes/3-3/overlapped", "--methods", "FT", "MiB+SDR", "--set", "model.backbone=tiny"]
        shape = ["train.crop=48", "train.scale="]
        assert run_benchmark.main([*words, *ONE_UPDATE, *shape, "--out", str(place / "trained")]) == 0
    return place


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder; methods and modules that a page loads are forgotten afterwards."""
    registry.methods()
    for table in ("_METHODS", "_ADDONS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    monkeypatch.setattr(shapes, "COUNTS", {"train": 30, "val": 6})
    monkeypatch.chdir(tmp_path)
    for name in ("data", "CamVid", "lists"):
        (tmp_path / name).symlink_to(prepared / name)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/configs").symlink_to(ROOT / "benchmark/configs")
    plugin = code("docs/add_a_method.md", "@register_method")
    for file, name in (("soft_kd.py", "SoftKD"), ("my_method.py", "MyMethod"), ("their_method.py", "Theirs")):
        (tmp_path / file).write_text(plugin.replace("SoftKD", name))
    for out in ("runs/voc", "runs/ade", "incoming/theirs", "results"):
        (tmp_path / out).parent.mkdir(exist_ok=True)
        (tmp_path / out).symlink_to(prepared / "trained")
    yield tmp_path
    for name in ("soft_kd", "my_method", "their_method"):
        sys.modules.pop(name, None)


def here(word: str, place: Path) -> str:
    """A word of a page with the paths of the stand-ins."""
    places = {
        "voc=...": f"voc={place}/data",
        "voc=/data/VOC2012": f"voc={place}/data/VOCdevkit/VOC2012",
        "DIR": "runs/voc",
        "MiB/data/voc/15-5s-ov": f"{place}/lists/15-5",
        "theirs/": f"{place}/lists/15-1",
    }
    word = re.sub(r"/path/to/|(?<=[=])/data/(?=camvid)", f"{place}/data/", places.get(word, word))
    return re.sub(r"^(\w+=)?/(data|incoming)\b", rf"\g<1>{place}/\2", word)


def runnable(words: list[str], launched: bool, place: Path) -> list[str]:
    """What is done here for a command as it is printed; empty if it can only be parsed."""
    elided = words[-1] == "..."
    words = [here(word, place) for word in words if word != "..."]
    if words[0].startswith("-"):
        words = ["run", *words]
    others = ("check", "predict", "export", "submit", "leaderboard", "reproduce")
    if words[0] in others or words[:2] == ["data", "prepare"]:
        # test_documented_plugin.py runs the check; tests/unit/test_ports.py and test_submit.py run the others
        return []
    if words[0] == "run":
        if launched or elided or "--data" in words or "--launcher" in words:
            words[0] = "plan"
            if "--launcher" in words:
                del words[(at := words.index("--launcher")) : at + 2]
            methods = [] if "--config" in words else ["--methods", "FT"]
            return [*words, *methods, "--data", f"voc={place}/data"] if elided else words
        if "--config" not in words:
            return [*words, "--set", *ONE_UPDATE, "model.backbone=tiny", "train.crop=48"]
        words += ["--scenarios", "shapes/3-3/overlapped"] if "--scenarios" not in words else []
        words += ["--methods", "FT", "MiB+SDR"] if "--methods" not in words else []
        return [*words, "--set", *ONE_UPDATE]
    if words[0] == "report" and "--tasks" in words:  # the trained stand-in has one task
        words = ["3-3" if re.fullmatch(r"\d+-\d+", word) else word for word in words]
    return words


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_every_documented_command_runs(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for printed, launched in commands(page.read_text(encoding="utf-8")):
        words = runnable(printed, launched, place)
        stand_in = words[:2] == ["data", "verify"] and words[2] in ("voc", "cityscapes")  # not the published one
        known = (0, 1) if stand_in else (0,)
        if words:
            assert run_benchmark.main(words) in known, (printed, capsys.readouterr().err[-500:])
        else:
            run_benchmark.parser().parse_args(printed)
