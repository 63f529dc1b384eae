"""The embedded data set: six drawn shapes on noise, deterministic, no download and no file.

It shows the effects of the field with a tiny network within minutes. There are 1 to 4 objects in an image, so most
images of a later step also hold earlier classes (background shift). Square and cross share their hue, so only their
shape separates an old class from a new one. 800 train and 200 val images of 48x48.

``shapes-domains`` shows the same drawings in four lights, for steps that bring a domain instead of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contseg.datasets.base import SegmentationDataset, register_dataset
from contseg.datasets.index import Index, gather, row
from contseg.datasets.scenario import BACKGROUND

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 48
VERSION = 1  # of the drawing: part of every image's fingerprint
COUNTS = {"train": 800, "val": 200}
SEEDS = {"train": 1001, "val": 2}

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# --- shapes: points (u, v) with the object's centre at 0 and its radius as unit -> inside? ---


def _disk(u: Array, v: Array) -> Mask:
    return u * u + v * v < 0.9


def _square(u: Array, v: Array) -> Mask:
    return np.maximum(abs(u), abs(v)) < 0.8


def _triangle(u: Array, v: Array) -> Mask:
    return np.maximum(abs(u) * np.sqrt(3) / 2 + v / 2, -v) < 0.6


def _ring(u: Array, v: Array) -> Mask:
    return abs(np.hypot(u, v) - 0.75) < 0.3


def _cross(u: Array, v: Array) -> Mask:
    return (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 1.1)


def _star(u: Array, v: Array) -> Mask:
    """Five points of radius 1.15: the pixel lies below the edge from a point to the notch beside it."""
    tip, notch, sector = 1.15, 0.6, np.pi / 5
    angle = abs((np.arctan2(u, v) + sector) % (2 * sector) - sector)  # from the nearest point, 0 .. pi/5
    x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    return (tip - x) * notch * np.sin(sector) > y * (tip - notch * np.cos(sector))


# index = label - 1: name, hue of the circle of colours, shape
KINDS: tuple[tuple[str, float, Callable[[Array, Array], Mask]], ...] = (
    ("disk", 0.00, _disk),
    ("square", 0.33, _square),
    ("triangle", 0.63, _triangle),
    ("ring", 0.12, _ring),
    ("cross", 0.33, _cross),
    ("star", 0.80, _star),
)
_Y, _X = np.mgrid[:SIDE, :SIDE] / SIDE + 0.5 / SIDE  # pixel centres, the image's side as unit

# --- drawing ---


def layout(seed: int, index: int) -> list[tuple[int, int, Mask]]:
    """The objects of an image, from back to front: label, kind, mask. The grey distractor is labelled background."""
    rng = np.random.default_rng([seed, index])
    kinds = [int(k) for k in rng.permutation(len(KINDS))[: rng.integers(1, 5)]]
    objects = [(k + 1, k, _place(k, rng)) for k in kinds]
    if rng.random() < 0.5:
        k = int(rng.integers(len(KINDS)))
        objects.insert(0, (BACKGROUND, k, _place(k, rng)))
    return objects


def _place(kind: int, rng: np.random.Generator) -> Mask:
    """A shape of radius 0.14 to 0.27 sides, anywhere with its centre 0.15 off the border, turned and stretched."""
    (x, y), radius = rng.uniform(0.15, 0.85, 2), rng.uniform(0.14, 0.27)
    turn, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    u = ((_X - x) * np.cos(turn) + (_Y - y) * np.sin(turn)) / radius * aspect
    v = ((_Y - y) * np.cos(turn) - (_X - x) * np.sin(turn)) / radius / aspect
    return KINDS[kind][2](u, v)


@cache
def draw_label(seed: int, index: int) -> NDArray[np.uint8]:
    """(48, 48): the label map alone. Drawn once, like the image: all of the data set is 9 MB."""
    label = np.full((SIDE, SIDE), BACKGROUND, np.uint8)
    for value, _, mask in layout(seed, index):
        label[mask] = value
    return label


@cache
def draw_image(seed: int, index: int) -> NDArray[np.uint8]:
    """(3, 48, 48): gratings and noise, the grey distractor, the coloured objects with shading stripes."""
    rng = np.random.default_rng([seed, index, 1])  # apart from the layout's: labels need no colours
    image = np.full((3, SIDE, SIDE), rng.uniform(0.25, 0.75)) + rng.normal(0, 0.07, (3, 1, 1))
    for _ in range(3):
        image += (rng.normal(0, 0.05) + rng.normal(0, 0.02, (3, 1, 1))) * _grating(rng)
    for label, kind, mask in layout(seed, index):
        colour = np.full(3, rng.uniform(0.2, 0.9))
        if label != BACKGROUND:
            colour = _rgb(KINDS[kind][1] + rng.normal(0, 0.03), rng.uniform(0.45, 0.95), rng.uniform(0.5, 0.95))
        shade = 1 + rng.normal(0, 0.12) * _grating(rng)
        image[:, mask] = (colour[:, None, None] * shade)[:, mask]
    image += rng.normal(0, 0.04, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _grating(rng: np.random.Generator) -> Array:
    """(48, 48): a plane wave of normally distributed frequency, 5 cycles a side."""
    fx, fy = rng.normal(0, 5, 2)
    return np.sin(2 * np.pi * (fx * _X + fy * _Y + rng.random()))


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """HSV to RGB, all from 0 to 1; the hue is cyclic."""
    distance = abs((hue + np.array([0, -1 / 3, 1 / 3]) + 0.5) % 1 - 0.5) * 6  # from each primary, in sextants
    return value * (1 - saturation * (distance - 1).clip(0, 1))


@register_dataset("shapes")
class Shapes(SegmentationDataset):
    """Six drawn shapes, 6 classes: part of the suite, nothing to download.

    Images by id: ``train_0000`` ..., ``val_0000`` ...
    """

    class_names = ("background", *(kind[0] for kind in KINDS))

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple(f"{split}_{i:04d}" for i in range(COUNTS[split]))

    def files(self, image_id: str, split: str) -> None:
        return None

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        import torch  # not needed to plan

        seed, index = SEEDS[split], int(image_id.removeprefix(f"{split}_"))
        return torch.tensor(draw_image(seed, index)), torch.tensor(draw_label(seed, index))  # copies

    def _read(self, ids: tuple[str, ...], split: str) -> Index:
        """Only the labels are drawn: seed, number and version of a drawing identify its content."""
        seed = SEEDS[split]
        return gather(
            row(
                np.bincount(draw_label(seed, i).ravel(), minlength=256),
                (SIDE, SIDE),
                self._content(split, i).encode(),
            )
            for i in range(len(ids))
        )

    def _content(self, split: str, i: int) -> str:
        """What identifies an image, in place of its bytes."""
        return f"shapes version {VERSION} seed {SEEDS[split]} number {i}"


# --- by domain ---

# In which channel a domain shows red, green and blue, then contrast and brightness: day is as drawn. Infrared shows
# one class in the colour that another has by day, so that a network that learns it unlearns the day.
DOMAINS: dict[str, tuple[tuple[int, int, int], float, float]] = {
    "day": ((0, 1, 2), 1.0, 0.0),
    "fog": ((0, 1, 2), 0.6, 0.35),
    "night": ((0, 1, 2), 0.6, 0.0),
    "infrared": ((2, 0, 1), 1.0, 0.0),
}


@register_dataset("shapes-domains")
class ShapesDomains(Shapes):
    """The drawn shapes by day, in fog, at night and in infrared: 6 classes, 4 domains; part of the suite.

    Image i is of domain i modulo 4. Labels are those of ``shapes``.
    """

    domains = tuple(DOMAINS)

    def domain_of(self, image_id: str) -> str:
        return self.domains[int(image_id.rpartition("_")[2]) % len(self.domains)]

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        image, label = super().load(image_id, split)
        channels, contrast, brightness = DOMAINS[self.domain_of(image_id)]
        shown = image[list(channels)].double() * contrast + 255 * brightness
        return shown.clamp(0, 255).round().to(image.dtype), label

    def _content(self, split: str, i: int) -> str:
        return f"{super()._content(split, i)} as {DOMAINS[self.domains[i % len(self.domains)]]}"
