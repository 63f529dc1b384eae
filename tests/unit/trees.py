"""Small data sets in the layouts that people have: noise, palette maps, lists."""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, VAL = ("a", "b", "c"), ("d", "e")


def write_image(image: Path, label: Path, seed: int, classes: int = 3, size: tuple[int, int] = (10, 14)) -> None:
    """A JPEG of noise and a palette PNG with labels 0..classes and void."""
    rng = np.random.default_rng(seed)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
    write_label(label, rng.choice([*range(classes + 1), 255], size))


def write_label(path: Path, values: np.ndarray) -> None:
    image = Image.fromarray(values.astype(np.uint8)).convert("L")
    image.putpalette(np.arange(768) % 256)
    image.save(path)


def write_list(path: Path, lines: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def folder_tree(root: Path) -> Path:
    """Five images in VOC layout, three classes."""
    for seed, i in enumerate(TRAIN + VAL):
        write_image(root / "JPEGImages" / f"{i}.jpg", root / "SegmentationClass" / f"{i}.png", seed)
    write_list(root / "ImageSets/Segmentation/train.txt", TRAIN[::-1])
    write_list(root / "ImageSets/Segmentation/val.txt", VAL)
    write_list(root / "class_names.txt", ("background", "cat", "dog", "cow"))
    return root


def voc_tree(root: Path, lists: str) -> Path:
    """The same five as VOC; ``lists``: "ids" (VOCdevkit), "paths" (PascalVOC12) or "none"."""
    for seed, i in enumerate(TRAIN + VAL):
        write_image(root / "JPEGImages" / f"{i}.jpg", root / "SegmentationClassAug" / f"{i}.png", seed, classes=20)
    for split, ids in (("train_aug", TRAIN), ("val", VAL)):
        if lists == "paths":
            lines = tuple(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ids)
            write_list(root / "splits" / f"{split}.txt", lines)
        elif lists == "ids" or split == "val":
            write_list(root / "ImageSets/Segmentation" / f"{split}.txt", ids)
    return root


def ade_tree(root: Path, n: int = 150) -> Path:
    for seed, i in enumerate(TRAIN + VAL):
        part = "training" if i in TRAIN else "validation"
        write_image(root / "images" / part / f"{i}.jpg", root / "annotations" / part / f"{i}.png", seed, classes=n)
    return root
