"""Cityscapes, from files of made-up content with the names of the download."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.formats.cityscapes import Cityscapes
from contseg.datasets.index import read_index
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.tools.verify import verify
from contseg.datasets.view import label_table, step_view
from contseg.run_benchmark import main

NAMES = ("cityscapes", "cityscapes-awt", "cityscapes-bacs")
V = 255
# the label of id 0, 1, ..., 33 in the three data sets
LABELS = {
    "cityscapes": [
        V, V, V, V, V, V, V, 1, 2, V, V, 3, 4, 5, V, V, V, 6, V, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, V, V, 17, 18, 19,
    ],
    "cityscapes-awt": [
        0, V, V, V, V, V, V, 1, 2, V, V, 3, 4, 5, V, V, V, 6, V, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, V, V, 17, 18, 19,
    ],
    "cityscapes-bacs": [
        0, 0, V, V, V, V, 0, 1, 2, 0, 0, 3, 4, 5, 0, 0, 0, 6, 0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0, 17, 18, 19,
    ],
}  # fmt: skip
TRAIN = ("aachen_000000_000019", "aachen_000001_000019", "zurich_000121_000019")
VAL = ("frankfurt_000000_000294", "munster_000173_000029")
# which ids an image shows; the first shows all
IDS = {TRAIN[0]: range(34), TRAIN[1]: (7, 8), TRAIN[2]: (8, 33), VAL[0]: (0, 7, 26), VAL[1]: (29, 11, 33)}


def image_path(root: Path, split: str, image_id: str) -> Path:
    return root / "leftImg8bit" / split / image_id.split("_")[0] / f"{image_id}_leftImg8bit.png"


def map_path(root: Path, split: str, image_id: str, kind: str = "labelIds") -> Path:
    return root / "gtFine" / split / image_id.split("_")[0] / f"{image_id}_gtFine_{kind}.png"


def write_pair(root: Path, split: str, image_id: str) -> None:
    values = np.resize(np.array(IDS[image_id], np.uint8), (6, 12))
    files = {
        image_path(root, split, image_id): np.stack([values * 7] * 3, 2),
        map_path(root, split, image_id): values,
        # the other files of the download
        map_path(root, split, image_id, "instanceIds"): values.astype(np.uint16) * 1000,
        map_path(root, split, image_id, "color"): np.stack([values] * 4, 2),
    }
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, ids in (("train", TRAIN), ("val", VAL)):
        for image_id in ids:
            write_pair(tmp_path, split, image_id)
    return tmp_path


def test_classes():
    written = (
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
        "rider, car, truck, bus, train, motorcycle, bicycle"
    )
    assert Cityscapes.class_names[1:] == tuple(written.split(", "))


def test_files_as_downloaded(root):
    dataset = open_dataset("cityscapes", root)
    assert (dataset.ids("train"), dataset.ids("val")) == (TRAIN, VAL)
    assert dataset.files(TRAIN[2], "train") == (image_path(root, "train", TRAIN[2]), map_path(root, "train", TRAIN[2]))
    assert dataset.n_foreground == 19


def test_files_that_macos_leaves(root):
    """Beside every file that macOS copies to a disk of another system."""
    for path in (image_path(root, "train", TRAIN[0]), map_path(root, "train", TRAIN[0])):
        path.with_name(f"._{path.name}").write_bytes(b"x")
    assert open_dataset("cityscapes", root).ids("train") == TRAIN


@pytest.mark.parametrize("name", NAMES)
def test_label_of_every_id(root, name):
    dataset = open_dataset(name, root)
    _, label = dataset.load(TRAIN[0], "train")
    written = np.array(Image.open(map_path(root, "train", TRAIN[0])))
    assert label.tolist() == [[LABELS[name][v] for v in line] for line in written.tolist()]
    for split, ids in (("train", TRAIN), ("val", VAL)):
        for row, image_id in zip(dataset.presence(split), ids, strict=True):
            assert set(np.flatnonzero(row)) == {LABELS[name][v] for v in IDS[image_id]}


def test_each_map_is_another_benchmark(root):
    """The rule is in the fingerprint, even of an image that has none of the ids in question."""
    opened = [open_dataset(name, root) for name in NAMES]
    assert len({d.fingerprint(TRAIN[1], "train") for d in opened}) == 3
    views = [step_view(d, parse_scenario(f"{d.name}/14-1/overlapped", 19), 0) for d in opened]
    assert len({v.digest for v in views}) == 3
    assert len({v.ids for v in views}) == 1


def test_a_stored_table_is_not_read_under_another_map(root, tmp_path):
    files = [(image_path(root, "train", i), map_path(root, "train", i)) for i in TRAIN]
    tables = [open_dataset(name, root).value_to_label for name in NAMES] + [None]
    stored = tmp_path / "kept.npz"
    kept = [read_index(files, stored, "", table=t) for t in tables for _ in range(2)]
    fresh = [read_index(files, None, "", table=t) for t in tables for _ in range(2)]
    for a, b in zip(kept, fresh, strict=True):
        np.testing.assert_array_equal(a.present, b.present)
        np.testing.assert_array_equal(a.prints, b.prints)


def test_a_step_sees_hidden_classes_as_background(root):
    """18-1, overlapped: old classes are background, other ids stay void."""
    dataset = open_dataset("cityscapes", root)
    scenario = parse_scenario("cityscapes/18-1/overlapped", 19)
    view = step_view(dataset, scenario, 1, void="ignore")
    assert view.ids == (TRAIN[0], TRAIN[2])
    _, label = dataset.load(TRAIN[0], "train")
    seen = view.table[label.numpy()]
    written = np.array(Image.open(map_path(root, "train", TRAIN[0])))
    expected = np.where(written == 33, 19, np.where(np.array(LABELS["cityscapes"])[written] == V, V, 0))
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(view.table, label_table(scenario.steps[1], "ignore"))


@pytest.mark.parametrize("below", ["cityscapes", "Cityscapes"])
def test_the_folder_above(root, below, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / below).symlink_to(root)
    assert open_dataset("cityscapes", above).ids("val") == VAL
    assert type(open_dataset("streets", root)) is Cityscapes  # by its layout


def test_verify_counts(root, capsys):
    report = verify(open_dataset("cityscapes", root), progress=False)
    assert [d.what for d in report.deviations] == [
        "3 train images instead of 2975",
        "2 val images instead of 500",
    ]
    assert [c["images"] for c in report.splits["train"]["classes"]] == [0, 2, 3, *[1] * 16, 2]
    assert report.splits["val"]["with_void"] == 2
    assert main(["data", "verify", "cityscapes", "--root", str(root)]) == 1
    assert main(["data", "verify", str(root)]) == 0  # a user's folder


def test_plan(root, tmp_path, capsys):
    grid = ["--scenarios", "cityscapes/18-1/overlapped", "cityscapes-awt/18-1/overlapped", "--methods", "FT"]
    folders = ["--data", f"cityscapes={root}", f"cityscapes-awt={root}", "--out", str(tmp_path / "runs")]
    assert main(["plan", *grid, *folders]) == 0
    shown = capsys.readouterr().out
    assert "cityscapes-awt/18-1/overlapped" in shown


class TestMistakes:
    """One line each, naming what is wrong and where."""

    def says(self, action, *words: object) -> None:
        with pytest.raises(UserError) as error:
            action()
        message = str(error.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message

    def test_no_folder(self, tmp_path):
        self.says(lambda: open_dataset("cityscapes"), "--data cityscapes=")
        self.says(lambda: open_dataset("cityscapes-awt", tmp_path), "leftImg8bit and gtFine", tmp_path)

    @pytest.mark.parametrize("lacking", ["leftImg8bit", "gtFine"])
    def test_one_archive_is_not_unpacked(self, root, lacking):
        (root / lacking).rename(root / "elsewhere")
        self.says(lambda: open_dataset("cityscapes", root), f"{root} has no {lacking}", f"{lacking}_trainvaltest.zip")

    def test_no_val(self, root):
        (root / "gtFine/val").rename(root / "gtFine/test")
        self.says(lambda: open_dataset("cityscapes", root).ids("val"), root / "gtFine/val")

    def test_train_ids(self, root):
        for i in TRAIN:
            map_path(root, "train", i).rename(map_path(root, "train", i, "labelTrainIds"))
        self.says(
            lambda: open_dataset("cityscapes", root).ids("train"), "labelTrainIds are there", "labelIds as downloaded"
        )

    def test_a_city_lacks_a_file(self, root):
        map_path(root, "train", TRAIN[1]).unlink()
        self.says(lambda: open_dataset("cityscapes", root).ids("train"), TRAIN[1], map_path(root, "train", TRAIN[1]))
        image_path(root, "val", VAL[1]).unlink()
        self.says(lambda: open_dataset("cityscapes", root).ids("val"), VAL[1], "no image", root / "leftImg8bit/val")

    def test_an_id_that_does_not_exist(self, root):
        path = map_path(root, "train", TRAIN[1])
        Image.fromarray(np.full((6, 12), 40, np.uint8)).save(path)
        self.says(lambda: open_dataset("cityscapes", root).presence("train"), "label 40", path)
