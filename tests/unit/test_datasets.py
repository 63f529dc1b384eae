"""Data sets of files: layouts, presence tables and their cache, the registry."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets import index as index_module
from contseg.datasets.base import REGISTRY, SegmentationDataset, register_dataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.ade20k import Ade
from contseg.datasets.formats.folder import Folder
from contseg.datasets.formats.voc import Voc
from contseg.datasets.registry import known_datasets, open_dataset
from contseg.tests.material import ROOT, material
from contseg.tests.unit.trees import TRAIN, VAL, ade_tree, folder_tree, voc_tree, write_image, write_label, write_list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "mine")


class TestLayouts:
    @pytest.mark.parametrize("lists", ["ids", "paths", "none"])
    @pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012", "PascalVOC12"])
    def test_voc(self, tmp_path, lists, below):
        voc_tree(tmp_path / below, lists)
        dataset = open_dataset("voc", tmp_path)
        assert isinstance(dataset, Voc)
        assert (dataset.ids("train"), dataset.ids("val")) == (TRAIN, VAL)
        assert dataset.files("b", "train") == tuple(
            tmp_path / below / p for p in ("JPEGImages/b.jpg", "SegmentationClassAug/b.png")
        )

    @pytest.mark.parametrize("line", ["b.v1", "b.v1.jpg", "/JPEGImages/b.v1.jpg /SegmentationClassAug/b.v1.png"])
    def test_voc_ids_may_have_dots(self, tmp_path, line):
        voc_tree(tmp_path, "ids")
        for path in ("JPEGImages/b.jpg", "SegmentationClassAug/b.png"):
            (tmp_path / path).rename((tmp_path / path).with_stem("b.v1"))
        (path,) = tmp_path.rglob("train_aug.txt")
        write_list(path, [line if i == "b" else i for i in TRAIN])
        assert open_dataset("voc", tmp_path).ids("train") == tuple("b.v1" if i == "b" else i for i in TRAIN)

    def test_voc_names(self):
        assert len(Voc.class_names) == 21
        with np.load(material("data", "voc_reference_splits", "voc_labels.npz"), allow_pickle=False) as data:
            assert list(Voc.class_names) == data["class_names"].tolist()

    @pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
    def test_ade(self, tmp_path, below):
        ade_tree(tmp_path / below)
        dataset = open_dataset("ade", tmp_path)
        assert (dataset.ids("train"), dataset.ids("val")) == (TRAIN, VAL)
        assert dataset.n_foreground == 150

    def test_ade_names(self):
        lines = material("data", "ade_reference_splits", "objectInfo150.txt").read_text().splitlines()[1:]
        assert list(Ade.class_names) == ["background", *(line.split("\t")[-1].split(",")[0].strip() for line in lines)]

    def test_ade_layout_with_classes_of_its_own(self, tmp_path):
        ade_tree(tmp_path, n=2)
        write_list(tmp_path / "objectInfo2.txt", ("Idx\tName", "1\tsky, heaven", "2\tsea"))
        assert open_dataset("mine", tmp_path).class_names == ("background", "sky", "sea")

    def test_folder(self, folder):
        dataset = open_dataset("camvid", folder)
        assert isinstance(dataset, Folder)
        assert dataset.class_names == ("background", "cat", "dog", "cow")
        assert dataset.ids("train") == TRAIN  # ascending, whatever the order of the list
        assert dataset.name == "camvid"

    def test_real_packs(self):
        expected = {
            "camvid_small": (367, 101, 11),
            "voc_small": (192, 198, 20),
            "voc_animals": (913, 191, 20),
            "camvid_ade_layout": (92, 26, 11),
        }
        for pack, numbers in expected.items():
            dataset = open_dataset(pack, material("data", pack))
            assert (len(dataset.ids("train")), len(dataset.ids("val")), dataset.n_foreground) == numbers

    def test_both_layouts_of_the_same_real_voc_images(self, tmp_path):
        source = material("data", "voc_fullres_sample")
        for name, lists in (("devkit", "ImageSets"), ("pascal", "splits")):
            (tmp_path / name).mkdir()
            for part in ("JPEGImages", "SegmentationClassAug", lists):
                (tmp_path / name / part).symlink_to(source / part)
        devkit, pascal = (open_dataset("voc", tmp_path / name) for name in ("devkit", "pascal"))
        for split, n in (("train", 36), ("val", 24)):
            assert len(devkit.ids(split)) == n
            assert devkit.ids(split) == pascal.ids(split)
            np.testing.assert_array_equal(devkit.presence(split), pascal.presence(split))
            np.testing.assert_array_equal(devkit.fingerprints(split), pascal.fingerprints(split))

    def test_ade_sample_agrees_with_the_published_presence(self):
        dataset = open_dataset("ade", material("data", "ade_sample"))
        with np.load(material("data", "ade_reference_splits", "ade_labels.npz"), allow_pickle=False) as data:
            published = np.unpackbits(data["val_present_packed"], axis=1)[:, :151].astype(bool)
        rows = [int(i.removeprefix("ADE_val_")) - 1 for i in dataset.ids("val")]
        assert len(rows) == 3
        np.testing.assert_array_equal(dataset.presence("val")[:, 1:151], published[rows, 1:])


class TestImages:
    def test_load_gives_rgb_and_raw_labels(self, folder):
        image, label = open_dataset("mine", folder).load("b", "train")
        np.testing.assert_array_equal(
            image.permute(1, 2, 0), np.array(Image.open(folder / "JPEGImages/b.jpg").convert("RGB"))
        )
        np.testing.assert_array_equal(label, np.array(Image.open(folder / "SegmentationClass/b.png")))
        assert (image.dtype, label.dtype) == ("torch.uint8",) * 2 or str(image.dtype) == str(
            label.dtype
        ) == "torch.uint8"

    def test_real_images_are_decoded_as_pillow_does(self):
        dataset = open_dataset("voc", material("data", "voc_fullres_sample"))
        for image_id in dataset.ids("train"):
            image, label = dataset.load(image_id, "train")
            files = dataset.files(image_id, "train")
            assert files is not None
            np.testing.assert_array_equal(image.permute(1, 2, 0), np.array(Image.open(files[0]).convert("RGB")))
            np.testing.assert_array_equal(label, np.array(Image.open(files[1])))

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_grey_and_cmyk_photographs(self, folder, mode):
        Image.open(folder / "JPEGImages/a.jpg").convert(mode).save(folder / "JPEGImages/a.jpg")
        image, _ = open_dataset("mine", folder).load("a", "train")
        assert image.shape == (3, 10, 14)

    def test_png_photographs(self, folder):
        pixels = np.array(Image.open(folder / "JPEGImages/a.jpg"))
        Image.fromarray(pixels).save(folder / "JPEGImages/a.png")
        (folder / "JPEGImages/a.jpg").unlink()
        dataset = open_dataset("mine", folder)
        np.testing.assert_array_equal(dataset.load("a", "train")[0].permute(1, 2, 0), pixels)
        assert dataset.sizes("train").tolist() == [[10, 14]] * 3

    def test_a_file_that_is_no_image_is_named(self, folder):
        (folder / "JPEGImages/a.jpg").write_bytes(b"hello")
        with pytest.raises(UserError) as refused:
            open_dataset("mine", folder).load("a", "train")
        assert str(refused.value) == f"cannot read image {folder / 'JPEGImages/a.jpg'}: not an image that Pillow knows"


class TestPresence:
    def test_is_what_the_maps_hold(self, folder):
        dataset = open_dataset("mine", folder)
        for split in ("train", "val"):
            maps = [np.array(Image.open(folder / f"SegmentationClass/{i}.png")) for i in dataset.ids(split)]
            expected = [[value in m for value in range(256)] for m in maps]
            np.testing.assert_array_equal(dataset.presence(split), expected)

    def test_counts_of_real_images(self):
        """The table in voc_small's README."""
        presence = open_dataset("voc_small", material("data", "voc_small")).presence("train")
        counts = [192, 13, 11, 14, 10, 14, 12, 17, 14, 22, 10, 14, 10, 12, 13, 81, 12, 9, 12, 11, 16]
        assert presence.sum(0)[[*range(21), 255]].tolist() == [*counts, 192]

    def test_is_read_once_and_kept(self, folder, tmp_path, monkeypatch):
        read: list[str] = []
        original = index_module._read
        monkeypatch.setattr(index_module, "_read", lambda i, *more: (read.append(i.stem), original(i, *more))[1])

        def fresh() -> SegmentationDataset:
            return open_dataset("mine", folder, tmp_path / "cache")

        first = fresh()
        table, prints = first.presence("train"), first.fingerprints("train")
        first.sizes("train")
        assert sorted(read) == ["a", "b", "c"]
        read.clear()
        np.testing.assert_array_equal(fresh().presence("train"), table)
        np.testing.assert_array_equal(fresh().fingerprints("train"), prints)
        assert fresh().sizes("train").tolist() == [[10, 14]] * 3
        assert read == []

        write_image(folder / "JPEGImages/b.jpg", folder / "SegmentationClass/b.png", seed=77)
        changed = fresh()
        assert (changed.fingerprints("train") != prints).any(1).tolist() == [False, True, False]
        assert read == ["b"]  # only the changed one is read again

        read.clear()
        for file in (tmp_path / "cache").iterdir():
            file.write_bytes(b"damaged")
        np.testing.assert_array_equal(fresh().fingerprints("train"), changed.fingerprints("train"))
        assert sorted(read) == ["a", "b", "c"]

    def test_two_folders_of_one_name_keep_apart(self, folder, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(folder, other)
        for root in (folder, other):
            open_dataset("mine", root, tmp_path / "cache").presence("train")
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_fingerprints_know_photograph_and_labels(self, folder):
        before = open_dataset("mine", folder).fingerprints("train")
        assert len(np.unique(before, axis=0)) == 3
        assert open_dataset("mine", folder).fingerprint("c", "train") == before[2].tobytes().hex()
        Image.new("RGB", (14, 10)).save(folder / "JPEGImages/a.jpg")
        write_label(folder / "SegmentationClass/c.png", np.zeros((10, 14)))
        assert (open_dataset("mine", folder).fingerprints("train") != before).any(1).tolist() == [True, False, True]

    def test_copies_elsewhere_have_the_same_fingerprints(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        np.testing.assert_array_equal(
            open_dataset("mine", folder).fingerprints("val"), open_dataset("x", tmp_path / "copy").fingerprints("val")
        )

    def test_a_read_only_folder_will_do(self, folder, tmp_path):
        def files() -> dict[Path, int]:
            return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

        before = files()
        for path in (folder, *folder.rglob("*")):
            path.chmod(stat.S_IREAD | stat.S_IEXEC)
        try:
            dataset = open_dataset("mine", folder, tmp_path / "cache")
            dataset.presence("train")
            dataset.load("a", "train")
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(stat.S_IRWXU)
        assert files() == before

    def test_nothing_half_written_stays(self, folder, tmp_path):
        open_dataset("mine", folder, tmp_path / "cache").presence("train")
        assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]


class TestRegistry:
    def test_built_in(self):
        assert set(known_datasets()) >= {"ade", "folder", "shapes", "voc"}

    def test_a_class_of_ones_own(self, monkeypatch):
        monkeypatch.setattr("contseg.datasets.base.REGISTRY", dict(REGISTRY))

        @register_dataset("noise")
        class Noise(SegmentationDataset):
            class_names = ("background", "speck")

            def ids(self, split):
                return ("one", "two")

            def files(self, image_id, split):
                return None

            def load(self, image_id, split):
                import torch

                image = torch.full((3, 4, 4), len(image_id), dtype=torch.uint8)
                return image, torch.eye(4, dtype=torch.uint8) if image_id == "one" else torch.zeros(
                    4, 4, dtype=torch.uint8
                )

        dataset = open_dataset("noise")
        assert dataset.presence("train")[:, :2].tolist() == [[True, True], [True, False]]
        assert dataset.sizes("train").tolist() == [[4, 4]] * 2
        assert dataset.fingerprint("one", "train") != dataset.fingerprint("two", "train")

    def test_a_name_twice(self):
        known_datasets()
        with pytest.raises(ValueError, match=r"'voc' is already contseg\.datasets\.formats\.voc\.Voc"):
            register_dataset("voc")(Voc)


def test_planning_needs_neither_torch_nor_torchvision(folder, tmp_path):
    """Scenario, presence and view of files, with the table still to be read."""
    program = f"""
import sys
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.view import step_view, val_view
dataset = open_dataset("mine", {str(folder)!r}, {str(tmp_path / "cache")!r})
print(len(step_view(dataset, parse_scenario("mine/2-1/overlapped", 3), 0).ids), len(val_view(dataset).ids))
print([m for m in ("torch", "torchvision") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.split("\n")[:2] == ["3 2", "[]"]
