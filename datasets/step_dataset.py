"""The training or test images of a step for a DataLoader: decoded, labels mapped to channels, transformed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.images import looked_up
from contseg.datasets.view import StepView

Transform = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


class StepImages(Dataset[tuple[Tensor, Tensor]]):
    """``images[epoch, i]`` -> (image (3, S, S') uint8 RGB, label (S, S') uint8): image i of the view.

    Labels are mapped by the view's table. Stored images follow those of the step; each has a table of its own.
    The transform's random numbers depend on (seed, step, epoch, image id) alone, so neither the order nor the number of
    loader processes matters. The epoch is part of the index, so loader processes can stay alive between epochs.
    ``images[i]`` is epoch 0. ``keep``: the share of free shared memory in which decoded images are kept for all loader
    processes; 0: none.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        view: StepView,
        transform: Transform,
        *,
        seed: int = 0,
        step: int = 0,
        keep: float = 0.0,
    ) -> None:
        self.dataset, self.view, self.transform, self.seed, self.step = dataset, view, transform, seed, step
        self._kept = _Kept(_sizes(dataset, view), keep) if keep else None

    def __len__(self) -> int:
        return len(self.view.ids) + len(self.view.stored)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        current = len(self.view.ids)
        stored = self.view.stored[i - current] if i >= current else None
        image_id, table = (stored.image_id, stored.table) if stored else (self.view.ids[i], self.view.table)
        image, raw = self._decoded(i, image_id)
        label = torch.from_numpy(looked_up(table, raw.numpy()))
        return self.transform(image, label, generator(self.seed, self.step, epoch, image_id))

    def _decoded(self, i: int, image_id: str) -> tuple[Tensor, Tensor]:
        if self._kept is None:
            return self.dataset.load(image_id, self.view.split)
        if (found := self._kept.get(i)) is not None:
            return found
        pair = self.dataset.load(image_id, self.view.split)
        self._kept.put(i, pair)
        return pair


def generator(seed: int, step: int, epoch: int, image_id: str) -> np.random.Generator:
    """The random generator of one image in one epoch."""
    text = f"augmentation/{seed}/{step}/{epoch}/{image_id}"
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))


def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W), channels last in memory, and (B, H, W); of a loader process in shared memory, in one copy."""
    images, labels = default_collate([(image.permute(1, 2, 0), label) for image, label in samples])
    return images.permute(0, 3, 1, 2), labels


class _Kept:
    """Decoded images in one shared buffer: image (H, W, 3) and label (H, W) of each, one after the other.

    Two processes that decode the same image write the same bytes; ``there`` is set after the bytes are written.
    """

    def __init__(self, sizes: np.ndarray, share: float) -> None:
        self.sizes = sizes.astype(np.int64)
        ends = np.cumsum(4 * self.sizes.prod(1))
        self.starts = ends - 4 * self.sizes.prod(1)
        self.n = int(np.searchsorted(ends, share * room(), side="right"))  # images that fit
        self.buffer = torch.empty(int(ends[self.n - 1]) if self.n else 0, dtype=torch.uint8).share_memory_()
        self.there = torch.zeros(self.n, dtype=torch.uint8).share_memory_()

    def get(self, i: int) -> tuple[Tensor, Tensor] | None:
        return self._place(i) if i < self.n and self.there[i] else None

    def put(self, i: int, pair: tuple[Tensor, Tensor]) -> None:
        if i < self.n:
            for place, tensor in zip(self._place(i), pair, strict=True):
                place.copy_(tensor)
            self.there[i] = 1

    def _place(self, i: int) -> tuple[Tensor, Tensor]:
        (h, w), start = self.sizes[i].tolist(), int(self.starts[i])
        image, label = self.buffer[start : start + 4 * h * w].split((3 * h * w, h * w))
        return image.view(h, w, 3).permute(2, 0, 1), label.view(h, w)


def _sizes(dataset: SegmentationDataset, view: StepView) -> np.ndarray:
    place = {image_id: i for i, image_id in enumerate(dataset.ids(view.split))}
    return dataset.sizes(view.split)[[place[i] for i in (*view.ids, *(s.image_id for s in view.stored))]]


def room() -> int:
    """Bytes of shared memory that may be used."""
    shared = Path("/dev/shm")
    return int(0.9 * shutil.disk_usage(shared).free) if shared.is_dir() else 1 << 62
