"""What a user-defined data set must give, checked when it is opened; what is missing or wrong is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from contseg.datasets.base import SegmentationDataset, drawn
from contseg.datasets.errors import UserError, file_of, in_one_line


def open_checked(
    kind: type[SegmentationDataset], name: str, root: Path | None, cache: Path | None
) -> SegmentationDataset:
    """An object of the class whose ids and files are as ``SegmentationDataset`` requires; else ``UserError``."""
    where = f"data set {name!r} ({file_of(kind)})"
    missing = sorted(kind.__abstractmethods__)
    if not missing:
        dataset = in_one_line(f"{where} cannot be made", root, lambda: kind(name, root, cache))
        if not hasattr(dataset, "_indices"):
            raise UserError(f"{where}: its __init__ must call super().__init__(name, root, cache)")
        named = in_one_line(f"{where}: class_names fails", root, lambda: hasattr(dataset, "class_names"))
        missing = [] if named else ["class_names"]
    if missing:
        raise UserError(f"{where} does not define {' and '.join(missing)}: docs/your_data.md shows a complete one")
    check_names(dataset.class_names, where)
    table = dataset.value_to_label
    if table is not None and (getattr(table, "dtype", None), getattr(table, "shape", ())) != (np.uint8, (256,)):
        raise UserError(f"{where}: value_to_label must be a numpy array of 256 uint8, the label of each pixel value")
    for split in ("train", "val"):
        call = f"{where}: ids({split!r})"
        ids = in_one_line(f"{call} fails", root, lambda split=split: dataset.ids(split))  # type: ignore[misc]
        if not isinstance(ids, tuple) or not all(isinstance(i, str) for i in ids):
            raise UserError(f"{call} gives {_kind(ids)}: it must be a tuple of str, such as tuple(sorted(...))")
        if list(ids) != sorted(set(ids)):
            raise UserError(f"{call} gives ids that are not ascending or not distinct: return tuple(sorted(set(...)))")
        for image_id in ids:
            _check_files(f"{where}: files({image_id!r}, {split!r})", dataset, image_id, split, first=image_id == ids[0])
        for image_id in ids if dataset.domains else ():
            call = f"{where}: domain_of({image_id!r})"
            domain = in_one_line(f"{call} fails", root, lambda i=image_id: dataset.domain_of(i))  # type: ignore[misc]
            if domain not in dataset.domains:
                raise UserError(f"{call} gives {domain!r}, which is none of its domains: {dataset.domains}")
    return dataset


def _check_files(call: str, dataset: SegmentationDataset, image_id: str, split: str, *, first: bool) -> None:
    """``UserError`` unless an image has two files, or none and is drawn: only the first one is, to look at it."""
    files = in_one_line(f"{call} fails", dataset.root, lambda: dataset.files(image_id, split))
    if files is None:
        if type(dataset).load is SegmentationDataset.load:
            raise UserError(f"{call} gives None, which means drawn images: define load")
        if first:
            drawn(dataset, image_id, split)
    elif not (isinstance(files, tuple) and len(files) == 2 and all(isinstance(f, Path) for f in files)):
        raise UserError(f"{call} gives {_kind(files)}: it must be two pathlib.Path, the image and the label map")


def check_names(names: Any, where: str) -> None:
    """``UserError`` unless these are class names: a sequence of distinct texts, background first."""
    if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UserError(f"{where}: class_names must be a tuple of names, label 0 (background) first; got {names!r}")
    if not 2 <= len(names) <= 255:
        raise UserError(f"{where} names {len(names)} labels: 2 to 255 are allowed, label 0 (background) first")
    first: dict[str, int] = {}
    for label, name in enumerate(names):
        if first.setdefault(name, label) != label:
            raise UserError(f"{where} gives labels {first[name]} and {label} the same name {name!r}: names must differ")


def _kind(value: object) -> str:
    inside = f" of {', '.join(sorted({type(x).__name__ for x in value}))}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{inside}"
