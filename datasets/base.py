"""What a data set is: images named by id, label maps, class names.

It does not know steps (see ``view.py``). ``registry.py`` opens one by name. Your own data set is one class in a file::

    @register_dataset("mine")
    class Mine(SegmentationDataset):
        class_names = ("background", "cat", "dog")

        def ids(self, split): ...
        def files(self, image_id, split): ...
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from contseg.datasets.errors import UserError, file_of, in_one_line
from contseg.datasets.images import decode_image, decode_label, looked_up, read_bytes, same_size
from contseg.datasets.index import Index, gather, read_index, row
from contseg.datasets.scenario import VOID

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val")


class SegmentationDataset(ABC):
    """Images with label maps: 0 background, 1..n foreground, 255 void.

    ``class_names`` is indexed by label. ``root`` is the data folder, never written to; ``cache`` the folder for
    what was read from the files (``None``: in memory only). ``value_to_label`` (256,) uint8 is for label maps whose
    pixel values are not the labels: a table from one to the other, which is part of every fingerprint.

    For the setup ``domain``: ``domains`` in the order in which they are learned, ``domain_of`` an image, and
    ``has_background=False`` if no pixel has the label 0, whose channel is then never predicted.
    """

    class_names: tuple[str, ...]
    value_to_label: np.ndarray | None = None
    domains: tuple[str, ...] = ()
    has_background: bool = True

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        self.name, self.root, self.cache = name, root, cache
        self._indices: dict[str, Index] = {}

    @classmethod
    def found_in(cls, root: Path) -> bool:
        """Whether a folder is in this data set's layout; asked for a name that is not registered."""
        return False

    @abstractmethod
    def ids(self, split: str) -> tuple[str, ...]:
        """The ids of split "train" or "val", ascending."""

    @abstractmethod
    def files(self, image_id: str, split: str) -> tuple[Path, Path] | None:
        """Image and label map; ``None`` if images are drawn, in which case the class must define ``load``."""

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 RGB, channels last in memory, and (H, W) uint8 raw labels; ``UserError`` names a bad file."""
        import torch  # not needed to plan

        files = self.files(image_id, split)
        if files is None:
            raise TypeError(f"{type(self).__name__} has no files: it must define load itself")
        image, label = (decode(read_bytes(f), f) for decode, f in zip((decode_image, decode_label), files, strict=True))
        same_size(image.shape[:2], label.shape, *files)
        if self.value_to_label is not None:
            label = looked_up(self.value_to_label, label)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)

    def domain_of(self, image_id: str) -> str:
        """The domain of an image of either split; for data sets with ``domains``."""
        raise TypeError(f"{type(self).__name__} has domains: it must define domain_of itself")

    @property
    def n_foreground(self) -> int:
        """Classes without background."""
        return len(self.class_names) - 1

    def presence(self, split: str) -> np.ndarray:
        """(N, 256) bool: whether raw label c (column) occurs in image i. ``UserError`` for a label out of range."""
        return self._index(split).present

    def sizes(self, split: str) -> np.ndarray:
        """(N, 2) int32: height and width."""
        return self._index(split).sizes

    def fingerprints(self, split: str) -> np.ndarray:
        """(N, 16) uint8: a hash of the content of both files of every image."""
        return self._index(split).prints

    def fingerprint(self, image_id: str, split: str) -> str:
        """The fingerprint of one image, 32 hexadecimal digits."""
        return self.fingerprints(split)[self.ids(split).index(image_id)].tobytes().hex()

    def _index(self, split: str) -> Index:
        if split not in self._indices:
            ids = self.ids(split)
            if not ids:
                raise UserError(f"data set {self.name!r} has no {split} images")
            index = self._read(ids, split)
            self.check_range(ids, split, index.present)
            self._indices[split] = index
        return self._indices[split]

    def _read(self, ids: tuple[str, ...], split: str) -> Index:
        files = [f for image_id in ids if (f := self.files(image_id, split)) is not None]
        if files:
            where = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
            stored = self.cache / f"{self.name}-{split}-{where}.npz" if self.cache else None
            return read_index(files, stored, f"{self.name} {split}", self.value_to_label)
        pairs = (tuple(x.contiguous().numpy() for x in drawn(self, image_id, split)) for image_id in ids)
        return gather(
            row(np.bincount(label.ravel(), minlength=256), label.shape, image.tobytes(), label.tobytes())
            for image, label in pairs
        )

    def check_range(self, ids: tuple[str, ...], split: str, present: np.ndarray) -> None:
        """``UserError`` for a label without a class. ``present`` (N, 256) bool: the labels of these images."""
        outside = present[:, len(self.class_names) : VOID]
        if outside.any():
            i, value = (int(x[0]) for x in outside.nonzero())
            files = self.files(ids[i], split)
            raise UserError(
                f"label {value + len(self.class_names)} in {files[1] if files else ids[i]}: "
                f"{self.name} has the labels 0..{self.n_foreground} and {VOID} (void)"
            )


def drawn(dataset: SegmentationDataset, image_id: str, split: str) -> tuple[Tensor, Tensor]:
    """``load`` of an image without files; ``UserError`` if it fails, or gives something else than image and labels."""
    import torch

    call = f"data set {dataset.name!r} ({file_of(type(dataset))}): load({image_id!r}, {split!r})"
    given = in_one_line(f"{call} fails", dataset.root, lambda: dataset.load(image_id, split))
    pair = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
    image, label = ((x.dtype, tuple(x.shape)) if isinstance(x, torch.Tensor) else (None, ()) for x in pair)
    if image != (torch.uint8, (3, *label[1])) or label[0] != torch.uint8 or len(label[1]) != 2:
        raise UserError(f"{call} must give two uint8 tensors: the image (3, H, W) and its labels (H, W)")
    return given


REGISTRY: dict[str, type[SegmentationDataset]] = {}
C = TypeVar("C", bound=type[SegmentationDataset])


def register_dataset(name: str) -> Callable[[C], C]:
    """Decorator: ``open_dataset(name)`` gives an object of this class, made with ``(name, root, cache)``."""

    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise UserError(f"@register_dataset({name!r}): a data set's name is letters, digits, '-', '_' and '.'")

    def add(cls: C) -> C:
        if not isinstance(cls, type) or not issubclass(cls, SegmentationDataset):
            raise UserError(f"data set {name!r}: {cls!r} is not a subclass of datasets.base.SegmentationDataset")
        if name in REGISTRY:
            first = REGISTRY[name]
            raise ValueError(f"data set {name!r} is already {first.__module__}.{first.__qualname__}")
        REGISTRY[name] = cls
        return cls

    return add
