"""Pure functions of tensors that several papers share.

Shapes: ``B`` batch, ``C`` classes, ``D`` channels, ``H, W`` image, ``h, w`` feature map, ``P = h w``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.scenario import VOID


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, ``align_corners=False``: logits (B, C, h, w) -> (B, C, H, W); unchanged if they have that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbour as torch defines it: labels (B, H, W) -> (B, h, w), same dtype."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    # float32 holds 0..255 exactly
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].to(labels.dtype)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits (B, C, H, W) and labels (B, H, W), summed over the pixels that are not void.

    A GPU sums inside of the loss in any order, and has no other way there (``torch.use_deterministic_algorithms``):
    where the order is to be the same, the sum is taken of the pixels.
    """
    if logits.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").sum()
    return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")


def full_precision(x: Tensor) -> Tensor:
    """At least float32: float16 and bfloat16 become float32, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, which the CPU does not wait for: through pinned memory where that is a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """One-hot: (B, h, w) -> (B, classes, hw) of 0 and 1. A label that is no class, such as void, has no 1."""
    names = torch.arange(classes, device=labels.device)
    return (labels.flatten(1)[:, None] == names[:, None]).to(dtype)


def class_sums(features: Tensor, membership: Tensor) -> Tensor:
    """Features (B, D, hw) and membership (B, C, hw) -> (C, D), sums over the positions of each class."""
    return torch.bmm(features, membership.transpose(1, 2)).sum(0).T


def tiles(x: Tensor, limit: int = 2**22) -> Iterator[tuple[slice, slice]]:
    """Cut x (B, C, P) into pieces (images, positions), so that intermediate results need little memory.

    A piece has whole images if at least one fits, else a run of positions of one image. Each position has all its
    channels, so a sum over channels does not depend on the cut. ``limit``: as in ``at_once``.
    """
    images, channels, positions = x.shape
    if not channels:
        return
    run = at_once(channels, x.device, limit, LANES)
    group = max(run // max(positions, 1), 1)
    for i in range(0, images, group):
        for p in range(0, positions, run):
            yield slice(i, i + group), slice(p, p + run)


def at_once(each: int, device: torch.device, limit: int, lanes: int = 1) -> int:
    """How many items of ``each`` numbers a pass takes at a time; a multiple of ``lanes``, and at least that.

    On a CPU ``limit`` numbers, which fit its cache. Elsewhere such pieces would be many small kernels: there it takes
    the whole tensor, up to 2^27 numbers (half a GiB in float32), so that intermediate results stay small.
    """
    limit = limit if device.type == "cpu" else 2**27
    return max(limit // (each * lanes) * lanes, lanes)


LANES = 64  # a run starts where a vector of the uncut loop starts, so every cut gives the same bits
