"""Any folder in VOC layout with a ``class_names.txt``: data of one's own, CamVid.

::

    JPEGImages/ID.jpg   SegmentationClass/ID.png   ImageSets/Segmentation/{train,val}.txt   class_names.txt

Line n of ``class_names.txt`` (from 0) names label n; line 0 is the background, which need not occur.
"""

from __future__ import annotations

from pathlib import Path

from datasets.base import register_dataset
from datasets.errors import UserError
from datasets.paired import Listing, PairedFiles, read_lines
from datasets.scenario import VOID


@register_dataset("folder")
class Folder(PairedFiles):
    """Any folder in VOC layout: --data folder=FOLDER with a class_names.txt; `data init FOLDER` helps to make it."""

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        super().__init__(name, root, cache)
        if root is None:
            raise UserError(f"data set {name!r} needs its folder: --data {name}=/path/to/it")
        self.folder = root
        if not self.found_in(root):
            raise UserError(f"data set {name!r}: no class_names.txt in {root}, or no JPEGImages/ beside it")
        self.class_names = tuple(read_lines(root / "class_names.txt"))
        if not 2 <= len(self.class_names) <= VOID:
            raise UserError(f"{root / 'class_names.txt'} names {len(self.class_names)} labels: needs 2 to {VOID}")

    @classmethod
    def found_in(cls, root: Path) -> bool:
        return (root / "class_names.txt").is_file() and (root / "JPEGImages").is_dir()

    def listing(self, split: str) -> Listing:
        ids = read_lines(self.folder / "ImageSets" / "Segmentation" / f"{split}.txt")
        return Listing(ids, self.folder / "JPEGImages", self.folder / "SegmentationClass")
