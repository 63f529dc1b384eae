"""Images in one folder, label maps in another, matched by name: common to VOC, ADE20K and users' folders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple, TypeAlias

from contseg.datasets.base import SPLITS, SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.images import read_bytes

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAPS = (".png", ".bmp", ".tif", ".tiff")


class Listing(NamedTuple):
    """Where a split's files are; ``ids`` is ``None`` if every label map of the folder belongs to it."""

    ids: list[str] | None
    images: Path
    labels: Path


Listed: TypeAlias = tuple[tuple[str, ...], dict[str, tuple[Path, Path]]]  # ids, ascending, and the two files of each


class PairedFiles(SegmentationDataset):
    """A data set of files; a subclass says where they are."""

    @abstractmethod
    def listing(self, split: str) -> Listing:
        """The ids of a split, in any order, and the two folders."""

    def ids(self, split: str) -> tuple[str, ...]:
        return self._listed(split)[0]

    def files(self, image_id: str, split: str) -> tuple[Path, Path]:
        return self._listed(split)[1][image_id]

    def _listed(self, split: str) -> Listed:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        kept: dict[str, Listed] = self.__dict__.setdefault("_kept_files", {})
        if split not in kept:
            listed, images, labels = self.listing(split)
            image_files, maps = files_by_stem(images, IMAGES), files_by_stem(labels, MAPS)
            for image_id in maps if listed is None else listed:
                for what, found, folder in (("image", image_files, images), ("label map", maps, labels)):
                    if image_id not in found:
                        hint = ending_hint(image_id, found)
                        raise UserError(f"{self.name}: {split} id {image_id!r} has no {what} in {folder}{hint}")
            files = {i: (image_files[i], maps[i]) for i in sorted(maps if listed is None else listed)}
            for image_id, line in (two_files(labels, MAPS) | two_files(images, IMAGES)).items():
                if image_id in files:
                    raise UserError(f"{self.name}: {split} id {line}")
            kept[split] = tuple(files), files
        return kept[split]


def id_of(line: str, known: Container[str]) -> str:
    """The id in a line: the line itself, or the name of the path at its start, without its ending."""
    return line if line in known else Path((line.split() or [""])[0]).stem


def ending_hint(image_id: str, found: Container[str]) -> str:
    """A hint for an id that is written with its folder or ending."""
    stem = Path((image_id.split() or [""])[0]).stem
    return f": write {stem}, one name a line without folder and ending" if stem in found else ""


def files_by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by name without ending; UserError if the folder is not there."""
    return {os.path.splitext(name)[0]: folder / name for name in _names(folder, endings)}


def two_files(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """A line for each name without ending that several files of a folder have."""
    known: dict[str, str] = {}
    lines: dict[str, str] = {}
    for name in _names(folder, endings):
        if (stem := os.path.splitext(name)[0]) in known:
            lines[stem] = f"{stem!r} has two files in {folder}, {known[stem]} and {name}: move one of them away"
        known[stem] = name
    return lines


def _names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The files of a folder with these endings, ascending."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
    return [name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in endings]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def first_folder(root: Path, below: tuple[str, ...], holds: tuple[str, ...]) -> Path | None:
    """The first of ``root`` and its named sub-folders that holds all of these files or folders."""
    for folder in (root, *(root / b for b in below)):
        if all((folder / name).exists() for name in holds):
            return folder
    return None
