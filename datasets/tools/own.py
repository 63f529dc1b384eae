"""From a folder of images and label maps to a data set: its content, its faults, and the possible tasks."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from contseg.datasets.errors import UserError
from contseg.datasets.formats import coco
from contseg.datasets.formats.ade20k import object_names
from contseg.datasets.formats.paired import read_lines
from contseg.datasets.formats.pairs import Pair, find_pairs
from contseg.datasets.index import in_parallel
from contseg.datasets.scenario import VOID, parse_scenario
from contseg.datasets.tools.scan import Look, fault_kind, look
from contseg.datasets.user_defined import check_names
from contseg.datasets.view import selection

NAME_FILES = ("class_names.txt", "classes.txt", "labels.txt")
GAP = 10
"""Without class names: a label after a gap of this many unused labels (or as many as are used) is a mistake."""
FEW = 8
"""A step with fewer training images gives an unreliable result."""


@dataclass(frozen=True)
class Convention:
    """The meaning of the values in the maps: the label of the first class (0: no background), and the void labels."""

    first_class: int = 1
    void: tuple[int, ...] = (VOID,)

    def __post_init__(self) -> None:
        for label in self.void:
            if not 0 <= label <= VOID:
                raise UserError(f"--void {label}: the labels of an 8-bit map are 0 to {VOID}")

    def table(self) -> np.ndarray:
        """(256,) uint8: value in the map -> label (0 background, 1..n classes, 255 void)."""
        labels = np.arange(256) + (1 - self.first_class)
        labels[list(self.void)] = VOID
        labels[labels > VOID] = VOID
        return labels.astype(np.uint8)


@dataclass
class Own:
    """What was found. ``counts``: split -> (N, 256) pixels of each label, after the convention."""

    folder: Path
    convention: Convention
    how: str
    pairs: dict[str, list[Pair]]
    counts: dict[str, np.ndarray]
    class_names: list[str]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(p)} {split}" for split, p in self.pairs.items())
        lines = [f"{self.folder}: {sizes} images with label maps", f"splits: {self.how}", ""]
        lines += ["proposed class_names.txt (line n is label n):"]
        shares = {s: c.sum(0) / c.sum() for s, c in self.counts.items()}
        for label, name in [*enumerate(self.class_names), (VOID, "(void)")]:
            cells = "".join(
                f"{int((self.counts[s][:, label] > 0).sum()):>8} {s}{shares[s][label]:>9.2%}" for s in self.counts
            )
            lines.append(f"  {label:>3} {name:<24}{cells}")
        lines += ["", "tasks (training images by step):", *self.tasks()]
        lines += [f"\nnote: {n}" for n in self.notes] + [f"\nFAULT: {f}" for f in self.faults]
        return "\n".join(lines)

    def tasks(self) -> list[str]:
        """A line for each task and setup, with the steps that are empty or have few images."""
        n, present = len(self.class_names) - 1, self.counts["train"] > 0
        lines = []
        for task in usual_tasks(n):
            for setup in ("overlapped", "disjoint"):
                scenario = parse_scenario(f"own/{task}/{setup}", n)
                sizes = [int(selection(present, scenario, t).sum()) for t in range(len(scenario.groups))]
                empty = [str(t) for t, size in enumerate(sizes) if not size]
                few = [str(t) for t, size in enumerate(sizes) if 0 < size < FEW]
                verdict = f"NOT POSSIBLE: step {', '.join(empty)} is empty" if empty else "possible"
                if few and not empty:
                    verdict = f"unreliable: step {', '.join(few)} has fewer than {FEW} images"
                lines.append(f"  {task + '/' + setup:<18} {', '.join(map(str, sizes)):<40} {verdict}")
        return lines or ["  none: one class cannot be split into steps"]


def usual_tasks(n: int) -> list[str]:
    """Tasks like the papers' for n classes: all but one, three quarters, or half first; the rest at once or one by one.

    >>> usual_tasks(20)
    ['19-1', '15-5', '15-1', '10-10', '10-1']
    """
    tasks = []
    for base in (n - 1, ceil(0.75 * n), ceil(n / 2)):
        for rest in (n - base, 1):
            task = f"{base}-{rest}"
            if 0 < base < n and task not in tasks:
                tasks.append(task)
    return tasks


def look_at(folder: Path, convention: Convention, work: Path) -> Own:
    """Read every image and map of a folder. ``UserError`` if nothing is usable.

    Without label maps, a COCO-style JSON is used if there is one; its maps are drawn into the folder ``work``.
    """
    names = None
    try:
        found = find_pairs(folder)
    except UserError:
        if not (files := coco.annotation_files(folder)):
            raise
        found, names = coco.draw_maps(files, folder, work)
    table = convention.table()
    pairs: dict[str, list[Pair]] = {}
    counts: dict[str, np.ndarray] = {}
    faults: dict[str, list[str]] = {}
    for split, group in found.splits.items():
        looks = _look(group, f"looking at {split}")
        for line in (x for x in looks if isinstance(x, str)):
            faults.setdefault(fault_kind(line), []).append(line)
        good = [(p, x) for p, x in zip(group, looks, strict=True) if not isinstance(x, str)]
        if not good:
            nothing = f"no {split} images in {folder} (splits: {found.how}): give a list or a folder for {split}"
            raise UserError(next(iter(faults.values()))[0] if faults else nothing)
        pairs[split] = [p for p, _ in good]
        raw = np.array([x[0] for _, x in good], np.int64)
        counts[split] = np.zeros_like(raw)
        for value in range(256):
            counts[split][:, table[value]] += raw[:, value]
    own = Own(folder, convention, found.how, pairs, counts, [])
    own.faults = [
        lines[0] + (f" (and {len(lines) - 1} more like this)" if len(lines) > 1 else "") for lines in faults.values()
    ]
    if found.without_map:
        own.faults.append(f"{len(found.without_map)} images have no label map, for example {found.without_map[0]}")
    _name_classes(own, names or _names_beside(folder), sum(c.sum(0) for c in counts.values()))
    return own


def check_target(out: Path, source: Path) -> None:
    """``UserError`` unless a data set can be written to ``out``, a new folder outside ``source``."""
    if out.exists():
        raise UserError(f"{out} is there already: give a folder that is not")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} is inside {source}, which is not changed: give a folder outside it")


def write(own: Own, out: Path) -> None:
    """Write the data set in VOC layout into a new folder, all or nothing. Images are copied unchanged."""
    check_target(out, own.folder)
    if any(counts[:, len(own.class_names) : VOID].any() for counts in own.counts.values()):
        raise UserError(f"{out} is not written: there are labels without a class (above)")
    part = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    images, labels, lists = part / "JPEGImages", part / "SegmentationClass", part / "ImageSets" / "Segmentation"
    for folder in (images, labels, lists):
        folder.mkdir(parents=True)
    table = own.convention.table()
    names = _new_ids(own)
    for split, pairs in own.pairs.items():
        ids = names[split]
        for image_id, pair in zip(ids, pairs, strict=True):
            shutil.copyfile(pair.image, images / f"{image_id}{pair.image.suffix.lower()}")
            _write_map(pair.label, labels / f"{image_id}.png", table)
        (lists / f"{split}.txt").write_text("".join(f"{i}\n" for i in sorted(ids)), "utf-8")
    (part / "class_names.txt").write_text("".join(f"{name}\n" for name in own.class_names), "utf-8")
    part.replace(out)


def _new_ids(own: Own) -> dict[str, list[str]]:
    """Unique ids: the files' names; if two are equal, with their split, or else their folder, in front."""
    for name in (
        lambda split, p: p.image_id,
        lambda split, p: f"{split}_{p.image_id}",
        lambda split, p: "_".join((*p.image.relative_to(own.folder).parent.parts, p.image_id)),
    ):
        ids = {split: [name(split, p) for p in pairs] for split, pairs in own.pairs.items()}
        if len(set().union(*ids.values())) == sum(map(len, ids.values())):
            return ids
    raise UserError(f"{own.folder} holds images whose folder and file names give the same id: rename them")


def _look(pairs: list[Pair], title: str) -> list[Look | str]:
    return in_parallel(lambda i: look(pairs[i].image, pairs[i].label), range(len(pairs)), title)


def _write_map(source: Path, target: Path, table: np.ndarray) -> None:
    from contseg.datasets.palette import voc_palette

    if source.suffix == target.suffix and np.array_equal(table, Convention().table()):
        shutil.copyfile(source, target)
        return
    with Image.open(source) as image:
        labels = Image.fromarray(table[np.array(image)])
    labels.putpalette(voc_palette())
    labels.save(target)


def _names_beside(folder: Path) -> list[str] | None:
    """Class names from a file in the folder."""
    for name in NAME_FILES:
        if (folder / name).is_file():
            names = read_lines(folder / name)
            bare = [re.sub(rf"^{label}[\s:,.]+", "", n) for label, n in enumerate(names)]
            return bare if all(b != n for b, n in zip(bare, names, strict=True)) else names  # "3 dog", line for line
    tables = sorted(folder.glob("objectInfo*.txt"))
    return ["background", *object_names(tables[0])] if tables else None


def _name_classes(own: Own, names: list[str] | None, pixels: np.ndarray) -> None:
    """Set the names as given, else by number; labels without a name are a fault."""
    occurring = [int(label) for label in np.flatnonzero(pixels[:VOID])]
    if not occurring or occurring[-1] == 0:
        raise UserError(f"the label maps in {own.folder} hold no class: nothing but 0 and void; classes are 1 to 254")
    if names is None:
        gaps = ((a, b - a) for a, b in pairwise(occurring))
        last = next((a for n, (a, gap) in enumerate(gaps) if gap > max(GAP, n)), occurring[-1])
        own.class_names = ["background", *(f"class {label}" for label in range(1, last + 1))]
        own.notes.append("the names are placeholders: write your own into class_names.txt")
    elif own.convention.first_class == 0 and not names[0].startswith("background"):
        own.class_names = ["background", *names]
    else:
        own.class_names = names
    check_names(own.class_names, f"{own.folder}: its list of class names")
    zero = own.class_names[0]
    first = "" if zero.startswith("background") else f" (line 0 of the names is the background, here {zero!r})"
    for label in (x for x in occurring if x >= len(own.class_names)):
        own.faults.append(
            f"label {label} in {_maps_with(own, label)} is out of range: the classes end at "
            f"{len(own.class_names) - 1}{first}; name it in class_names.txt, or call it void with --void"
        )
    absent = [own.class_names[x] for x in range(1, len(own.class_names)) if x not in occurring]
    if absent:
        own.notes.append(
            f"{len(absent)} classes occur nowhere ({', '.join(absent[:5])}): a step with only these would be empty"
        )
    if not pixels[0]:
        own.notes.append("label 0 (background) occurs nowhere: every pixel belongs to a class or is void")
    both = {p.image_id for p in own.pairs["train"]} & {p.image_id for p in own.pairs["val"]}
    if both:
        own.notes.append(f"{len(both)} names are in train and in val ({min(both)}): are they the same images?")


def _maps_with(own: Own, label: int) -> str:
    named = [str(p.label) for s in own.pairs for p, c in zip(own.pairs[s], own.counts[s], strict=True) if c[label]]
    return f"{named[0]}" + (f" (and {len(named) - 1} more)" if len(named) > 1 else "")
