"""Users' folders: found, read, written as a data set; every fault in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.datasets.tools.own import Convention, look_at, usual_tasks, write
from contseg.run_benchmark import main
from contseg.tests.unit.folders import LABELS, voc_layout, write_image, write_map


def look(folder, work=None, **convention):
    return look_at(folder, Convention(**convention), work or folder)


def camvid_layout(root, first=0):
    """``train`` + ``trainannot`` and so on; labels from 0 on, 3 is unlabelled."""
    for split, labels in LABELS.items():
        for k, _ in enumerate(labels):
            write_image(root / split / f"{split}_{k}.png")
            write_map(root / f"{split}annot" / f"{split}_{k}.png", first + k % 3, 3, mode="L")
    return root


def test_voc_layout(tmp_path):
    own = look(voc_layout(tmp_path))
    assert {s: len(p) for s, p in own.pairs.items()} == {"train": 4, "val": 2}
    assert "lists" in own.how
    assert own.class_names == ["background", "cat", "dog", "cow"]
    assert (own.counts["train"] > 0).sum(0)[[0, 1, 2, 3, 255]].tolist() == [2, 2, 2, 1, 1]
    assert own.faults == []
    text = str(own)
    assert "2-1/overlapped     3, 1" in text
    assert "NOT POSSIBLE" not in text


def test_empty_disjoint_steps_are_said(tmp_path):
    root = voc_layout(tmp_path)
    for k in range(4):
        write_map(root / "SegmentationClass" / f"train{k}.png", 1, 2, 3)
    lines = look(root).tasks()
    assert [line.split() for line in lines[:2]] == [
        ["2-1/overlapped", "4,", "4", "unreliable:", "step", "0,", "1", "has", "fewer", "than", "8", "images"],
        ["2-1/disjoint", "0,", "4", "NOT", "POSSIBLE:", "step", "0", "is", "empty"],
    ]


def test_folders_that_say_train_and_val(tmp_path):
    own = look(camvid_layout(tmp_path), first_class=0, void=(3,))
    assert {s: len(p) for s, p in own.pairs.items()} == {"train": 4, "val": 2}
    assert "by name" in own.how
    assert own.class_names == ["background", "class 1", "class 2", "class 3"]
    assert (own.counts["train"] > 0).sum(0)[[0, 1, 2, 3, 255]].tolist() == [0, 2, 1, 1, 4]
    assert any("placeholders" in n for n in own.notes)


def test_ade_layout(tmp_path):
    for folder in ("training", "validation"):
        for k in range(3):
            write_image(tmp_path / "images" / folder / f"{folder}{k}.jpg")
            write_map(tmp_path / "annotations" / folder / f"{folder}{k}.png", 0, 1 + k, mode="L")
    (tmp_path / "objectInfo3.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t.\t.\t.\twall\n2\t.\t.\t.\tsky, air\n3\t.\t.\t.\ttree\n"
    )
    own = look(tmp_path)
    assert {s: len(p) for s, p in own.pairs.items()} == {"train": 3, "val": 3}
    assert own.class_names == ["background", "wall", "sky", "tree"]


def test_one_folder_only_holds_out_a_fifth(tmp_path):
    for k in range(40):
        write_image(tmp_path / "photos" / f"p{k}.jpg")
        write_map(tmp_path / "classes" / f"p{k}.png", 0, 1 + k % 2)  # known as maps by their palette
    own = look(tmp_path)
    assert len(own.pairs["train"]) + len(own.pairs["val"]) == 40
    assert 3 <= len(own.pairs["val"]) <= 14
    assert "held out" in own.how
    again = look(tmp_path)
    assert again.pairs == own.pairs


def test_object_maps_are_not_class_maps(tmp_path):
    root = voc_layout(tmp_path)
    for p in list((root / "SegmentationClass").iterdir()):
        write_map(root / "SegmentationObject" / p.name, 1, 2, 3, 4)
    assert {p.label.parent.name for p in look(root).pairs["train"]} == {"SegmentationClass"}


def test_written_and_opened(tmp_path):
    """Labels of the maps in the new folder, by an oracle: raised by one, unlabelled is void."""
    source = camvid_layout(tmp_path / "raw")
    write(look(source, first_class=0, void=(3,)), tmp_path / "new")
    dataset = open_dataset("new", tmp_path / "new")
    assert dataset.ids("train") == tuple(f"train_{k}" for k in range(4))
    for image_id in dataset.ids("train"):
        image, label = dataset.load(image_id, "train")
        with (
            Image.open(source / "train" / f"{image_id}.png") as stored,
            Image.open(source / "trainannot" / f"{image_id}.png") as raw,
        ):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(stored))
            values = np.array(raw).astype(int)
        assert np.array_equal(label.numpy(), np.where(values == 3, 255, values + 1))
    assert main(["data", "verify", str(tmp_path / "new")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "raw"]
    with pytest.raises(UserError, match="there already"):
        write(look(source, first_class=0, void=(3,)), tmp_path / "new")


def test_one_name_in_both_splits(tmp_path):
    for split in ("train", "val"):
        for k in range(2):
            write_image(tmp_path / "raw" / split / "images" / f"{k}.png", colour=k)
            write_map(tmp_path / "raw" / split / "masks" / f"{k}.png", 0, 1 + k)
    own = look(tmp_path / "raw")
    assert any("in train and in val" in n for n in own.notes)
    write(own, tmp_path / "new")
    assert open_dataset("new", tmp_path / "new").ids("val") == ("val_0", "val_1")


def test_out_of_range_and_other_faults(tmp_path):
    root = voc_layout(tmp_path)
    maps = root / "SegmentationClass"
    write_map(maps / "train0.png", 0, 9)
    write_map(maps / "train1.png", 1, 2, mode="RGB")
    write_map(maps / "train2.png", 1, 2, size=(9, 6))
    own = look(root)
    assert len(own.faults) == 3
    text = " | ".join(own.faults)
    assert "\n" not in text
    assert f"label 9 in {maps / 'train0.png'} is out of range" in text
    assert "train1.png has mode RGB" in text
    assert "9x6 pixels, but its image" in text


def test_a_stray_label_without_names(tmp_path):
    """Nothing names the classes: labels far above the others are taken for a mistake, not for 199 more classes."""
    root = voc_layout(tmp_path)
    (root / "class_names.txt").unlink()
    write_map(root / "SegmentationClass" / "train0.png", 0, 200)
    own = look(root)
    assert own.class_names == ["background", "class 1", "class 2", "class 3"]
    assert "label 200" in own.faults[0]
    assert look(root, void=(255, 200)).faults == []


def test_images_without_a_map(tmp_path):
    root = camvid_layout(tmp_path)
    write_image(root / "train" / "extra.png")
    assert any("1 images have no label map" in f and "extra.png" in f for f in look(root).faults)


def test_links_to_folders(tmp_path):
    """Photographs and lists often stay on another disk; a link upwards is not followed round and round."""
    whole, linked = voc_layout(tmp_path / "own"), tmp_path / "linked"
    linked.mkdir()
    for part in ("JPEGImages", "SegmentationClass", "ImageSets", "class_names.txt"):
        (linked / part).symlink_to(whole / part)
    for name, target in {"self": linked, "above": tmp_path, "again": whole / "JPEGImages"}.items():
        (linked / name).symlink_to(target)
    own = look(linked)
    assert {s: len(p) for s, p in own.pairs.items()} == {"train": 4, "val": 2}
    assert own.how == f"by the lists in {linked / 'ImageSets/Segmentation'}"


def test_unusable(tmp_path, capsys):
    def refused(folder):
        assert main(["data", "init", str(folder)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    assert "no folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images with label maps" in refused(tmp_path / "empty")
    write_image(tmp_path / "photos" / "only" / "a.jpg")
    assert "no images with label maps" in refused(tmp_path / "photos")
    root = voc_layout(tmp_path / "void")
    for path in (root / "SegmentationClass").iterdir():
        write_map(path, 0, 255)
    assert "no class" in refused(root)
    for path in (root / "SegmentationClass").iterdir():
        write_map(path, 0, 1, mode="RGB")
    assert "mode RGB" in refused(root)


def test_exit_codes(tmp_path, capsys):
    root = voc_layout(tmp_path / "own")
    assert main(["data", "init", str(root)]) == 0
    write_map(root / "SegmentationClass" / "train0.png", 0, 9)
    assert main(["data", "init", str(root)]) == 1
    assert "FAULT: label 9" in capsys.readouterr().out


def test_usual_tasks():
    assert usual_tasks(20) == ["19-1", "15-5", "15-1", "10-10", "10-1"]
    assert usual_tasks(2) == ["1-1"]
    assert usual_tasks(1) == []


def coco(root):
    """Two images, one with a big cat, a small dog in front of it, and a crowd."""
    for k in range(2):
        write_image(root / "train2017" / f"{k}.jpg", size=(20, 10))
        write_image(root / "val2017" / f"{10 + k}.jpg", size=(20, 10))

    def box(x, y, w, h):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    def thing(number, image, category, outline, area):
        where = {"segmentation": outline, "area": area, "iscrowd": 0}
        return {"id": number, "image_id": image, "category_id": category, **where}

    for split, first in (("train", 0), ("val", 10)):
        crowd = {"counts": [0, 50, 150], "size": [10, 20]}  # the first five columns
        things = [
            thing(1, first, 17, box(2, 1, 3, 3), 9),
            thing(2, first, 5, box(0, 0, 10, 8), 80),
            thing(3, first + 1, 5, crowd, 50) | {"iscrowd": 1},
            thing(4, first + 1, 17, box(12, 2, 4, 4), 16),
        ]
        content = {
            "images": [{"id": first + k, "file_name": f"{first + k}.jpg", "height": 10, "width": 20} for k in range(2)],
            "annotations": things,
            "categories": [{"id": 17, "name": "dog"}, {"id": 5, "name": "cat"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_coco(tmp_path):
    pytest.importorskip("pycocotools")
    own = look(coco(tmp_path / "coco"), tmp_path / "work")
    assert own.class_names == ["background", "cat", "dog"]
    write(own, tmp_path / "new")
    dataset = open_dataset("new", tmp_path / "new")
    assert dataset.ids("train") == ("0", "1")
    label = dataset.load("0", "train")[1].numpy()
    expected = np.zeros((10, 20), np.uint8)
    expected[:8, :10] = 1
    expected[1:4, 2:5] = 2
    assert np.array_equal(label, expected)
    label = dataset.load("1", "train")[1].numpy()
    expected = np.zeros((10, 20), np.uint8)
    expected[:, :5] = 255
    expected[2:6, 12:16] = 2
    assert np.array_equal(label, expected)


def test_coco_beside_linked_photographs(tmp_path):
    pytest.importorskip("pycocotools")
    root = coco(tmp_path / "coco")
    (root / "train2017").rename(tmp_path / "elsewhere")
    (root / "train2017").symlink_to(tmp_path / "elsewhere")
    assert [p.image_id for p in look(root, tmp_path / "work").pairs["train"]] == ["0", "1"]


SQUARE = [[1, 1, 11, 1, 11, 11, 1, 11]]


def coco_file(path, names, **changes):
    """A square of category 1 + k % 2 in image k; all images are written below the folder of the file."""
    images = [{"id": k, "file_name": name, "height": 16, "width": 16} for k, name in enumerate(names)]
    things = [
        {"id": k, "image_id": k, "category_id": 1 + k % 2, "segmentation": SQUARE, **changes} for k in range(len(names))
    ]
    content = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for k, name in enumerate(names):
        write_image(path.parent / name.replace("\\", "/"), 10 * k, size=(16, 16))
    path.write_text(json.dumps(content))


def test_coco_one_file_a_split_all_of_one_name(tmp_path):
    """As Roboflow exports it; without `area` and `iscrowd`, which other tools leave out."""
    pytest.importorskip("pycocotools")
    for split, n in (("train", 3), ("valid", 2), ("test", 1)):
        (tmp_path / "own" / split).mkdir(parents=True)
        coco_file(tmp_path / "own" / split / "_annotations.coco.json", [f"{k}.jpg" for k in range(n)])
    own = look(tmp_path / "own", tmp_path / "work")
    assert {split: [p.image.parent.name for p in pairs] for split, pairs in own.pairs.items()} == {
        "train": ["train"] * 3,
        "val": ["valid"] * 2,
    }
    assert own.counts["train"][:, 1:3].tolist() == [[100, 0], [0, 100], [100, 0]]
    assert not own.faults


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_coco_one_image_name_in_two_folders(tmp_path, slash):
    pytest.importorskip("pycocotools")
    names = [f"{camera}{slash}{k}.jpg" for k in range(20) for camera in ("left", "right")]
    (tmp_path / "own").mkdir()
    coco_file(tmp_path / "own" / "all.json", names)
    own = look(tmp_path / "own", tmp_path / "work")
    found = {p.image: c for s, pairs in own.pairs.items() for p, c in zip(pairs, own.counts[s], strict=True)}
    assert len(found) == 40
    assert all(counts[1 if image.parent.name == "left" else 2] == 100 for image, counts in found.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": []}, "annotation 0 of 0.jpg is a box without an outline"),
        ({"segmentation": [[1, 2]]}, "is not in COCO's format"),
        ({"category_id": 9}, "annotation 0 of 0.jpg has category 9"),
        ({"image_id": [0]}, "is not in COCO's format"),
    ],
)
def test_coco_that_cannot_be_drawn(tmp_path, capsys, changes, words):
    pytest.importorskip("pycocotools")
    coco_file(tmp_path / "all.json", ["0.jpg", "1.jpg"], **changes)
    assert main(["data", "init", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_coco_without_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"needs pycocotools, which is not installed: pip install 'contseg\[coco\]'"):
        look(coco(tmp_path / "coco"), tmp_path / "work")
