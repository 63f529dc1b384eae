"""Label maps from a COCO-style JSON (images, annotations, categories), drawn with pycocotools.

Categories become labels 1..n in the order of their ids; crowds (``iscrowd``) are void; of overlapping objects the
smaller one is in front.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from contseg.datasets.errors import UserError, need
from contseg.datasets.formats.paired import IMAGES, files_by_stem
from contseg.datasets.formats.pairs import Found, Pair, folders_below, split_by_name
from contseg.datasets.images import read_bytes
from contseg.datasets.scenario import VOID

KEYS = {"images", "annotations", "categories"}


def annotation_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, and one below it, that are in COCO's format."""
    return [p for p in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]) if _is_coco(p)]


def draw_maps(files: list[Path], folder: Path, work: Path) -> tuple[Found, list[str]]:
    """Images of ``folder`` with maps drawn into ``work``, and the class names; all files have the same categories."""
    need("pycocotools", str(files[0]))
    from pycocotools.coco import COCO

    named: dict[str, list[Path]] = {}
    for where in folders_below(folder, math.inf):
        for image in files_by_stem(where, IMAGES).values():
            named.setdefault(image.name, []).append(image)
    groups: dict[str, list[Pair]] = {}
    missing: list[str] = []
    categories: dict[int, str] = {}
    for number, path in enumerate(files):
        with _in_format(path), contextlib.redirect_stdout(io.StringIO()):
            annotations = COCO(str(path))
            own = {c["id"]: str(c["name"]) for c in annotations.dataset["categories"]}
        if (categories := categories or own) != own:
            raise UserError(f"{path} has other categories than {files[0]}: label maps need one set of classes")
        label_of = {category: label for label, category in enumerate(sorted(categories), start=1)}
        if len(label_of) >= VOID:
            raise UserError(f"{path} has {len(label_of)} categories: at most {VOID - 1} fit into a label map")
        maps = work / str(number)
        maps.mkdir(parents=True)
        pairs: dict[Path, Pair] = {}
        for info in annotations.dataset["images"]:
            with _in_format(path):
                found = _image_file(info["file_name"], named, path)
                if found is None:
                    missing.append(info["file_name"])
                    continue
                if found in pairs:
                    raise UserError(f"{path} describes {found} twice: a label map is drawn from one entry")
                label = maps / f"{found.stem}-{len(pairs)}.png"
                Image.fromarray(_draw(annotations, info, label_of)).save(label)
                pairs[found] = Pair(found.stem, found, label)
        groups[f"{path.stem} {path.parent.relative_to(folder)}"] = [*pairs.values()]
    if missing:
        raise UserError(f"{len(missing)} images of {files[0]} are not in {folder}, for example {missing[0]}")
    splits, how = split_by_name(groups)
    return Found(splits, how, []), ["background", *(categories[c] for c in sorted(categories))]


@contextlib.contextmanager
def _in_format(path: Path) -> Iterator[None]:
    """``UserError`` for what pycocotools or we do not find in a file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pycocotools raises Exception itself
        raise UserError(f"{path} is not in COCO's format ({type(error).__name__}: {error})") from error


def _image_file(file_name: str, named: dict[str, list[Path]], path: Path) -> Path | None:
    """The image that the file ``path`` names; of several of one name the one in the folder that it says, or nearest."""
    parts = PurePosixPath(file_name.replace("\\", "/")).parts

    def fits(image: Path) -> tuple[bool, int]:
        return image.parts[-len(parts) :] == parts, len(os.path.commonpath([image, path]))

    return max(named.get(parts[-1], ()), key=fits, default=None)


def _draw(annotations, info: dict, label_of: dict[int, int]) -> np.ndarray:
    labels = np.zeros((info["height"], info["width"]), np.uint8)
    objects = []
    for thing in annotations.imgToAnns[info["id"]]:
        crowd = bool(thing.get("iscrowd", 0))
        where = f"annotation {thing['id']} of {info['file_name']}"
        if not thing.get("segmentation"):
            raise UserError(f"{where} is a box without an outline: export polygons or masks, a box gives no label map")
        if thing["category_id"] not in label_of:
            raise UserError(f"{where} has category {thing['category_id']}, which is not among the categories")
        mask = annotations.annToMask(thing) > 0
        label = VOID if crowd else label_of[thing["category_id"]]
        objects.append((not crowd, -thing.get("area", mask.sum()), mask, label))
    for _, _, mask, label in sorted(objects, key=lambda o: o[:2]):  # crowds behind everything
        labels[mask] = label
    return labels


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(read_bytes(path))
    except (UserError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= KEYS
