"""Cityscapes: 2 975 training and 500 validation images, 19 classes.

Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016. The two archives are read as
downloaded; ``labelTrainIds``, which a script of cityscapesScripts makes, are not needed::

    leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png   gtFine/{train,val}/CITY/ID_gtFine_labelIds.png

There is no true background: every other id is void. Label 0 is then only what a step does not know. Two released codes
map some of the other ids to background instead, which is another benchmark; each is a data set of its own name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contseg.datasets.base import SPLITS, SegmentationDataset, register_dataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import first_folder
from contseg.datasets.scenario import BACKGROUND, VOID

BELOW = ("cityscapes", "Cityscapes")
HOLDS = ("leftImg8bit", "gtFine")
ENDINGS = ("_leftImg8bit.png", "_gtFine_labelIds.png")
TRAIN_IDS = "_gtFine_labelTrainIds.png"

# in the order of PLOP's domain-incremental tasks, the cities of val last; images in both splits of the download
CITIES = {
    "aachen": 174, "bremen": 316, "darmstadt": 85, "erfurt": 109, "hanover": 196, "krefeld": 99, "strasbourg": 365,
    "tubingen": 144, "weimar": 142, "bochum": 96, "cologne": 154, "dusseldorf": 221, "hamburg": 248, "jena": 119,
    "monchengladbach": 94, "stuttgart": 196, "ulm": 95, "zurich": 122, "frankfurt": 267, "lindau": 59, "munster": 174,
}  # fmt: skip

# id in the label map of label 1, 2, ...
CLASS_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def label_table(background: tuple[int, ...] = ()) -> np.ndarray:
    """(256,) uint8: id in the file -> label. Ids 34 to 254 stay, so that they are found to be out of range."""
    table = np.arange(256, dtype=np.uint8)
    table[: max(CLASS_IDS) + 1] = VOID
    table[list(CLASS_IDS)] = np.arange(1, len(CLASS_IDS) + 1)
    table[list(background)] = BACKGROUND
    return table


@register_dataset("cityscapes")
class Cityscapes(SegmentationDataset):
    """Cityscapes, 19 classes, other ids void: --data cityscapes=FOLDER of leftImg8bit and gtFine.

    A part of it, the same in both folders, works too.
    """

    class_names = (
        "background", "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    value_to_label = label_table()
    domains = tuple(CITIES)
    has_background = False

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        super().__init__(name, root, cache)
        if root is None:
            raise UserError(f"data set {name!r} needs its folder: --data {name}=/path/to/cityscapes")
        folder = first_folder(root, BELOW, HOLDS)
        if folder is None:
            if half := first_folder(root, BELOW, HOLDS[:1]) or first_folder(root, BELOW, HOLDS[1:]):
                lacks = next(part for part in HOLDS if not (half / part).exists())
                raise UserError(f"data set {name!r}: {half} has no {lacks}: unpack {lacks}_trainvaltest.zip there")
            raise UserError(
                f"data set {name!r}: looked for {' and '.join(HOLDS)} in {root} and in its {', '.join(BELOW)}"
            )
        self.folder = folder
        self._pairs: dict[str, dict[str, tuple[Path, Path]]] = {}

    @classmethod
    def found_in(cls, root: Path) -> bool:
        return first_folder(root, BELOW, HOLDS) is not None

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple(self._found(split))

    def domain_of(self, image_id: str) -> str:
        return image_id.partition("_")[0]

    def files(self, image_id: str, split: str) -> tuple[Path, Path]:
        return self._found(split)[image_id]

    def _found(self, split: str) -> dict[str, tuple[Path, Path]]:
        """The two files of each id, ids ascending."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        if split not in self._pairs:
            folders = [self.folder / part / split for part in HOLDS]
            images, maps = (_by_id(folder, ending) for folder, ending in zip(folders, ENDINGS, strict=True))
            for image_id in sorted(images.keys() ^ maps.keys()):
                raise UserError(f"{self.name}: {split} id {image_id!r} {_lacks(image_id, images, *folders)}")
            self._pairs[split] = {i: (images[i], maps[i]) for i in sorted(images)}
        return self._pairs[split]


def _by_id(folder: Path, ending: str) -> dict[str, Path]:
    """``aachen_000000_000019`` -> its file; the folder of the city is not part of the id."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    return {path.name.removesuffix(ending): path for path in folder.glob(f"*/[!.]*{ending}")}


def _lacks(image_id: str, images: dict[str, Path], image_folder: Path, map_folder: Path) -> str:
    if image_id not in images:
        return f"has no image {image_id}{ENDINGS[0]} in a city of {image_folder}"
    city = map_folder / images[image_id].parent.name
    made = (city / (image_id + TRAIN_IDS)).exists()
    hint = ": its labelTrainIds are there, but labelIds as downloaded are needed" if made else ""
    return f"has no label map {city / (image_id + ENDINGS[1])}{hint}"


@register_dataset("cityscapes-awt")
class CityscapesAwt(Cityscapes):
    """Cityscapes as in AWT's code: id 0 (unlabeled) is background, other ids are void.

    ``dataset/cityscapes.py`` of dfki-av/AWT-for-CISS @ 995da6e.
    """

    value_to_label = label_table(background=(0,))
    has_background = True


@register_dataset("cityscapes-bacs")
class CityscapesBacs(Cityscapes):
    """Cityscapes as in BACS's code: ids 0, 1, 6, 9, 10, 14-16, 18, 29, 30 are background, 2-5 void.

    ``dataset/cityscape_dataset.py`` of the release.
    """

    value_to_label = label_table(background=(0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30))
    has_background = True
