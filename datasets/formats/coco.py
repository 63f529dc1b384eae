"""Label maps from a COCO-style JSON (images, annotations, categories), drawn with pycocotools.

Categories become labels 1..n in the order of their ids; crowds (``iscrowd``) are void; of overlapping objects the
smaller one is in front.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from contseg.datasets.errors import UserError, need
from contseg.datasets.formats.paired import IMAGES
from contseg.datasets.formats.pairs import Found, Pair, split_by_name
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

    image_files = {p.name: p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGES}
    groups: dict[str, list[Pair]] = {}
    missing: list[str] = []
    categories: dict[int, str] = {}
    for path in files:
        with contextlib.redirect_stdout(io.StringIO()):
            annotations = COCO(str(path))
        named = {c["id"]: str(c["name"]) for c in annotations.dataset["categories"]}
        if (categories := categories or named) != named:
            raise UserError(f"{path} has other categories than {files[0]}: label maps need one set of classes")
        label_of = {category: label for label, category in enumerate(sorted(categories), start=1)}
        if len(label_of) >= VOID:
            raise UserError(f"{path} has {len(label_of)} categories: at most {VOID - 1} fit into a label map")
        maps = work / path.stem
        maps.mkdir(parents=True)
        groups[path.stem] = []
        for info in annotations.dataset["images"]:
            name = Path(info["file_name"]).name
            if name not in image_files:
                missing.append(name)
                continue
            label = maps / f"{Path(name).stem}.png"
            Image.fromarray(_draw(annotations, info, label_of)).save(label)
            groups[path.stem].append(Pair(label.stem, image_files[name], label))
    if missing:
        raise UserError(f"{len(missing)} images of {files[0]} are not in {folder}, for example {missing[0]}")
    splits, how = split_by_name(groups)
    return Found(splits, how, []), ["background", *(categories[c] for c in sorted(categories))]


def _draw(annotations, info: dict, label_of: dict[int, int]) -> np.ndarray:
    labels = np.zeros((info["height"], info["width"]), np.uint8)
    objects = annotations.imgToAnns[info["id"]]
    for thing in sorted(objects, key=lambda a: (not a.get("iscrowd", 0), -a["area"])):  # crowds behind everything
        crowd = thing.get("iscrowd", 0)
        labels[annotations.annToMask(thing) > 0] = VOID if crowd else label_of[thing["category_id"]]
    return labels


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(read_bytes(path))
    except (UserError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= KEYS
