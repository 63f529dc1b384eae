"""Random numbers: one generator for each purpose, a function of (seed, step, purpose) only."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose: ``derive(0, 2, "order", epoch)``."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Order:
    """Which images each update sees: a new permutation for each epoch; the last, smaller batch is dropped.

    If a step has fewer images than a batch, several permutations fill the batch: a small step still trains one update
    an epoch, and no batch is smaller than configured.
    """

    def __init__(self, images: int, batch: int, seed: int, step: int) -> None:
        self.images, self.batch, self.seed, self.step = images, batch, seed, step
        self.per_epoch = max(1, images // batch)
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, update: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of an update's global batch."""
        epoch, position = divmod(update, self.per_epoch)
        order = self._epoch(epoch)
        return [(epoch, i) for i in order[position * self.batch : (position + 1) * self.batch]]

    def _draw(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive(self.seed, self.step, "order", epoch))
        rounds = -(-self.batch // self.images) if self.images < self.batch else 1
        return torch.cat([torch.randperm(self.images, generator=generator) for _ in range(rounds)]).tolist()
