"""Images as a network takes them: bytes, normalised as in the training of its first weights."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from contseg.benchmark.plan.model_config import MEAN, STD


class Pixels(NamedTuple):
    """Mean and standard deviation of each colour, of images in 0..1; ImageNet's, or those of the weights."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32, on the device where they lie."""
        mean, std = _on_device(self, images.device)
        return (images.float() - mean) / std


@lru_cache
def _on_device(pixels: Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as (1, 3, 1, 1), of bytes: made once for each device."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(three, device=device).view(1, 3, 1, 1) * 255 for three in pixels)
    return mean, std


def pixels_of(model: object) -> Pixels:
    """How a network's images are normalised; ImageNet's way where it does not say."""
    found: Pixels = getattr(model, "pixels", Pixels())
    return found
