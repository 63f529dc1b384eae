"""What a user-defined data set must give, checked when it is opened; what is missing or wrong is said in one line."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError

T = TypeVar("T")


def open_checked(
    kind: type[SegmentationDataset], name: str, root: Path | None, cache: Path | None
) -> SegmentationDataset:
    """An object of the class whose ids and files are as ``SegmentationDataset`` requires; else ``UserError``."""
    where = f"data set {name!r} ({_file(kind)})"
    missing = sorted(kind.__abstractmethods__)
    if not missing:
        dataset = _call(f"{where} cannot be made", root, lambda: kind(name, root, cache))
        if not hasattr(dataset, "_indices"):
            raise UserError(f"{where}: its __init__ must call super().__init__(name, root, cache)")
        named = _call(f"{where}: class_names fails", root, lambda: hasattr(dataset, "class_names"))
        missing = [] if named else ["class_names"]
    if missing:
        raise UserError(f"{where} does not define {' and '.join(missing)}: docs/your_data.md shows a complete one")
    check_names(dataset.class_names, where)
    table = dataset.value_to_label
    if table is not None and (getattr(table, "dtype", None), getattr(table, "shape", ())) != (np.uint8, (256,)):
        raise UserError(f"{where}: value_to_label must be a numpy array of 256 uint8, the label of each pixel value")
    for split in ("train", "val"):
        call = f"{where}: ids({split!r})"
        ids = _call(f"{call} fails", root, lambda split=split: dataset.ids(split))  # type: ignore[misc]
        if not isinstance(ids, tuple) or not all(isinstance(i, str) for i in ids):
            raise UserError(f"{call} gives {_kind(ids)}: it must be a tuple of str, such as tuple(sorted(...))")
        if list(ids) != sorted(set(ids)):
            raise UserError(f"{call} gives ids that are not ascending or not distinct: return tuple(sorted(set(...)))")
        for image_id in ids:
            _check_files(f"{where}: files({image_id!r}, {split!r})", dataset, image_id, split, first=image_id == ids[0])
        for image_id in ids if dataset.domains else ():
            call = f"{where}: domain_of({image_id!r})"
            domain = _call(f"{call} fails", root, lambda i=image_id: dataset.domain_of(i))  # type: ignore[misc]
            if domain not in dataset.domains:
                raise UserError(f"{call} gives {domain!r}, which is none of its domains: {dataset.domains}")
    return dataset


def _check_files(call: str, dataset: SegmentationDataset, image_id: str, split: str, *, first: bool) -> None:
    """``UserError`` unless an image has two files, or none and is drawn: only the first one is, to look at it."""
    files = _call(f"{call} fails", dataset.root, lambda: dataset.files(image_id, split))
    if files is None:
        if type(dataset).load is SegmentationDataset.load:
            raise UserError(f"{call} gives None, which means drawn images: define load")
        if first:
            _check_drawn(call.replace("files", "load"), dataset, image_id, split)
    elif not (isinstance(files, tuple) and len(files) == 2 and all(isinstance(f, Path) for f in files)):
        raise UserError(f"{call} gives {_kind(files)}: it must be two pathlib.Path, the image and the label map")


def _check_drawn(call: str, dataset: SegmentationDataset, image_id: str, split: str) -> None:
    import torch

    drawn = _call(f"{call} fails", dataset.root, lambda: dataset.load(image_id, split))
    pair = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (None, None)
    image, label = ((x.dtype, tuple(x.shape)) if isinstance(x, torch.Tensor) else (None, ()) for x in pair)
    if image != (torch.uint8, (3, *label[1])) or label[0] != torch.uint8 or len(label[1]) != 2:
        raise UserError(f"{call} must give two uint8 tensors: the image (3, H, W) and its labels (H, W)")


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


def _call(failure: str, root: Path | None, code: Callable[[], T]) -> T:
    """The result of user code; any error of it becomes one line."""
    try:
        return code()
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}{_line(error)}"
        hint = "" if root else "; no folder was given: use --data NAME=DIR (or --root DIR)"
        raise UserError(f"{failure} ({reason}){hint}") from error


def _line(error: Exception) -> str:
    """The line of the author's file, where the error is in its code and not in the call of it."""
    behind = traceback.extract_tb(error.__traceback__)[2:]  # of ``_call`` and of what it calls
    own = [f for f in behind if f.filename == behind[0].filename and Path(f.filename).parent != Path(__file__).parent]
    return f"; {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def _kind(value: object) -> str:
    inside = f" of {', '.join(sorted({type(x).__name__ for x in value}))}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{inside}"


def _file(kind: type) -> str:
    try:
        return Path(inspect.getfile(kind)).name
    except (TypeError, OSError):
        return kind.__module__
