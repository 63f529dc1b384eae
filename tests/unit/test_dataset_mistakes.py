"""What is wrong with a data set is said in one line, naming what and where."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.datasets.tools.verify import verify
from contseg.tests.unit.trees import ade_tree, folder_tree, voc_tree, write_image, write_label, write_list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "mine")


class TestMistakes:
    """One line each, naming what is wrong and where."""

    def says(self, action, *words: object) -> None:
        with pytest.raises(UserError) as error:
            action()
        message = str(error.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message

    def test_no_such_folder(self, tmp_path):
        self.says(lambda: open_dataset("voc", tmp_path / "nowhere"), "voc", tmp_path / "nowhere")

    def test_the_home_of_nobody(self):
        self.says(lambda: open_dataset("voc", "~nobody-here/data"), "there is no folder ~nobody-here/data")

    @pytest.mark.parametrize("name", ["voc", "ade", "folder"])
    def test_no_folder_given(self, name):
        self.says(lambda: open_dataset(name), name, "--data")

    def test_wrong_layout(self, tmp_path):
        self.says(lambda: open_dataset("voc", tmp_path), "JPEGImages", "SegmentationClassAug", tmp_path, "VOCdevkit")
        self.says(lambda: open_dataset("ade", tmp_path), "images", "annotations", tmp_path, "ADEChallengeData2016")
        self.says(lambda: open_dataset("mine", tmp_path), "class_names.txt", "annotations", tmp_path)

    def test_unknown_name(self):
        self.says(lambda: open_dataset("shape"), "did you mean 'shapes'", "--data shape=")

    def test_no_list(self, folder):
        (folder / "ImageSets/Segmentation/train.txt").unlink()
        self.says(lambda: open_dataset("mine", folder).ids("train"), "ImageSets/Segmentation/train.txt")

    def test_no_val_list_of_voc(self, tmp_path):
        voc_tree(tmp_path, "ids")
        (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
        self.says(lambda: open_dataset("voc", tmp_path).ids("val"), "splits/val.txt", "Segmentation/val.txt", tmp_path)

    def test_no_training_folder(self, tmp_path):
        ade_tree(tmp_path)
        shutil.rmtree(tmp_path / "images/training")
        self.says(lambda: open_dataset("ade", tmp_path).ids("train"), tmp_path / "images/training")

    @pytest.mark.parametrize(
        ("part", "what"), [("JPEGImages/b.jpg", "image"), ("SegmentationClass/b.png", "label map")]
    )
    def test_listed_but_missing(self, folder, part, what):
        (folder / part).unlink()
        self.says(lambda: open_dataset("mine", folder).ids("train"), "'b'", what, (folder / part).parent)

    @pytest.mark.parametrize("part", ["JPEGImages/b.PNG", "SegmentationClass/b.tif"])
    def test_two_files_of_one_name(self, folder, part):
        """Either could be meant."""
        shutil.copy(folder / "SegmentationClass/b.png", folder / part)
        self.says(lambda: open_dataset("mine", folder).ids("train"), "train id 'b' has two files", (folder / part).name)
        found = [d.what for d in verify(open_dataset("mine", folder), progress=False).deviations]
        assert sum("'b' has two files in" in what for what in found) == 1
        (folder / part).rename((folder / part).with_name(f"other{Path(part).suffix}"))
        assert open_dataset("mine", folder).ids("train") == ("a", "b", "c")

    def test_empty_list(self, folder):
        write_list(folder / "ImageSets/Segmentation/train.txt", ())
        self.says(lambda: open_dataset("mine", folder).presence("train"), "mine", "no train images")

    @pytest.mark.parametrize("value", [4, 254])
    def test_label_out_of_range(self, folder, value):
        labels = np.zeros((10, 14), int)
        labels[3, 4] = value
        write_label(folder / "SegmentationClass/b.png", labels)
        dataset = open_dataset("mine", folder)
        self.says(lambda: dataset.presence("train"), f"label {value} ", folder / "SegmentationClass/b.png", "0..3")

    @pytest.mark.parametrize("keep", [0, 20, 0.5, 0.95])
    @pytest.mark.parametrize("part", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
    def test_truncated(self, folder, part, keep):
        write_image(folder / "JPEGImages/b.jpg", folder / "SegmentationClass/b.png", 3, size=(60, 80))
        content = (folder / part).read_bytes()
        (folder / part).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        dataset = open_dataset("mine", folder)
        self.says(lambda: dataset.presence("train"), "cannot read", folder / part)
        self.says(lambda: dataset.load("b", "train"), "cannot read", folder / part)

    def test_not_an_image(self, folder):
        (folder / "JPEGImages/b.jpg").write_text("hello")
        self.says(lambda: open_dataset("mine", folder).presence("train"), folder / "JPEGImages/b.jpg")

    @pytest.mark.parametrize("mode", ["RGB", "I;16", "1", "LA"])
    def test_label_map_of_another_kind(self, folder, mode):
        label = folder / "SegmentationClass/b.png"
        image = Image.fromarray(np.zeros((10, 14), np.uint16)) if mode == "I;16" else Image.new(mode, (14, 10))
        image.save(label)
        dataset = open_dataset("mine", folder)
        self.says(lambda: dataset.presence("train"), label, mode, "8-bit")
        self.says(lambda: dataset.load("b", "train"), label, mode, "8-bit")

    def test_label_map_of_another_size(self, folder):
        label = folder / "SegmentationClass/b.png"
        write_label(label, np.zeros((14, 10)))
        dataset = open_dataset("mine", folder)
        self.says(lambda: dataset.presence("train"), label, "10x14", "14x10")
        self.says(lambda: dataset.load("b", "train"), label, "10x14", "14x10")

    def test_label_map_of_a_photograph_that_is_stored_sideways(self, folder):
        image, label = folder / "JPEGImages/b.jpg", folder / "SegmentationClass/b.png"
        write_label(label, np.zeros((14, 10)))
        self.says(lambda: open_dataset("mine", folder).load("b", "train"), label, "10x14", "14x10")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        Image.new("RGB", (14, 10)).save(image, exif=exif)
        for action in ("load", "presence"):
            dataset = open_dataset("mine", folder)
            words = ("b", "train") if action == "load" else ("train",)
            self.says(lambda d=dataset, a=action, w=words: getattr(d, a)(*w), label, "14x10", "EXIF", "save it turned")

    def test_one_name_only(self, folder):
        write_list(folder / "class_names.txt", ("background",))
        self.says(lambda: open_dataset("mine", folder), "class_names.txt", "1 labels")

    def test_odd_table_of_classes(self, tmp_path):
        ade_tree(tmp_path, n=2)
        write_list(tmp_path / "objectInfo2.txt", ("Idx\tName", "2\tsky"))
        self.says(lambda: open_dataset("mine", tmp_path), tmp_path / "objectInfo2.txt", "numbered from 1")
