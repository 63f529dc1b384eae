"""What a step sees, in numbers against an oracle and in the pixels of the contact sheet."""

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.tools.show import BAR, GAP, PALETTE, TILE, TITLE, contact_sheet, table, training_images
from contseg.run_benchmark import main
from contseg.tests.unit.folders import voc_layout, write_image, write_map


@pytest.fixture
def own(tmp_path):
    return open_dataset("own", voc_layout(tmp_path / "own"))


def shown(dataset, task, setup):
    lines = table(dataset, parse_scenario(f"own/{task}/{setup}", 3), training_images(dataset)).splitlines()
    return [" ".join(line.split()) for line in lines]


def test_table(own):
    """Four images of 48 pixels, in halves: 0 1 | 1 2 | 2 void | 0 3."""
    assert shown(own, "1-1", "overlapped")[2:] == [
        "step 0: 2 images",
        "1 cat 2 images 50.00%",
        "background 25.00%",
        "labelled background: other classes 25.00%",
        "void 0.00%",
        "",
        "step 1: 2 images",
        "2 dog 2 images 50.00%",
        "background 0.00%",
        "labelled background: old classes 25.00%",
        "labelled background: other classes 0.00%",
        "void 25.00%",
        "",
        "step 2: 1 images",
        "3 cow 1 images 50.00%",
        "background 50.00%",
        "labelled background: old classes 0.00%",
        "void 0.00%",
    ]


def test_sequential_keeps_old_labels(own):
    lines = shown(own, "1-1", "sequential")
    assert lines[2] == "step 0: 1 images"
    assert "1 cat 1 images 25.00%" in lines  # at step 1: one image is half cat, the other half void
    assert not any("old classes" in line for line in lines)


def test_an_empty_step_is_named(tmp_path):
    root = voc_layout(tmp_path)
    write_map(root / "SegmentationClass" / "train0.png", 1, 2)
    lines = shown(open_dataset("own", root), "1-1", "disjoint")
    assert "step 0: 0 images: EMPTY, cannot be trained" in lines


def test_contact_sheet_shows_the_shift(tmp_path):
    """One image, left half cat, right half dog: step 0 sees the cat, step 1 the dog; the rest turns black."""
    root = voc_layout(tmp_path / "own")
    for k in range(4):
        write_image(root / "JPEGImages" / f"train{k}.jpg", size=TILE)
        write_map(root / "SegmentationClass" / f"train{k}.png", *((1, 2) if k == 0 else (0, 3)), size=TILE)
    dataset = open_dataset("own", root)
    sheet = np.array(contact_sheet(dataset, parse_scenario("own/1-1/overlapped", 3), training_images(dataset), 1))
    width, height = TILE
    cat, dog, black = PALETTE[1], PALETTE[2], PALETTE[0]
    for step, seen in ((0, (cat, black)), (1, (black, dog))):
        top = TITLE + step * (BAR + height + 2 * GAP) + BAR
        for tile, halves in ((1, (cat, dog)), (2, seen)):
            left = GAP + tile * (width + 2)
            assert (sheet[top : top + height, left : left + width // 2] == halves[0]).all()
            assert (sheet[top : top + height, left + width // 2 : left + width] == halves[1]).all()


def test_command(tmp_path, capsys):
    root = voc_layout(tmp_path / "own")
    out = tmp_path / "sheet.png"
    assert main(["data", "show", "own/2-1/disjoint", "--root", str(root), "--out", str(out), "--images", "2"]) == 0
    assert "step 1: 1 images" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.mode == "RGB"
    assert main(["data", "show", "own/9-1/disjoint", "--root", str(root)]) == 2
    assert "the data set has 3" in capsys.readouterr().err


def test_a_broken_file_stops_it(tmp_path):
    root = voc_layout(tmp_path)
    write_map(root / "SegmentationClass" / "train0.png", 1, 2, mode="RGB")
    with pytest.raises(UserError, match="mode RGB"):
        training_images(open_dataset("own", root))


def test_drawn_data():
    dataset = open_dataset("shapes")
    found = training_images(dataset)
    assert len(found.ids) == len(dataset.ids("train"))
    assert np.array_equal(found.present, dataset.presence("train"))
