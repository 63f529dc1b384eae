"""Small folders of images and label maps, whole and with every fault that users have brought."""

from pathlib import Path

import numpy as np
from PIL import Image

from contseg.datasets.palette import voc_palette

NAMES = ("background", "cat", "dog", "cow")
LABELS = {"train": ((0, 1), (1, 2), (2, 255), (0, 3)), "val": ((0, 1), (2, 3))}


def write_map(path: Path, *labels: int, size: tuple[int, int] = (8, 6), mode: str = "P") -> None:
    """Columns of the labels, side by side; (W, H)."""
    width, height = size
    values = np.repeat(np.array(labels, np.uint8), -(-width // len(labels)))[:width]
    image = Image.fromarray(np.tile(values, (height, 1)))
    if mode == "P":
        image.putpalette(voc_palette())
    elif mode == "I;16":
        image = Image.fromarray(np.array(image, np.uint16))
    elif mode != "L":
        image = image.convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_image(path: Path, colour: int = 100, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 50, 200 - colour % 100)).save(path)


def voc_layout(root: Path) -> Path:
    """Four training and two validation images of three classes."""
    for split, labels in LABELS.items():
        ids = [f"{split}{k}" for k in range(len(labels))]
        for image_id, present in zip(ids, labels, strict=True):
            write_image(root / "JPEGImages" / f"{image_id}.jpg")
            write_map(root / "SegmentationClass" / f"{image_id}.png", *present)
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    (root / "class_names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root
