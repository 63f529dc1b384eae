"""What is wrong with a data set is said in one line, naming what and where."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.datasets.tools.scan import scan
from contseg.datasets.tools.verify import verify
from contseg.datasets.user_defined import open_checked
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

    @pytest.mark.parametrize(
        ("turn", "size"), [(2, (14, 10)), (3, (14, 10)), (4, (14, 10)), (6, (12, 12)), (8, (12, 12))]
    )
    @pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
    def test_a_photograph_whose_size_does_not_tell_whether_its_map_is_turned(self, folder, turn, size, ending):
        image, label = folder / f"JPEGImages/b.{ending}", folder / "SegmentationClass/b.png"
        (folder / "JPEGImages/b.jpg").unlink()
        write_label(label, np.zeros(size[::-1]))
        exif = Image.Exif()
        for noted in (1, turn):
            exif[0x0112] = noted
            Image.new("RGB", size).save(image, exif=exif)
            dataset = open_dataset("mine", folder)
            if noted == 1:
                assert len(dataset.presence("train")) == 3
        self.says(lambda: dataset.presence("train"), image, label, "EXIF")
        assert any(str(image) in d.what and "EXIF" in d.what for d in verify(dataset, progress=False).deviations)

    def test_a_photograph_whose_map_lies_as_it_is_stored(self, folder):
        """The size says so: it is read as stored, bit by bit."""
        before = open_dataset("mine", folder).load("b", "train")[0]
        exif = Image.Exif()
        exif[0x0112] = 6
        image = folder / "JPEGImages/b.png"
        Image.fromarray(before.permute(1, 2, 0).numpy()).save(image, exif=exif)
        (folder / "JPEGImages/b.jpg").unlink()
        dataset = open_dataset("mine", folder)
        assert dataset.sizes("train")[1].tolist() == [10, 14]
        assert dataset.load("b", "train")[0].equal(before)

    @pytest.mark.parametrize("bits", [2, 4])
    @pytest.mark.parametrize("kind", ["png", "tif"])
    def test_grey_label_map_of_few_bits(self, folder, bits, kind):
        """Pillow reads their values as shades: 3 of two bits is 255, the void."""
        (folder / "SegmentationClass/b.png").unlink()
        label = folder / f"SegmentationClass/b.{kind}"
        label.write_bytes((grey_png if kind == "png" else grey_tiff)(bits, 14, 10))
        with Image.open(label) as read:
            assert (read.mode, read.getextrema()) == ("L", (255, 255))
        dataset = open_dataset("mine", folder)
        self.says(lambda: dataset.presence("train"), label, f"{bits} bits of grey", "8-bit")
        self.says(lambda: dataset.load("b", "train"), label, f"{bits} bits of grey", "8-bit")

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_palette_label_map_of_few_bits(self, folder, bits):
        label, values = folder / "SegmentationClass/b.png", np.arange(140).reshape(10, 14) % min(4, 2**bits)
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette(np.arange(3 * 2**bits))
        image.save(label, bits=bits)
        assert label.read_bytes()[24] == bits
        assert np.array_equal(open_dataset("mine", folder).load("b", "train")[1], values)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (None, ("fails (KeyError: 'train2'; test_dataset_mistakes.py, line ",)),
            ((torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)), ("must give two uint8 tensors",)),
            ((torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.uint8)), ("two uint8 tensors",)),
        ],
    )
    def test_a_later_image_that_is_not_drawn(self, given, words):
        class Drawn(SegmentationDataset):
            class_names = ("background", "cat")

            def ids(self, split):
                return tuple(f"{split}{k}" for k in range(4))

            def files(self, image_id, split):
                return None

            def load(self, image_id, split):
                whole = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8)
                others = {} if given is None else {"train2": given}
                return whole if image_id != "train2" else others[image_id]

        dataset = open_checked(Drawn, "mine", None, None)
        where = "data set 'mine' (test_dataset_mistakes.py): load('train2', 'train')"
        self.says(lambda: dataset.presence("train"), where, *words)
        self.says(lambda: scan(dataset, "train", progress=False), where, *words)

    def test_one_name_only(self, folder):
        write_list(folder / "class_names.txt", ("background",))
        self.says(lambda: open_dataset("mine", folder), "class_names.txt", "1 labels")

    def test_odd_table_of_classes(self, tmp_path):
        ade_tree(tmp_path, n=2)
        write_list(tmp_path / "objectInfo2.txt", ("Idx\tName", "2\tsky"))
        self.says(lambda: open_dataset("mine", tmp_path), tmp_path / "objectInfo2.txt", "numbered from 1")


def grey_png(bits: int, width: int, height: int) -> bytes:
    """The highest value everywhere."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + b"\xff" * -(-width * bits // 8)) * height
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_tiff(bits: int, width: int, height: int) -> bytes:
    """The highest value everywhere; not compressed."""
    rows = b"\xff" * (-(-width * bits // 8) * height)
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(rows)),
    ]
    head = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(tags))
    return head + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
