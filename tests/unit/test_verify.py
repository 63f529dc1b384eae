"""The report names every deviation, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.tools import verify as module
from contseg.datasets.tools.reference import ADE, REFERENCES, VOC, Reference
from contseg.datasets.tools.scan import scan
from contseg.datasets.tools.verify import ids_sha256, verify
from contseg.run_benchmark import main
from contseg.tests.unit.folders import LABELS, voc_layout, write_image, write_map
from contseg.tests.unit.trees import ade_tree, write_list


@pytest.fixture
def root(tmp_path):
    return voc_layout(tmp_path / "own")


def report(root):
    return verify(open_dataset("own", root), progress=False)


def deviations(root, n=1):
    found = report(root).deviations
    assert len(found) == n, found
    for d in found:
        assert "\n" not in d.what + d.effect
        assert d.effect
    return " | ".join(d.what for d in found)


def test_nothing_to_complain_about(root, capsys):
    r = report(root)
    assert r.deviations == []
    said = f"no fault; {r.dataset!r} is not the name of a published data set: it was compared with none"
    assert str(r).endswith(said)
    train = r.splits["train"]
    assert train["images"] == 4
    assert [c["images"] for c in train["classes"]] == [2, 2, 2, 1]
    assert [c["pixel_share"] for c in train["classes"]] == [0.25, 0.25, 0.25, 0.125]
    assert train["void_share"] == 0.125
    assert train["with_void"] == 1
    assert (train["smallest"], train["largest"]) == ([6, 8], [6, 8])
    assert main(["data", "verify", str(root)]) == 0
    assert "compared with none" in capsys.readouterr().out
    assert main(["data", "verify", "cityscape", "--root", str(root)]) == 0
    assert "(did you mean cityscapes?): it was compared with none" in capsys.readouterr().out


def test_counts_against_an_oracle(root):
    """Pixel by pixel, from numpy's own counting."""
    found = scan(open_dataset("own", root), "train", progress=False)
    for i, image_id in enumerate(found.ids):
        with Image.open(root / "SegmentationClass" / f"{image_id}.png") as image:
            values, counts = np.unique(np.array(image), return_counts=True)
        expected = np.zeros(256, int)
        expected[values] = counts
        assert found.counts[i].tolist() == expected.tolist()


def test_json(root, capsys):
    (root / "JPEGImages" / "train0.jpg").unlink()
    assert main(["data", "verify", str(root), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["splits"]["train"]["images"] == 3
    assert "train0" in content["deviations"][0]["what"]


def test_missing_files(root):
    for k in (0, 1):
        (root / "SegmentationClass" / f"train{k}.png").unlink()
    (root / "JPEGImages" / "val1.jpg").unlink()
    text = deviations(root, 2)
    assert "'train0' has no label map" in text
    assert "1 more train" in text
    assert "'val1' has no image" in text


def test_maps_that_are_no_label_maps(root):
    maps = root / "SegmentationClass"
    write_map(maps / "train0.png", 1, 2, mode="RGB")
    write_map(maps / "train1.png", 1, 2, mode="I;16")
    write_map(maps / "train2.png", 1, 2, size=(16, 12))
    (maps / "val0.png").write_bytes(b"<html>404</html>")
    text = deviations(root, 4)
    assert "train0.png has mode RGB" in text
    assert "train1.png has mode I" in text
    assert "train2.png is 16x12 pixels, but its image" in text
    assert "val0.png" in text


def test_broken_images(root):
    path = root / "JPEGImages" / "train0.jpg"
    write_image(path, size=(640, 480))
    write_map(root / "SegmentationClass" / "train0.png", 1, size=(640, 480))
    path.write_bytes(path.read_bytes()[:-200])
    text = deviations(root)
    assert str(path) in text


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_broken_images_of_other_formats(root, ending):
    """What a run would find in its first epoch."""
    path = root / "JPEGImages" / f"train0.{ending}"
    (root / "JPEGImages" / "train0.jpg").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    write_map(root / "SegmentationClass" / "train0.png", 1, size=(64, 48))
    deviations(root, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in deviations(root)
    if ending == "png":
        at = len(whole) // 2
        path.write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
        assert str(path) in deviations(root)
        path.write_bytes(whole[:-12])  # without its end marker, which Pillow does not need
        deviations(root, 0)


@pytest.mark.parametrize(("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)])
def test_photographs_of_more_than_8_bits(root, ending, kind):
    """Pillow makes all values above 255 white, and says nothing."""
    path = root / "JPEGImages" / f"train0.{ending}"
    (root / "JPEGImages" / "train0.jpg").unlink()
    Image.fromarray(np.full((6, 8), 1000, kind)).save(path)
    assert "more than 8 bits a pixel" in deviations(root)
    with pytest.raises(UserError, match="save it as 8-bit"):
        open_dataset("own", root).load("train0", "train")


def test_an_image_without_a_map_where_no_list_names_it(tmp_path, capsys):
    """In ADE20K's layout every map is an image of the split: a run goes on, and so does `data show`."""
    ade_tree(tmp_path, n=3)
    write_list(tmp_path / "objectInfo3.txt", ("Idx\tName", "1\tcat", "2\tdog", "3\tcow"))
    write_image(tmp_path / "images" / "training" / "more.jpg")
    assert open_dataset("own", tmp_path).ids("train") == ("a", "b", "c")
    (found,) = report(tmp_path).deviations
    assert "'more' has no label map" in found.what
    assert found.effect == "a run goes on without such images; they are not counted in this report"
    assert main(["data", "show", "own/2-1/overlapped", "--root", str(tmp_path)]) == 0
    assert "3 training images" in capsys.readouterr().out


def test_labels_out_of_range(root):
    for k in (1, 2):
        write_map(root / "SegmentationClass" / f"train{k}.png", 0, 4, 254)
    text = deviations(root, 2)
    assert "label 4 in train maps of 2 ids (train1, train2): the labels are 0..3 and 255" in text
    assert "label 254" in text


def test_an_image_in_both_splits(root):
    lists = root / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("train2\nval0\nval1\n")
    assert "1 id (train2) in train and in val" in deviations(root)


def test_lists(root):
    train = root / "ImageSets" / "Segmentation" / "train.txt"
    train.write_text("train0\ntrain2\ntrain1\ntrain3\n")
    assert "not ascending, from entry 1 (train2) on" in deviations(root)
    train.write_text("train0\ntrain1\ntrain1\ntrain2\ntrain3\n")
    assert "1 id (train1) more than once in the train list" in deviations(root)


def test_one_split_only(root):
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert "val.txt" in deviations(root)
    assert list(report(root).splits) == ["train"]


def test_unusable(tmp_path, root, capsys):
    """Nothing to examine: exit code 2 and one line."""

    def refused(*arguments):
        assert main(["data", "verify", *map(str, arguments)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in error
        return lines[0]

    assert "no folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no known layout" in refused(tmp_path / "empty")
    assert "JPEGImages" in refused("voc", "--root", tmp_path / "empty")
    assert "images and annotations" in refused("ade", "--root", tmp_path / "empty")
    assert "needs its folder" in refused("voc")
    for path in (root / "SegmentationClass").iterdir():
        write_map(path, 1, 2, mode="RGB")
    assert "mode RGB" in refused(root)


def reference() -> Reference:
    """Of the small folder."""
    return Reference(
        images={"train": 4, "val": 2},
        class_images={"train": (2, 2, 1), "val": (1, 1, 1)},
        scenarios={"2-1/overlapped": (3, 1), "2-1/disjoint": (3, 1)},
        ids_sha256={s: ids_sha256(tuple(f"{s}{k}" for k in range(len(x)))) for s, x in LABELS.items()},
        with_void=1,
    )


def compared(root, monkeypatch, **changes):
    monkeypatch.setitem(module.REFERENCES, "own", replace(reference(), **changes))
    r = report(root)
    return r, " | ".join(d.what for d in r.deviations)


def test_a_published_data_set(root, monkeypatch):
    r, text = compared(root, monkeypatch)
    assert text == ""
    assert r.scenarios["2-1/disjoint"] == {"found": [3, 1], "published": [3, 1]}


def test_each_number_is_compared(root, monkeypatch):
    others = reference().ids_sha256 | {"val": "0" * 64}
    for changes, says in (
        ({"images": {"train": 5, "val": 2}}, "4 train images instead of 5"),
        ({"ids_sha256": others}, "other val ids than the published ones"),
        ({"with_void": 0}, "1 training maps have void pixels instead of 0"),
        ({"class_images": {"train": (2, 3, 1), "val": (1, 1, 1)}}, "train images of 1 class (dog)"),
        ({"scenarios": {"2-1/overlapped": (3, 1), "2-1/disjoint": (2, 1)}}, "1 of 2 scenarios"),
    ):
        r, text = compared(root, monkeypatch, **changes)
        assert says in text
        assert len(r.deviations) == 1
    assert "2-1/disjoint         3 (not 2), 1" in str(r)


def test_the_references_fit_together():
    """Every table has a number for each class, split and step; of Cityscapes only the images are published."""
    for name, n in (("voc", 20), ("ade", 150)):
        reference_ = REFERENCES[name]
        assert {len(v) for v in reference_.class_images.values()} == {n}
        for scenario, sizes in reference_.scenarios.items():
            assert len(parse_scenario(f"{name}/{scenario}", n).groups) == len(sizes)
    assert (VOC.images, ADE.images) == ({"train": 10582, "val": 1449}, {"train": 20210, "val": 2000})
    assert VOC.scenarios["15-1/overlapped"] == (9568, 487, 299, 491, 500, 548)
    assert ADE.scenarios["100-50/partitioned"] == (13452, 6744)
