"""Pascal VOC 2012 with the augmented training set: 10 582 training and 1 449 validation images, 20 classes.

Everingham et al., The PASCAL Visual Object Classes Challenge 2012; Hariharan et al., Semantic Contours from Inverse
Detectors, ICCV 2011 (SBD), merged as ``SegmentationClassAug``. Both common layouts are read:

* ``VOCdevkit/VOC2012`` (or a folder above it): ``ImageSets/Segmentation/train_aug.txt`` with one id a line;
* ``PascalVOC12`` (of MiB's code): ``splits/train_aug.txt`` with ``/JPEGImages/x.jpg /SegmentationClassAug/x.png``.

Without such a list, the training set is every map of ``SegmentationClassAug`` that is not in val: the same 10 582.
"""

from __future__ import annotations

from pathlib import Path

from contseg.datasets.base import register_dataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import (
    IMAGES,
    MAPS,
    Listing,
    PairedFiles,
    files_by_stem,
    first_folder,
    id_of,
    read_lines,
)

BELOW = ("VOC2012", "VOCdevkit/VOC2012", "PascalVOC12")
HOLDS = ("JPEGImages", "SegmentationClassAug")
LISTS = ("splits/{}.txt", "ImageSets/Segmentation/{}.txt")
TRAIN_NAMES = ("train_aug", "trainaug")


@register_dataset("voc")
class Voc(PairedFiles):
    """Pascal VOC 2012 with augmented labels, 20 classes: --data voc=FOLDER of JPEGImages, or a folder above it.

    A reduced copy in this layout works too.
    """

    class_names = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        super().__init__(name, root, cache)
        if root is None:
            raise UserError(f"data set {name!r} needs its folder: --data {name}=/path/to/VOCdevkit")
        folder = first_folder(root, BELOW, HOLDS)
        if folder is None:
            if plain := first_folder(root, BELOW, ("JPEGImages", "SegmentationClass")):
                above = plain.parent if plain.name == BELOW[0] else "DIR"
                raise UserError(
                    f"data set {name!r}: {plain} has SegmentationClass, but not SegmentationClassAug, the labels of "
                    f"10 582 training images: `data prepare voc --root {above}` makes them; your own data need "
                    f"another name and a class_names.txt: --data mine={plain}"
                )
            raise UserError(
                f"data set {name!r}: looked for {' with '.join(HOLDS)} in {root} and in its {', '.join(BELOW)}"
            )
        self.folder = folder

    @classmethod
    def found_in(cls, root: Path) -> bool:
        return first_folder(root, BELOW, HOLDS) is not None

    def listing(self, split: str) -> Listing:
        images, labels = (self.folder / name for name in HOLDS)
        if split == "val":
            return Listing(self._list("val"), images, labels)
        for name in TRAIN_NAMES:
            if self._path(name):
                return Listing(self._list(name), images, labels)
        val = set(self._list("val"))
        return Listing(sorted(i for i in files_by_stem(labels, MAPS) if i not in val), images, labels)

    def _path(self, name: str) -> Path | None:
        return next((p for p in (self.folder / where.format(name) for where in LISTS) if p.is_file()), None)

    def _list(self, name: str) -> list[str]:
        path = self._path(name)
        if path is None:
            looked = " and ".join(where.format(name) for where in LISTS)
            raise UserError(f"data set {self.name!r}: looked for {looked} in {self.folder}")
        images, labels = (files_by_stem(self.folder / name, IMAGES) for name in HOLDS)
        known = images.keys() | labels.keys()
        return [id_of(line, known) for line in read_lines(path)]
