"""Data sets by name: built-in ones, those of plugins, and any folder in a known layout."""

from __future__ import annotations

import importlib
import os
from functools import cache as once
from pathlib import Path

from contseg.datasets import base
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError, unknown
from contseg.datasets.user_defined import check_names, open_checked


@once
def _built_in() -> None:
    for module in ("ade20k", "cityscapes", "folder", "shapes", "voc"):
        importlib.import_module(f"contseg.datasets.formats.{module}")


def known_datasets() -> dict[str, type[SegmentationDataset]]:
    """The registered data sets by name."""
    _built_in()
    return dict(sorted(base.REGISTRY.items()))


def open_dataset(name: str, root: Path | str | None = None, cache: Path | str | None = None) -> SegmentationDataset:
    """``voc``, ``ade``, ``cityscapes``, ``shapes``, a plugin's name, or any name with a folder in a known layout."""
    known = known_datasets()
    root, cache = (Path(os.path.expanduser(p)) if p else None for p in (root, cache))
    if root is not None and not root.is_dir():
        raise UserError(f"data set {name!r}: there is no folder {root}")
    if name in known:
        return _opened(known[name], name, root, cache)
    if root is None:
        raise UserError(f"{unknown('data set', name, known)}; or give the folder of your own: --data {name}=/path")
    return open_folder(name, root, cache)


def open_folder(name: str, root: Path, cache: Path | None = None) -> SegmentationDataset:
    """The data set in a folder, found by its layout alone; ``name`` may be registered or not."""
    for cls in known_datasets().values():
        if cls.found_in(root):
            return _opened(cls, name, root, cache)
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir():
        raise UserError(
            f"data set {name!r}: {root} has no class_names.txt (line n is the name of label n): write one, or "
            f"`data init {root} --out DIR` makes a data set of it; `data prepare voc --root DIR` gets VOC 2012 itself"
        )
    raise UserError(
        f"data set {name!r}: {root} is in no known layout; looked for class_names.txt with JPEGImages/ and "
        "SegmentationClass/ (VOC layout), images/ with annotations/ (ADE), leftImg8bit/ with gtFine/ (Cityscapes); "
        f"`data init {root}` looks at any folder of images and maps"
    )


def _opened(cls: type[SegmentationDataset], name: str, root: Path | None, cache: Path | None) -> SegmentationDataset:
    if cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
        return open_checked(cls, name, root, cache)
    dataset = cls(name, root, cache)
    check_names(dataset.class_names, f"data set {name!r}" + (f" in {root}" if root else ""))
    return dataset
