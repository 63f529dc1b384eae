"""Mistakes with the `data` commands, as made at a keyboard: one line, exit code 2, nothing half-written, no waiting."""

import io
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.base import REGISTRY
from contseg.datasets.index import read_index
from contseg.datasets.registry import open_dataset, open_folder
from contseg.methods.registry import load_plugins
from contseg.run_benchmark import main
from contseg.tests.unit.folders import voc_layout, write_image, write_map
from contseg.tests.unit.trees import voc_tree

Refused = Callable[..., str]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return voc_layout(tmp_path / "own")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of a command that is a mistake."""

    def call(*words: object) -> str:
        assert main(["data", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        return line

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(root: Path, *more: object) -> list[object]:
    return ["show", "mine/2-1/overlapped", "--root", root, *more]


class TestTargets:
    @pytest.mark.parametrize("label", [999, 256, -1])
    def test_void(self, refused: Refused, own: Path, label: int) -> None:
        assert f"--void {label}: the labels of an 8-bit map are 0 to 255" in refused("init", own, "--void", label)

    def test_contact_sheet(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        assert "give an image file, for example x.png" in refused(*show(own, "--out", "x.xyz"))
        assert "give an image file" in refused(*show(own, "--out", tmp_path))
        assert "there is no folder" in refused(*show(own, "--out", tmp_path / "no/x.png"))
        for n in (0, -3, 10**6):
            assert f"--images {n}" in refused(*show(own, "--out", tmp_path / "x.png", "--images", n))
        assert not [*tmp_path.glob("*.png")]

    def test_a_sheet_that_its_format_cannot_hold(
        self, refused: Refused, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "contseg.datasets.tools.show.contact_sheet", lambda *_: Image.new("RGB", (20000, 2))
        )  # WebP ends at 16 383
        assert "cannot write" in refused(*show(own, "--out", tmp_path / "x.webp"))

    def test_prepare(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for root in (tmp_path / "file", tmp_path / "file" / "below"):
            for what in ("voc", "ade"):
                assert f"cannot write into {root}" in refused("prepare", what, "--root", root)
        assert "no such file" in refused("prepare", "voc", "--root", tmp_path / "new", "--aug", tmp_path / "aug.zip")
        assert "did you mean 'voc'? Known: ade, voc; one of your own" in refused("prepare", "voc12", "--root", "new")
        line = refused("prepare", "cityscapes", "--root", tmp_path / "new")
        assert "gtFine_trainvaltest.zip" in line and "`data verify cityscapes --root DIR`" in line
        assert not (tmp_path / "new").exists()  # before anything is downloaded

    def test_init(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot write" in refused("init", own, "--out", tmp_path / "file" / "new")
        assert "is inside" in refused("init", own, "--out", own / "new")
        assert not (own / "new").exists()

    def test_lists(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        export = ("export-splits", "mine/2-1/overlapped", "--root", own, "--out")
        assert "is a file" in refused(*export, tmp_path / "file")
        assert "cannot write" in refused(*export, tmp_path / "file" / "new")
        assert main(["data", *map(str, export), str(tmp_path / "lists")]) == 0
        words = ("import-splits", tmp_path / "lists", "--root", own, "--scenario", "mine/2-1/overlapped", "--out")
        assert "ending in .json" in refused(*words, tmp_path / "x.txt")
        assert "ending in .json" in refused(*words, tmp_path / "no" / "x.json")


class TestWhichDataSet:
    def test_a_folder_is_known_by_its_layout_and_not_by_its_name(
        self, here: Path, own: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        own.rename(here / "voc")
        for word in ("voc", "voc/", str(here / "voc")):
            assert main(["data", "verify", word]) == 0
            assert capsys.readouterr().out.startswith("voc (a folder) in ")

    def test_voc_in_a_folder_called_voc(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        voc_tree(here / "voc", "ids")
        assert main(["data", "verify", "voc"]) == 1
        assert "3 train images instead of 10582" in capsys.readouterr().out

    def test_a_name_that_is_neither(self, refused: Refused) -> None:
        assert "there is no folder vco, and unknown data set 'vco': did you mean 'voc'?" in refused("verify", "vco")

    def test_data_names_the_folder(self, refused: Refused, own: Path) -> None:
        assert "write NAME=DIR" in refused("verify", "mine", "--data", own)
        assert "write NAME=DIR" in refused("verify", "mine", "--data", "mine=")
        line = refused("show", "mine/2-1/overlapped", "--data", f"other={own}")
        assert "'other'" in line and "'mine'" in line
        assert main(["data", "show", "mine/2-1/overlapped", "--data", f"mine={own}"]) == 0

    def test_voc_without_augmented_labels(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        (own / "class_names.txt").unlink()
        line = refused("verify", "voc", "--root", own)
        assert "not SegmentationClassAug" in line
        assert "`data prepare voc --root DIR`" in line and f"--data mine={own}" in line
        own.rename(tmp_path / "VOC2012")  # where `prepare` can go on
        line = refused("verify", "voc", "--root", tmp_path)
        assert f"`data prepare voc --root {tmp_path}` makes them" in line
        line = refused("verify", tmp_path / "VOC2012")
        assert "no class_names.txt" in line and "data init" in line and "data prepare voc" in line

    def test_voc_with_a_list_of_names_is_still_voc(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Where there is no SegmentationClass, only SegmentationClassAug, it is not a user's folder."""
        voc_tree(tmp_path / "photos", "ids")
        (tmp_path / "photos/class_names.txt").write_text("background\ncat\n")
        assert main(["data", "verify", str(tmp_path / "photos")]) == 0
        assert "tvmonitor" in capsys.readouterr().out

    def test_the_training_images_of_a_voc_without_a_list_are_ascending(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        voc_tree(tmp_path, "none")
        listed = os.listdir
        monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder), reverse=True))
        main(["data", "verify", "voc", "--root", str(tmp_path)])
        assert "not ascending" not in capsys.readouterr().out

    def test_whose_lists(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "train-0.npy", np.array([0]))
        lists = ("import-splits", tmp_path / "train-0.npy")
        assert "which data set do the lists belong to" in refused(*lists).lower()
        assert "no scenario known for own has 1 steps" in refused(*lists, "--root", own)
        line = refused(*lists, "--root", own, "--name", "voc", "--scenario", "mine/2-1/overlapped")
        assert "two data sets" in line

    def test_the_maps_are_read_once(self, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONTSEG_CACHE", str(tmp_path / "cache"))
        words = ["data", "export-splits", "mine/2-1/overlapped", "--root", str(own), "--out", str(tmp_path / "lists")]
        assert main(words) == 0
        monkeypatch.setattr("contseg.datasets.index._read", lambda *_: pytest.fail("a map was read again"))
        assert main(words) == 0
        words = ["data", "import-splits", str(tmp_path / "lists"), "--data", f"mine={own}"]
        assert main([*words, "--scenario", "mine/2-1/overlapped"]) == 0

    def test_a_table_that_cannot_be_kept(self, own: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        files = [(own / "JPEGImages/train0.jpg", own / "SegmentationClass/train0.png")]
        assert read_index(files, tmp_path / "file" / "t.npz", "").present.sum() == 2


class TestNames:
    def test_twice(self, refused: Refused, own: Path) -> None:
        (own / "class_names.txt").write_text("background\ncat\ndog\ncat\n")
        for words in (("verify", own), ("init", own)):
            assert "labels 1 and 3 the same name 'cat'" in refused(*words)

    def test_byte_order_mark_and_numbers(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (own / "class_names.txt").write_bytes(b"\xef\xbb\xbf0 background\r\n1: cat\r\n2 dog\r\n3 cow 2\r\n")
        assert main(["data", "init", str(own)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "0 background " in shown and "1 cat " in shown and "3 cow 2 " in shown

    def test_without_background(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (own / "class_names.txt").write_text("cat\ndog\ncow\n")
        assert main(["data", "init", str(own)]) == 1
        assert "line 0 of the names is the background, here 'cat'" in capsys.readouterr().out

    def test_no_text(self, refused: Refused, own: Path) -> None:
        (own / "class_names.txt").write_bytes("Kühe".encode("latin-1"))
        assert "not UTF-8 text" in refused("verify", own)


class TestFiles:
    @pytest.mark.parametrize("part", ["SegmentationClass/train0.png", "JPEGImages/train0.jpg"])
    def test_a_pipe_is_not_waited_for(self, refused: Refused, own: Path, part: str) -> None:
        (own / part).unlink()
        os.mkfifo(own / part)
        assert f"{own / part}: it is not a regular file" in refused(*show(own))
        assert main(["data", "verify", str(own)]) == 1
        assert main(["data", "init", str(own)]) == 1
        assert "a regular file" in refused("export-splits", "mine/2-1/overlapped", "--root", own, "--out", own / "x")

    def test_pipes_in_place_of_lists(self, refused: Refused, own: Path, tmp_path: Path) -> None:
        path = own / "ImageSets/Segmentation/train.txt"
        path.unlink()
        os.mkfifo(path)
        assert "not a regular file" in refused("init", own)
        assert "not a regular file" in refused(*show(own))
        whole = voc_layout(tmp_path / "whole")
        for name in ("train-0.npy", "train-0.txt", "lists.json"):
            os.mkfifo(tmp_path / name)
            words = ("import-splits", tmp_path / name, "--root", whole, "--scenario", "mine/2-1/overlapped")
            assert "not a regular file" in refused(*words)
        shutil.rmtree(own / "SegmentationClass")
        os.mkfifo(own / "coco.json")
        assert "no images with label maps" in refused("init", own)

    def test_a_jpeg_that_is_cut_short_behind_its_thumbnail(self, refused: Refused, own: Path) -> None:
        """The thumbnail in the header ends with the same marker as the image."""
        path, thumbnail, whole = own / "JPEGImages/train0.jpg", io.BytesIO(), io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(noise[:6, :8]).save(thumbnail, "JPEG")
        exif = b"Exif\0\0" + thumbnail.getvalue()
        for progressive in (False, True):
            Image.fromarray(noise).save(whole, "JPEG", progressive=progressive)
            head, rest = whole.getvalue()[:2], whole.getvalue()[2:]
            content = head + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + rest
            write_map(own / "SegmentationClass/train0.png", 0, 1, size=(80, 60))
            for trailing in (b"", b"\0" * 40):
                path.write_bytes(content + trailing)
                assert main(["data", *map(str, show(own))]) == 0
            path.write_bytes(content[: len(content) // 2])
            assert f"{path}: the file is truncated" in refused(*show(own))

    def test_a_label_without_a_class_is_not_shown_as_nothing(self, refused: Refused, own: Path) -> None:
        write_map(own / "SegmentationClass/train0.png", 0, 9)
        assert "label 9 in" in refused(*show(own))

    def test_ids_with_endings(self, refused: Refused, own: Path) -> None:
        path = own / "ImageSets/Segmentation/train.txt"
        path.write_text("JPEGImages/train0.jpg SegmentationClass/train0.png\n")
        assert "write train0, one name a line" in refused(*show(own))

    def test_no_lists(self, refused: Refused, own: Path) -> None:
        shutil.rmtree(own / "ImageSets")
        line = refused("verify", own)
        assert "Segmentation/train.txt" in line and f"`data init {own} --out DIR`" in line

    def test_files_that_macos_leaves(self, own: Path) -> None:
        (own / "JPEGImages/._train0.jpg").write_bytes(b"x")
        assert main(["data", "init", str(own)]) == 0


class TestInit:
    def test_one_name_in_two_folders_of_a_split_is_two_images(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            for k in range(20):
                write_image(tmp_path / "raw" / folder / "images" / f"{k}.png", colour=k)
                write_map(tmp_path / "raw" / folder / "masks" / f"{k}.png", 0, 1 if folder == "a" else 2)
        assert main(["data", "init", str(tmp_path / "raw"), "--out", str(tmp_path / "new")]) == 0
        dataset = open_dataset("new", tmp_path / "new")
        assert len(dataset.ids("train")) + len(dataset.ids("val")) == 40
        assert dataset.presence("train").sum(0)[1:3].tolist() == [len(dataset.ids("train")) // 2] * 2

    def test_lists_that_are_not_used_are_named(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (own / "ImageSets/Segmentation/val.txt").write_text("val0\nelsewhere\n")
        for k in range(10):
            write_image(own / "JPEGImages" / f"more{k}.jpg")
            write_map(own / "SegmentationClass" / f"more{k}.png", 0, 1)
        main(["data", "init", str(own)])
        assert "Segmentation: 1 ids, as elsewhere, have no two files)" in capsys.readouterr().out

    def test_lists_of_names_with_spaces(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (own / folder / f"val0.{ending}").rename(own / folder / f"my photo.{ending}")
        (own / "ImageSets/Segmentation/val.txt").write_text("my photo\nval1\n")
        assert main(["data", "init", str(own)]) == 0
        assert "by the lists" in capsys.readouterr().out

    def test_what_does_not_fit(self, refused: Refused, tmp_path: Path) -> None:
        for k in range(3):
            write_image(tmp_path / "jpeg/images" / f"{k}.jpg")
            write_image(tmp_path / "jpeg/masks" / f"{k}.jpg")
            write_image(tmp_path / "named/images" / f"{k}.jpg")
            write_map(tmp_path / "named/masks" / f"{k}_mask.png", 0, 1)
        assert "JPEG does not keep labels" in refused("init", tmp_path / "jpeg")
        assert "images/0.jpg and masks/0_mask.png differ" in refused("init", tmp_path / "named")

    def test_too_few_to_hold_out(self, refused: Refused, tmp_path: Path) -> None:
        write_image(tmp_path / "one/images/a.jpg")
        write_map(tmp_path / "one/masks/a.png", 0, 1)
        assert "give a list or a folder for" in refused("init", tmp_path / "one")


NAMES = 'class_names = ("background", "cat", "dog", "cow")'
IDS = """
    def ids(self, split):
        return tuple((self.root / f"ImageSets/Segmentation/{split}.txt").read_text().split())
"""
FILES = """
    def files(self, image_id, split):
        return self.root / f"JPEGImages/{image_id}.jpg", self.root / f"SegmentationClass/{image_id}.png"
"""
DOMAINS = "domains = ('x',)\n    def domain_of(self, i):\n        return i[:2]\n\n    "
NONE = "\n    def files(self, image_id, split):\n        return None\n"


class TestClassesOfOnesOwn:
    """Plugins that give a data set."""

    @pytest.fixture(autouse=True)
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        open_dataset("shapes")
        monkeypatch.setattr("contseg.datasets.base.REGISTRY", dict(REGISTRY))

    @pytest.fixture
    def plugin(self, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
        def write(*parts: str, decorator: str = '@register_dataset("mine")', base: str = "SegmentationDataset") -> Path:
            path = tmp_path / f"data_{uuid.uuid4().hex}.py"
            body = "".join(parts) or "pass"
            path.write_text(
                "from contseg.datasets.base import SegmentationDataset, register_dataset\n"
                f"{decorator}\nclass Mine({base}):\n    {body}\n"
            )
            return path

        return write

    def test_a_whole_one(self, plugin: Callable[..., Path], own: Path) -> None:
        words = ["data", "verify", "mine", "--root", str(own), "--plugin", str(plugin(NAMES, IDS, FILES))]
        assert main(words) == 0

    def test_maps_with_other_values(self, plugin: Callable[..., Path], own: Path) -> None:
        """``value_to_label`` makes labels of the pixel values: here labels 1 and 2 change places."""
        table = "import numpy as np\n    value_to_label = np.array([0, 2, 1, *range(3, 256)], np.uint8)\n    "
        load_plugins(str(plugin(table, NAMES, IDS, FILES)))
        mine, plain = open_dataset("mine", own), open_folder("own", own)
        swapped = plain.presence("train")[:, [0, 2, 1, *range(3, 256)]]
        assert (mine.presence("train") == swapped).all() and (swapped != plain.presence("train")).any()
        assert (mine.fingerprints("train") != plain.fingerprints("train")).any(1).all()

    def test_without_its_folder(self, plugin: Callable[..., Path], refused: Refused) -> None:
        line = refused("verify", "mine", "--plugin", plugin(NAMES, IDS, FILES))
        assert "ids('train') fails (TypeError" in line and "no folder was given: use --data NAME=DIR" in line

    @pytest.mark.parametrize(
        ("parts", "says"),
        [
            ((NAMES, IDS), "does not define files"),
            ((NAMES, FILES), "does not define ids"),
            (("x = 1", IDS, FILES), "does not define class_names"),
            ((NAMES, IDS, FILES.replace("self.root /", "f'{self.root}/' +")), "gives a tuple of str: it must be two"),
            ((NAMES, IDS, FILES.replace(", self.root", " # ")), "gives a PosixPath: it must be two"),
            ((NAMES, IDS.replace("tuple(", "list("), FILES), "ids('train') gives a list of str: it must be a tuple"),
            ((NAMES, IDS.replace(".split())", ".split()[::-1])"), FILES), "not ascending"),
            ((NAMES, IDS, FILES.replace("self.root", "self.rot")), ".py, line 9)"),
            ((NAMES, IDS, FILES.replace("return ", "[0][image_id[-1] != '0']; return ")), "'train1', 'train') fails"),
            ((NAMES, IDS, FILES.replace("return ", "return 1 if image_id[5:] == '1' else ")), "of PosixPath, int"),
            ((f"@property\n    def {NAMES[:11]}(self):\n        return {{}}[1]\n", IDS, FILES), "class_names fails"),
            ((NAMES, IDS, NONE), "which means drawn images: define load"),
            ((NAMES, IDS, NONE, "\n    def load(self, i, split):\n        return [], []\n"), "two uint8 tensors"),
            (('class_names = "background"', IDS, FILES), "must be a tuple of names"),
            (('class_names = ("background",)', IDS, FILES), "names 1 labels"),
            (('class_names = ("background", "cat", "cat")', IDS, FILES), "labels 1 and 2 the same name 'cat'"),
            (("domains = ('x',)\n    ", NAMES, IDS, FILES), "domain_of('train0') fails (TypeError"),
            ((DOMAINS, NAMES, IDS, FILES), "domain_of('train0') gives 'tr', which is none of its domains: ('x',)"),
            (("value_to_label = [0, 1]\n    ", NAMES, IDS, FILES), "value_to_label must be a numpy array of 256 uint8"),
            ((NAMES, IDS, FILES, "\n    def __init__(self, root):\n        pass\n"), "cannot be made (TypeError"),
            ((NAMES, IDS, FILES, "\n    def __init__(self, *x):\n        pass\n"), "must call super().__init__"),
        ],
    )
    def test_what_is_missing_or_wrong(
        self, plugin: Callable[..., Path], refused: Refused, own: Path, parts: tuple[str, ...], says: str
    ) -> None:
        path = plugin(*parts)
        line = refused("verify", "mine", "--root", own, "--plugin", path)
        assert says in line and path.name in line

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ({"decorator": "@register_dataset"}, "a data set's name is letters"),
            ({"decorator": '@register_dataset("my/data")'}, "a data set's name is letters"),
            ({"base": "object"}, "not a subclass of datasets.base.SegmentationDataset"),
        ],
    )
    def test_registered_wrongly(
        self, plugin: Callable[..., Path], refused: Refused, own: Path, how: dict[str, str], says: str
    ) -> None:
        assert says in refused("verify", "mine", "--root", own, "--plugin", plugin(NAMES, IDS, FILES, **how))
