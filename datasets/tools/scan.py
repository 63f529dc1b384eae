"""Reads every file of a data set and collects all faults. The loader (``base.py``) stops at the first one.

``N``: images that can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from contseg.datasets.base import SegmentationDataset, drawn
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import IMAGES, MAPS, PairedFiles, ending_hint, files_by_stem, two_files
from contseg.datasets.images import inspect, read_bytes
from contseg.datasets.index import by_label, in_parallel

LEFT_OUT = "left out"
"""The kind of fault of an image that no list names and that has no label map: a run does not know of it."""

Look: TypeAlias = tuple[list[int], tuple[int, int]]
"""Pixels of each of the 256 raw labels, and (H, W)."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One split.

    ``listed``: the ids in the order of their list. ``ids``: those whose two files can be read, ascending; ``counts``
    (N, 256) int64 pixels of each raw label; ``sizes`` (N, 2) height and width. ``faults``: kind -> one line a file.
    """

    listed: tuple[str, ...]
    ids: tuple[str, ...]
    counts: np.ndarray
    sizes: np.ndarray
    faults: dict[str, list[str]]

    @property
    def present(self) -> np.ndarray:
        """(N, 256) bool: does a raw label occur in an image."""
        return self.counts > 0


def scan(dataset: SegmentationDataset, split: str, progress: bool = True) -> Scan:
    """Read every image of a split. ``UserError`` if it cannot be listed, or if no image can be read."""
    listed, files, faults = _files(dataset, split)
    ids = sorted(files)

    def one(i: int) -> Look | str:
        pair = files[ids[i]]
        if pair is None:
            return _drawn(dataset, ids[i], split)
        seen = look(*pair)
        return seen if isinstance(seen, str) else (by_label(seen[0], dataset.value_to_label).tolist(), seen[1])

    found = in_parallel(one, range(len(ids)), f"looking at {dataset.name} {split}", progress)
    looks = dict(zip(ids, found, strict=True))
    for line in (x for x in looks.values() if isinstance(x, str)):
        faults.setdefault(fault_kind(line), []).append(line)
    good = {i: x for i, x in looks.items() if not isinstance(x, str)}
    if not good:
        lines = [line for kind in faults.values() for line in kind]
        raise UserError(lines[0] if lines else f"data set {dataset.name!r} has no {split} images")
    counts, sizes = zip(*good.values(), strict=True)
    return Scan(tuple(listed), tuple(good), np.array(counts, np.int64), np.array(sizes), faults)


def look(image: Path, label: Path) -> Look | str:
    """Read the two files of an image; a line if something is wrong."""
    try:
        return inspect(image, label, read_bytes(image), read_bytes(label))
    except UserError as error:
        return str(error)


def _drawn(dataset: SegmentationDataset, image_id: str, split: str) -> Look:
    label = drawn(dataset, image_id, split)[1].numpy()
    return np.bincount(label.ravel(), minlength=256).tolist(), label.shape


def _files(
    dataset: SegmentationDataset, split: str
) -> tuple[list[str], dict[str, tuple[Path, Path] | None], dict[str, list[str]]]:
    """The listed ids, the files of those that have both, and a line for each that has not."""
    if not isinstance(dataset, PairedFiles):
        ids = dataset.ids(split)
        return list(ids), {i: dataset.files(i, split) for i in ids}, {}
    listed, images, labels = dataset.listing(split)
    image_files, maps = files_by_stem(images, IMAGES), files_by_stem(labels, MAPS)
    wanted = sorted(image_files.keys() | maps.keys()) if listed is None else listed
    faults: dict[str, list[str]] = {}
    for what, found, folder in (("image", image_files, images), ("label map", maps, labels)):
        lacking = [i for i in sorted(set(wanted)) if i not in found]
        lines = [f"{split} id {i!r} has no {what} in {folder}{ending_hint(i, found)}" for i in lacking]
        if lines:
            faults[LEFT_OUT if listed is None and found is maps else f"no {what}"] = lines
    twice = two_files(labels, MAPS) | two_files(images, IMAGES)
    if lines := [f"{split} id {line}" for i, line in sorted(twice.items()) if i in wanted]:
        faults["two files"] = lines
        image_files = {i: file for i, file in image_files.items() if i not in twice}
    return wanted, {i: (image_files[i], maps[i]) for i in wanted if i in image_files and i in maps}, faults


def fault_kind(line: str) -> str:
    """The kind of a fault: its line without paths and numbers."""
    return re.sub(r"\S*/\S*|\d+", "", line)
