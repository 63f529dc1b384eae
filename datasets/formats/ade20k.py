"""ADE20K SceneParse150: 20 210 training and 2 000 validation images, 150 classes.

Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017. Label 0 is "other": pixels outside the 150 classes. In
training it is the background channel, as in the released code of MiB; a protocol may leave it out at test.

::

    images/{training,validation}/ID.jpg   annotations/{training,validation}/ID.png   objectInfo150.txt
"""

from __future__ import annotations

from pathlib import Path

from contseg.datasets.base import register_dataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import Listing, PairedFiles, first_folder, read_lines
from contseg.datasets.scenario import VOID

BELOW = ("ADEChallengeData2016", "ade/ADEChallengeData2016")
HOLDS = ("images", "annotations")
FOLDERS = {"train": "training", "val": "validation"}

# the first of the synonyms of objectInfo150.txt
NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
flag
"""


@register_dataset("ade")
class Ade(PairedFiles):
    """ADE20K SceneParse150, 150 classes: --data ade=FOLDER, ADEChallengeData2016 or the one above it.

    Other data in this layout need an ``objectInfo*.txt``.
    """

    class_names = ("background", *(name.strip() for name in NAMES.replace("\n", " ").split(",")))

    def __init__(self, name: str, root: Path | None = None, cache: Path | None = None) -> None:
        super().__init__(name, root, cache)
        if root is None:
            raise UserError(f"data set {name!r} needs its folder: --data {name}=/path/to/ADEChallengeData2016")
        folder = first_folder(root, BELOW, HOLDS)
        if folder is None:
            raise UserError(
                f"data set {name!r}: looked for {' and '.join(HOLDS)} in {root} and in its {', '.join(BELOW)}"
            )
        self.folder = folder
        if tables := sorted(folder.glob("objectInfo*.txt")):
            self.class_names = ("background", *object_names(tables[0]))

    @classmethod
    def found_in(cls, root: Path) -> bool:
        folder = first_folder(root, BELOW, HOLDS)
        return folder is not None and any(folder.glob("objectInfo*.txt"))

    def listing(self, split: str) -> Listing:
        return Listing(None, *(self.folder / kind / FOLDERS[split] for kind in HOLDS))


def object_names(path: Path) -> list[str]:
    """The last column of a table with the rows Idx, Ratio, Train, Val, Name (tabs between); first synonym."""
    rows = [[cell.strip() for cell in line.split("\t")] for line in read_lines(path)][1:]
    if not 1 <= len(rows) < VOID or [r[0] for r in rows] != [str(i + 1) for i in range(len(rows))]:
        raise UserError(f"{path}: expected a heading and one line a class, numbered from 1, with tabs between columns")
    return [r[-1].split(",")[0] for r in rows]
