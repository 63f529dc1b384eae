"""The data tools on every real pack, and on every published list."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.registry import open_dataset
from contseg.datasets.tools.verify import verify
from contseg.run_benchmark import main
from contseg.tests.material import material

# name, how it is opened, folder of the pack
FOLDERS = {
    "voc_small": "voc_small",
    "voc_animals": "voc_animals",
    "voc_fullres_sample": "voc_fullres_sample",
    "camvid_small": "camvid_small",
    "camvid_ade_layout": "camvid_ade_layout",
}
PUBLISHED = {"voc_fullres_sample": "voc", "ade_sample": "ade", "cocostuff_ade_format": "ade"}


def run(capsys, *arguments):
    code = main(["data", *map(str, arguments)])
    return code, capsys.readouterr().out


def readme_table(pack: Path) -> dict[int, tuple[list[int], list[float]]]:
    """Label -> (training and validation images, training and validation share in percent), as the README prints."""
    table = {}
    for line in (pack / "README.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].isdigit():
            numbers = cells[2:]
            images = [int(c) for c in numbers if "." not in c]
            table[int(cells[0])] = images, [float(c) for c in numbers if "." in c]
    return table


@pytest.mark.parametrize("name", FOLDERS)
def test_verify_a_folder(name, capsys):
    """Exit code 0, and every count of the pack's README."""
    pack = material("data", FOLDERS[name])
    code, out = run(capsys, "verify", pack, "--json")
    assert code == 0
    splits = json.loads(out)["splits"]
    expected = readme_table(pack)
    assert len(expected) >= 12
    if name == "voc_fullres_sample":
        return  # its README counts train_aug: below
    for label, (images, shares) in expected.items():
        for split, n, percent in zip(("train", "val"), images, shares, strict=True):
            if label == 255:
                assert splits[split]["with_void"] == n
                assert round(100 * splits[split]["void_share"], 2) == pytest.approx(percent, abs=0.0101)
            else:
                found = splits[split]["classes"][label]
                assert found["images"] == n
                assert round(100 * found["pixel_share"], 2) == pytest.approx(percent, abs=0.0101)


def test_verify_the_full_layout(capsys):
    """``SegmentationClassAug`` with ``train_aug``: counts of the README; and it is far from the whole data set."""
    pack = material("data", "voc_fullres_sample")
    code, out = run(capsys, "verify", "voc", "--root", pack, "--json")
    assert code == 1
    report = json.loads(out)
    for label, (images, _) in readme_table(pack).items():
        found = [report["splits"][s]["classes"][label]["images"] if label < 255 else 24 for s in ("train", "val")]
        assert found == images
    what = " | ".join(d["what"] for d in report["deviations"])
    assert "36 train images instead of 10582" in what
    assert "24 training maps have void pixels instead of 1464" in what
    assert report["scenarios"]["15-1/overlapped"]["published"] == [9568, 487, 299, 491, 500, 548]
    expected = json.loads((pack / "expected_splits.json").read_text())["scenarios"]
    for name, lists in expected.items():
        assert report["scenarios"][name]["found"] == [len(ids) for ids in lists["train_aug"]]


@pytest.mark.parametrize("name", ["ade_sample", "cocostuff_ade_format"])
def test_verify_ade_layout(name, capsys):
    code, out = run(capsys, "verify", "ade", "--root", material("data", name))
    assert code == 1
    assert "val images instead of 2000" in out
    if name == "ade_sample":
        assert "images/training" in out
    else:
        assert "13 train images instead of 20210" in out


SHOWN = [
    ("camvid_small", "camvid", "6-5", "overlapped"),
    ("camvid_ade_layout", "camvid", "6-5", "disjoint"),
    ("voc_small", "own", "15-1", "disjoint"),
    ("voc_animals", "own", "[8,12|13|17|10]", "overlapped"),
    ("voc_fullres_sample", "voc", "15-1", "sequential"),
    ("cocostuff_ade_format", "ade", "100-50", "partitioned"),
]


@pytest.mark.parametrize(("pack", "name", "task", "setup"), SHOWN)
def test_show(pack, name, task, setup, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    code, text = run(capsys, "show", f"{name}/{task}/{setup}", "--root", material("data", pack), "--out", out)
    assert code == 0
    sizes = [int(n) for n in re.findall(r"^step \d+: (\d+) images", text, re.MULTILINE)]
    expected = material("data", pack, "README.md").with_name("expected_splits.json")
    if expected.exists() and name != "own":
        lists = json.loads(expected.read_text())["scenarios"][f"{task}/{setup.replace('sequential', 'disjoint')}"]
        assert sizes == [len(ids) for ids in next(iter(lists.values()))]
    with Image.open(out) as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 1000  # photographs are on it


@pytest.mark.parametrize("pack", [*FOLDERS, "cocostuff_ade_format"])
def test_init(pack, tmp_path, capsys):
    """What it writes verifies, and holds the same pixels of every class as the pack."""
    source = material("data", pack)
    code, out = run(capsys, "init", source, "--out", tmp_path / "own")
    assert code == 0
    assert "tasks" in out
    code, out = run(capsys, "verify", tmp_path / "own", "--json")
    assert code == 0
    if pack != "cocostuff_ade_format":
        original = verify(open_dataset("own", source), progress=False)
        assert json.loads(out)["splits"] == original.splits


def test_the_walk_through_camvid(tmp_path, capsys):
    """docs/your_data.md: CamVid as the SegNet tutorial ships it (labels 0..10, 11 unlabelled) gives our counts."""
    pack = material("data", "camvid_small")
    raw = tmp_path / "CamVid"
    for split in ("train", "val"):
        (raw / split).mkdir(parents=True)
        (raw / f"{split}annot").mkdir()
        for image_id in (pack / f"ImageSets/Segmentation/{split}.txt").read_text().split():
            (raw / split / f"{image_id}.jpg").symlink_to(pack / "JPEGImages" / f"{image_id}.jpg")
            with Image.open(pack / "SegmentationClass" / f"{image_id}.png") as image:
                labels = np.array(image)
            Image.fromarray(np.where(labels == 255, 11, labels - 1).astype(np.uint8)).save(
                raw / f"{split}annot" / f"{image_id}.png"
            )
    names = (pack / "class_names.txt").read_text().splitlines()[1:]
    (raw / "class_names.txt").write_text("".join(f"{name}\n" for name in names))
    code, out = run(capsys, "init", raw, "--first-class", 0, "--void", 11, "--out", tmp_path / "camvid")
    assert code == 0
    assert re.search(r"6-1/disjoint +3, 0, 0, 40, 123, 201 +NOT POSSIBLE: step 1, 2 is empty", out)
    code, out = run(capsys, "verify", tmp_path / "camvid", "--json")
    assert code == 0
    splits = json.loads(out)["splits"]
    original = verify(open_dataset("own", pack), progress=False).splits
    for split, facts in splits.items():
        assert [c["images"] for c in facts["classes"]] == [c["images"] for c in original[split]["classes"]]
        assert facts["void_share"] == original[split]["void_share"]
    code, out = run(capsys, "show", "camvid/6-5/overlapped", "--root", tmp_path / "camvid")
    assert code == 0
    assert "step 1: 364 images" in out


@pytest.mark.parametrize("pack", ["voc_small", "camvid_small", "voc_fullres_sample"])
def test_expected_lists_are_equal_to_ours(pack, tmp_path, capsys):
    """The packs' lists, as text files of ids, are recognised."""
    source = material("data", pack)
    listed = json.loads((source / "expected_splits.json").read_text())["scenarios"]
    expected = {s: lists for s, lists in listed.items() if re.fullmatch(r"\d+-\d+/(disjoint|overlapped)", s)}
    assert len(expected) >= 4
    name = "voc" if pack == "voc_fullres_sample" else "own"
    for scenario, lists in expected.items():
        folder = tmp_path / scenario.replace("/", "-")
        folder.mkdir()
        for t, ids in enumerate(next(iter(lists.values()))):
            (folder / f"train-{t}.txt").write_text("".join(f"{i}\n" for i in ids))
        code, out = run(capsys, "import-splits", folder, "--root", source, "--scenario", f"{name}/{scenario}")
        assert code == 0, out
        assert "all equal" in out


# --- from lists to a run ----------------------------------------------------------------------------------------------


def train(root, name, scenario, out):
    tiny = ["model.backbone=tiny", "train.updates=1", "train.crop=32", "train.batch=2", "eval.crop=32"]
    return main(
        [
            "run",
            "--data",
            f"{name}={root}",
            "--scenarios",
            scenario,
            "--methods",
            "FT",
            "--set",
            *tiny,
            "--out",
            str(out),
        ]
    )


@pytest.mark.parametrize(
    ("pack", "name", "task"),
    [
        ("voc_fullres_sample", "voc", "15-5"),
        ("camvid_ade_layout", "camvid", "6-5"),
        ("cocostuff_ade_format", "ade", "100-50"),
    ],
)
def test_a_run_over_a_pack(pack, name, task, tmp_path):
    assert train(material("data", pack), name, f"{name}/{task}/overlapped", tmp_path) == 0
    records = list((tmp_path / "records").rglob("step1.json"))
    assert len(records) == 1


def test_a_run_over_someones_lists(tmp_path, capsys):
    """Lists that are not ours become a scenario of their own; the records say so."""
    root = material("data", "camvid_small")
    ids = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    for t, chosen in enumerate((ids[:40], ids[40:60])):
        (tmp_path / f"train_{t}.txt").write_text("\n".join(chosen))
    code, out = run(
        capsys,
        "import-splits",
        tmp_path,
        "--root",
        root,
        "--scenario",
        "camvid/6-5/overlapped",
        "--out",
        tmp_path / "half.json",
    )
    assert code == 0
    scenario = f"camvid/6-5/overlapped+{tmp_path / 'half.json'}"
    assert f"--scenarios {scenario}" in out
    assert train(root, "camvid", scenario, tmp_path / "out") == 0
    (record,) = (tmp_path / "out" / "records").rglob("step1.json")
    assert json.loads(record.read_text())["setup"] == "overlapped+half"
