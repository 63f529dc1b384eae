"""Random numbers: one generator for each purpose, a function of (seed, step, purpose) only."""

from __future__ import annotations

import hashlib
import itertools
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

    def __init__(self, images: int, batch: int, seed: int, step: int, purpose: str = "order") -> None:
        self.images, self.batch, self.seed, self.step, self.purpose = images, batch, seed, step, purpose
        self.per_epoch = max(1, images // batch)
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, update: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of an update's global batch."""
        epoch, position = divmod(update, self.per_epoch)
        order = self._epoch(epoch)
        return [(epoch, i) for i in order[position * self.batch : (position + 1) * self.batch]]

    def _draw(self, epoch: int) -> list[int]:
        return self.permutation(epoch, -(-self.batch // self.images) if self.images < self.batch else 1)

    def permutation(self, epoch: int, rounds: int = 1) -> list[int]:
        """So many permutations of all images, one after the other. Passes outside the updates have an epoch below 0."""
        generator = torch.Generator().manual_seed(derive(self.seed, self.step, self.purpose, epoch))
        return torch.cat([torch.randperm(self.images, generator=generator) for _ in range(rounds)]).tolist()


class HalfStored:
    """Batches with slots reserved for stored images, which have the indices from ``order.images`` on.

    ``parts``: micro-batches of an update. Each has its share of the slots, at its end, so that every process has one
    too. Stored images take turns in an order of their own and are repeated as often as needed.
    """

    def __init__(self, order: Order, stored: Order, parts: int) -> None:
        self.order, self.stored, self.parts, self.batch = order, stored, parts, order.batch + stored.batch

    def __getitem__(self, update: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of an update's global batch."""
        current = iter(self.order[update])
        stored = [(epoch, self.order.images + i) for epoch, i in self.stored[update]]
        ends = [len(stored) * part // self.parts for part in range(self.parts + 1)]
        batch: list[tuple[int, int]] = []
        for a, b in itertools.pairwise(ends):
            batch += [*itertools.islice(current, self.batch // self.parts - (b - a)), *stored[a:b]]
        return batch
