"""Finds the pairs of image and label map in a folder with any sub-folders.

A folder holds maps if its name says so, or if its files are grey or have a palette. Its images are in the folder that
shares most file names with it (on ties, the nearest one). Examples: the layouts of VOC and ADE20K, and CamVid's
``train`` + ``trainannot``.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import IMAGES, MAPS, files_by_stem, id_of, read_lines
from contseg.datasets.images import read_bytes
from contseg.datasets.view import held_out

MAP_NAMES = re.compile(r"annot|label|mask|segmentationclass|ground|gt", re.IGNORECASE)
NOT_CLASSES = re.compile(r"object|instance|visual|colou?r", re.IGNORECASE)
DEPTH = 4


class Pair(NamedTuple):
    """An image and its label map."""

    image_id: str
    image: Path
    label: Path


class Found(NamedTuple):
    """Pairs by split, how the splits were chosen, and the images without a map."""

    splits: dict[str, list[Pair]]
    how: str
    without_map: list[Path]


def find_pairs(root: Path) -> Found:
    """Search ``root``, ``DEPTH`` folders deep. ``UserError`` if no two folders match."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    folders = [d for d in folders_below(root) if files_by_stem(d, IMAGES)]
    maps = [d for d in folders if not NOT_CLASSES.search(d.name) and _holds_maps(d, root)]
    chosen: dict[Path, tuple[int, Path]] = {}  # folder of images -> how many fit, folder of maps
    for labels in maps:
        stems = files_by_stem(labels, MAPS).keys()
        common = {d: len(stems & files_by_stem(d, IMAGES).keys()) for d in folders if d not in maps}
        images = max(common, key=lambda d: (common[d], len(os.path.commonpath([d, labels]))), default=None)
        if images and common[images] > chosen.get(images, (0, None))[0]:
            chosen[images] = common[images], labels
    if not chosen:
        raise UserError(
            f"no images with label maps of the same names in {root} ({len(folders)} folders with images): expected "
            f"for example JPEGImages/ID.jpg and SegmentationClass/ID.png{_what_does_not_fit(root, folders, maps)}"
        )
    together = {images: _pairs(images, labels) for images, (_, labels) in chosen.items()}
    without = [
        path
        for images, pairs in together.items()
        for stem, path in sorted(files_by_stem(images, IMAGES).items())
        if stem not in {p.image_id for p in pairs}
    ]
    splits, how = _splits(root, together)
    return Found(splits, how, without)


def _what_does_not_fit(root: Path, folders: list[Path], maps: list[Path]) -> str:
    """The likely reason: maps are JPEG, or have other names."""
    for folder in folders:
        if MAP_NAMES.search(folder.name) and not files_by_stem(folder, MAPS):
            return f"; {folder} holds no {', '.join(e[1:] for e in MAPS)} (JPEG does not keep labels)"
    images = [d for d in folders if d not in maps]
    if images and maps:
        names = [min(files_by_stem(d, IMAGES).values()).relative_to(root) for d in (images[0], maps[0])]
        return f"; {names[0]} and {names[1]} differ in more than their ending: rename them"
    return ""


def folders_below(root: Path, depth: float = DEPTH) -> list[Path]:
    """``root`` and the folders in it, so many levels deep, each once; links are followed, but not upwards."""
    found: dict[Path, Path] = {}
    for where, below, _ in os.walk(root, followlinks=True):
        folder = Path(where)
        real = folder.resolve()
        if found and (real in found or root.resolve().is_relative_to(real)):
            below.clear()
            continue
        found[real] = folder
        below[:] = sorted(b for b in below if not b.startswith((".", "__MACOSX")))
        if len(folder.relative_to(root).parts) >= depth:
            below.clear()
    return [*found.values()]


def _holds_maps(folder: Path, root: Path) -> bool:
    files = files_by_stem(folder, MAPS)
    if not files:
        return False
    if any(MAP_NAMES.search(part) for part in folder.relative_to(root).parts):
        return True
    try:
        with Image.open(io.BytesIO(read_bytes(files[min(files)]))) as first:
            return first.mode in ("P", "L")
    except (OSError, UnidentifiedImageError, UserError):
        return False


def _pairs(images: Path, labels: Path) -> list[Pair]:
    image_files, maps = files_by_stem(images, IMAGES), files_by_stem(labels, MAPS)
    return [Pair(i, image_files[i], maps[i]) for i in sorted(image_files.keys() & maps.keys())]


def _splits(root: Path, together: dict[Path, list[Pair]]) -> tuple[dict[str, list[Pair]], str]:
    """The splits: by lists, by folder names, or with a fifth held out."""
    pairs = [p for group in together.values() for p in group]
    known = {p.image_id for p in pairs}
    unused = ""
    for train in sorted(path for d in folders_below(root) if (path := d / "train.txt").exists()):
        lists = {split: train.with_name(f"{split}.txt") for split in ("train", "val")}
        if lists["val"].is_file():
            ids = {split: {id_of(line, known) for line in read_lines(p)} for split, p in lists.items()}
            foreign = sorted((ids["train"] | ids["val"]) - known)
            if not foreign:
                chosen = {split: [p for p in pairs if p.image_id in ids[split]] for split in ids}
                return chosen, f"by the lists in {train.parent}"
            unused = f" (not by the lists in {train.parent}: {len(foreign)} ids, as {foreign[0]}, have no two files)"
    splits, how = split_by_name({str(images.relative_to(root)): group for images, group in together.items()})
    return splits, how + unused


def split_by_name(groups: dict[str, list[Pair]]) -> tuple[dict[str, list[Pair]], str]:
    """Splits by groups whose names say train and val (or test); else a fifth is held out."""
    named: dict[str, list[Pair]] = {"train": [], "val": [], "test": [], "": []}
    for name, group in groups.items():
        match = re.search(r"(?:^|[^a-z])(train|val|test)", name.lower())
        named[match[1] if match else ""] += group
    val = "val" if named["val"] else "test"
    if named["train"] and named[val]:
        return {"train": named["train"], "val": named[val]}, f"by name ({val} is val)"
    pairs = [p for group in groups.values() for p in group]
    out = held_out(tuple(p.image_id for p in pairs))
    chosen = {s: [p for p, o in zip(pairs, out, strict=True) if o == (s == "val")] for s in ("train", "val")}
    return chosen, "a fifth is held out as val (by a hash of the name): no list and no folder is called val"
