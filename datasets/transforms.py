"""Joint transforms of an image and its label map, both uint8; normalisation happens later, on the device.

``H, W`` the image, ``h, w`` a window of it, ``S, S'`` the result. Images are resized bilinearly, with the
triangle filter widened when shrinking (antialias), as in Pillow and the literature's code; labels take the nearest
pixel: result row i reads row floor((i + 1/2) h / S), as Pillow does.

A window is cut out before it is resized; resizing runs on bytes in channels-last order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size: TypeAlias = tuple[int, int]  # (height, width)
Window: TypeAlias = tuple[int, int, int, int]  # (top, left, height, width)
Pair: TypeAlias = tuple[Tensor, Tensor]

ATTEMPTS = 10  # at a random window, as torchvision and the released code of MiB


@dataclass(frozen=True)
class TrainTransform:
    """A random window, resized to ``size``, and random flips: the literature's augmentation; then ``jittered`` colours.

    ``scale`` bounds the window's share of the image's area and ``ratio`` its width / height. ``scale=None``: no
    random window but the fixed one of ``EvalTransform``. ``flip``: "none", "h" (left-right), "hv" (and upside down),
    each with probability 1/2.
    """

    size: Size
    scale: tuple[float, float] | None = (0.5, 2.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Literal["none", "h", "hv"] = "h"
    jitter: tuple[float, ...] = ()

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> Pair:
        """(3, H, W), (H, W) -> (3, S, S'), (S, S')."""
        full = (label.shape[0], label.shape[1])
        if self.scale is None:
            image, label = cover(image, label, self.size)
        else:
            image, label = resized_window(image, label, random_window(full, self.scale, self.ratio, rng), self.size)
        axes = {"none": 0, "h": 1, "hv": 2}[self.flip]
        for axis in (-1, -2)[:axes]:
            if rng.random() < 0.5:
                image, label = image.flip(axis), label.flip(axis)
        return (jittered(image, self.jitter, rng) if self.jitter else image), label


@dataclass(frozen=True)
class EvalTransform:
    """``size=None``: the image as it is. Otherwise the ``crop`` view of the literature: ``cover``."""

    size: Size | None = None

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator | None = None) -> Pair:
        """(3, H, W), (H, W) -> (3, S, S'), (S, S')."""
        return (image, label) if self.size is None else cover(image, label, self.size)


def jittered(image: Tensor, strength: tuple[float, ...], rng: np.random.Generator) -> Tensor:
    """The image (3, S, S') in other colours, by the law of torchvision's ColorJitter.

    ``strength``: b, c, s, h of brightness, contrast, saturation, hue. In random order: brightness is multiplied by a
    number uniform in [max(0, 1 - b), 1 + b], contrast and saturation likewise, and the hue is turned by a share of the
    circle uniform in [-h, h]. A strength of 0 leaves its property as it is. The releases of MiB, PLOP, RCIL, WILSON and
    CoinSeg have no jitter.
    """
    from torchvision.transforms.v2 import functional as colours

    changes = (colours.adjust_brightness, colours.adjust_contrast, colours.adjust_saturation, colours.adjust_hue)
    middles = (1.0, 1.0, 1.0, 0.0)
    for i in rng.permutation(4):
        if strength[i]:
            low = middles[i] - strength[i]
            image = changes[i](image, rng.uniform(max(0.0, low) if middles[i] else low, middles[i] + strength[i]))
    return image


def random_window(
    full: Size, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Window:
    """The distribution of torchvision's RandomResizedCrop; MiB, SDR, PLOP and their forks use scale (0.5, 2.0).

    Up to ten times: area = u H W with u uniform in ``scale``; log(width / height) uniform between the logarithms of
    ``ratio``; sides rounded. The first window that fits is placed uniformly at random. If none fits: the centre
    of the image, cut to the nearest bound of ``ratio``. Even with scale (0.5, 2.0) a window is never larger than the
    image: larger draws are repeated.
    """
    height, width = full
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_window(image: Tensor, label: Tensor, window: Window, size: Size) -> Pair:
    """The window (h, w) of image (3, H, W) and label (H, W), resized to ``size``."""
    top, left, h, w = window
    image, label = image[:, top : top + h, left : left + w], label[top : top + h, left : left + w]
    if (h, w) == size:
        return image, label
    rows, columns = (_nearest(old, new) for old, new in zip((h, w), size, strict=True))
    # (1, h, w, 3) first: a batch of one is otherwise ambiguous, and torch then takes the slow path over planes
    batch = image.permute(1, 2, 0)[None].contiguous().permute(0, 3, 1, 2)
    resized = F.interpolate(batch, size=size, mode="bilinear", antialias=True)[0]
    return resized, torch.from_numpy(label.numpy().take(columns, 1).take(rows, 0))


def cover(image: Tensor, label: Tensor, size: Size) -> Pair:
    """Resized to just cover ``size`` (for a square: shorter side to S), then centre-cropped.

    The longer side is rounded down and the crop's corner to the nearest pixel, as in torchvision's Resize, CenterCrop.
    """
    height, width = label.shape
    if height * size[1] <= width * size[0]:
        grown = (size[0], max(size[1], size[0] * width // height))
    else:
        grown = (max(size[0], size[1] * height // width), size[1])
    image, label = resized_window(image, label, (0, 0, height, width), grown)
    top, left = (round((have - want) / 2) for have, want in zip(grown, size, strict=True))
    window = slice(top, top + size[0]), slice(left, left + size[1])
    return image[:, *window], label[window]


def _nearest(old: int, new: int) -> np.ndarray:
    """(new,): the source index of every result index, accumulated as in Pillow, so that ties are resolved alike."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.cumsum(steps).astype(np.intp)
