"""Any folder in VOC layout with a ``class_names.txt``: the user's own data, CamVid.

::

    JPEGImages/ID.jpg   SegmentationClass/ID.png   ImageSets/Segmentation/{train,val}.txt   class_names.txt

Line n of ``class_names.txt`` (from 0) names label n; line 0 is the background, which may be absent.
"""

from __future__ import annotations

from pathlib import Path

from contseg.datasets.base import register_dataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import Listing, PairedFiles, read_lines
from contseg.datasets.user_defined import check_names

HOLDS = ("JPEGImages", "SegmentationClass")


@register_dataset("folder")
class Folder(PairedFiles):
    """Any folder in VOC layout: --data folder=FOLDER with a class_names.txt; `data init FOLDER` helps to write it."""

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        super().__init__(name, root, cache)
        if root is None:
            raise UserError(f"data set {name!r} needs its folder: --data {name}=/path/to/it")
        self.folder = root
        if not self.found_in(root):
            raise UserError(f"data set {name!r}: no class_names.txt in {root}, or no {'/ and '.join(HOLDS)}/ beside it")
        self.class_names = tuple(read_lines(root / "class_names.txt"))
        check_names(self.class_names, str(root / "class_names.txt"))

    @classmethod
    def found_in(cls, root: Path) -> bool:
        return (root / "class_names.txt").is_file() and all((root / name).is_dir() for name in HOLDS)

    def listing(self, split: str) -> Listing:
        path = self.folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.exists():
            raise UserError(
                f"data set {self.name!r}: there is no {path}, the ids of {split}, one a line; `data init {self.folder} "
                "--out DIR` makes a data set with both lists"
            )
        ids = read_lines(path)
        return Listing(ids, *(self.folder / name for name in HOLDS))
