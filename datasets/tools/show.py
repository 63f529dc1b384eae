"""What each step of a scenario sees, as numbers and as a contact sheet: shows the background shift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import IMAGES
from contseg.datasets.palette import voc_palette
from contseg.datasets.scenario import BACKGROUND, VOID, Scenario, Step
from contseg.datasets.tools.scan import LEFT_OUT, Scan, scan
from contseg.datasets.view import label_table, selection
from contseg.datasets.view import training_images as images_of_step

TILE = (184, 138)
GAP = 6
TITLE = 20
BAR = 34  # height of the text above a row
MOST = 100  # images a step on a sheet
PAPER, INK = (255, 255, 255), (0, 0, 0)
PALETTE = np.array(voc_palette(), np.uint8).reshape(256, 3)
PALETTE[VOID] = PAPER


def check_sheet(path: Path, images: int) -> None:
    """``UserError`` unless a contact sheet with this many images a step can be written to ``path``."""
    if path.is_dir() or path.suffix.lower() not in IMAGES:
        raise UserError(f"--out {path}: give an image file, for example {path.stem or 'sheet'}.png")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    if not 1 <= images <= MOST:
        raise UserError(f"--images {images}: give 1 to {MOST} a step")


def training_images(dataset: SegmentationDataset) -> Scan:
    """Pixels of every label in every training image. ``UserError`` if one cannot be read or has an invalid label."""
    found = scan(dataset, "train")
    for kind, lines in found.faults.items():
        if kind != LEFT_OUT:
            raise UserError(lines[0])
    dataset.check_range(found.ids, "train", found.present)
    return found


def table(dataset: SegmentationDataset, scenario: Scenario, found: Scan) -> str:
    """For each step: images; images and pixel share of each class that it teaches; what is labelled background."""
    what = "images of train and val" if scenario.domains else "training images"
    lines = [f"{scenario.name}: {len(found.ids)} {what}; shares are of the pixels of the step's images"]
    for step in scenario.steps:
        counts = found.counts[_chosen(found, dataset, scenario, step.index)]
        pixels = counts.sum(0)
        total = max(int(pixels.sum()), 1)
        lines += [
            "",
            f"step {step.index}: {len(counts)} images" + ("" if len(counts) else ": EMPTY, cannot be trained"),
        ]
        taught = step.seen_classes if step.keeps_labels else step.new_classes
        for label in taught:
            held = int((counts[:, label] > 0).sum())
            lines.append(f"  {label:>3} {dataset.class_names[label]:<20}{held:>7} images{pixels[label] / total:>9.2%}")
        others = set(range(1, len(dataset.class_names))) - set(step.seen_classes)
        for name, labels in (
            ("background", [BACKGROUND]),
            ("labelled background: old classes", [c for c in step.old_classes if c not in taught]),
            ("labelled background: other classes", sorted(others)),
            ("void", [VOID]),
        ):
            if labels:
                lines.append(f"      {name:<36}{pixels[labels].sum() / total:>9.2%}")
    return "\n".join(lines)


def contact_sheet(dataset: SegmentationDataset, scenario: Scenario, found: Scan, images: int = 3) -> Image.Image:
    """One row for each step; for each image: the image, all its labels, and its labels as the step sees them.

    Images with many taught and many hidden pixels come first. Black is background, white is void.
    """
    group = 3 * (TILE[0] + 2) + 2 * GAP  # one image: the image, labels, labels as seen
    row = BAR + TILE[1] + 2 * GAP
    sheet = Image.new("RGB", (GAP + images * group, TITLE + len(scenario.steps) * row), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (GAP, 4),
        f"{scenario.name}: image | all labels | as the step sees them (black background, white void)",
        INK,
    )
    for step in scenario.steps:
        top = TITLE + step.index * row
        chosen = np.flatnonzero(_chosen(found, dataset, scenario, step.index))
        _heading(draw, top, step, len(chosen), dataset.class_names)
        taught = label_table(step, "background") > 0
        taught[VOID] = True
        as_seen = np.where(taught, np.arange(256), BACKGROUND).astype(np.uint8)
        for column, i in enumerate(_telling(found, step, chosen)[:images]):
            pixels, labels = (x.numpy() for x in dataset.load(found.ids[i], "train"))
            for k, image in enumerate((pixels.transpose(1, 2, 0), PALETTE[labels], PALETTE[as_seen[labels]])):
                tile = Image.fromarray(np.ascontiguousarray(image))
                tile.thumbnail(TILE, Image.Resampling.NEAREST if k else Image.Resampling.LANCZOS)
                sheet.paste(tile, (GAP + column * group + k * (TILE[0] + 2), top + BAR))
    return sheet


def _chosen(found: Scan, dataset: SegmentationDataset, scenario: Scenario, index: int) -> np.ndarray:
    """(N,) bool, over the images of the scan."""
    if not scenario.lists and not scenario.domains:
        return selection(found.present, scenario, index)
    ids = np.array(dataset.ids("train"))[images_of_step(dataset, scenario, index)]
    return np.isin(found.ids, ids)


def _telling(found: Scan, step: Step, chosen: np.ndarray) -> list[int]:
    """Images with many taught and many hidden pixels, best first; ties by id."""
    counts = found.counts[chosen].astype(float)
    counts /= counts.sum(1, keepdims=True)
    taught = counts[:, list(step.new_classes)].sum(1)
    hidden = counts[:, BACKGROUND + 1 : VOID].sum(1) - taught
    score = taught * hidden + 0.001 * taught
    return [int(i) for i in chosen[np.argsort(-score, kind="stable")]]


def _heading(draw: ImageDraw.ImageDraw, top: int, step: Step, n: int, names: tuple[str, ...]) -> None:
    """The line above a row: the step's images, and its new classes in their colours, as many as fit."""
    width = draw.im.size[0]
    draw.text((GAP, top), f"step {step.index}: {n} images", INK)
    x = GAP
    for label in step.new_classes:
        name = names[label]
        wide = 16 + int(draw.textlength(name)) + 10
        if x + wide > width - 40:
            draw.text((x, top + 16), "...", INK)
            return
        draw.rectangle((x, top + 18, x + 11, top + 28), fill=tuple(int(c) for c in PALETTE[label]), outline=INK)
        draw.text((x + 16, top + 16), name, INK)
        x += wide
