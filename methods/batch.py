"""What a loss reads: one batch, with the quantities that several terms share.

Shapes as in ``methods.base``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID, Step
from contseg.methods.losses import class_sums, full_precision, hot, resize, shrink_labels
from contseg.methods.network import SegOutput

T = TypeVar("T")


def divided(labels: Tensor, stored: Tensor, apart: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B, H, W), which images are stored (B,), and the labels of these, 255 elsewhere.

    ``apart``: the first are then 255 on stored images (``Memory.apart``).
    """
    mine = stored[:, None, None]
    return torch.where(mine & apart, VOID, labels), stored, torch.where(mine, labels, VOID)


class Progress(NamedTuple):
    """Where in a step a batch is: what ramps and averages of weights read.

    ``update`` runs from 0 to ``total`` - 1, also where training was interrupted. ``epoch`` is the number of passes over
    the step's images so far, with its fraction: 1.5 in the middle of the second pass. (With stored images in half of
    each batch it counts as many updates, and a pass is two of them.) ``parts``: micro-batches of an update; their
    losses are averaged.
    """

    update: int = 0
    total: int = 1
    epoch: float = 0.0
    parts: int = 1


class Reduce(Protocol):
    """Sums and maxima over processes, any shape, the result on every process."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum. It is differentiable, and its backward pass sums too: if every process computes the same global
        loss from such sums, the mean of their parameter gradients is exactly the gradient of the global batch."""
        ...

    def max(self, x: Tensor) -> Tensor:
        """The elementwise maximum, detached; ``-inf`` where no process has a value."""
        ...


class Alone:
    """``Reduce`` where there is one process."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x.detach()


alone = Alone()


class Batch:
    """What a term may read of one micro-batch. Derived maps are computed on first use, once.

    ``images`` (B, 3, H, W); ``labels`` (B, H, W) int64 channels, 255 void; ``out`` and ``old`` the outputs of the
    current and of the previous model (``None`` at step 0, or if no term uses it).
    ``pixel_weight``: a function of targets (B, H, W) and the previous model's scores (B, K, H, W) that gives the
    weight of each pixel in a supervised loss (B, H, W), mean 1; ``None``: all weigh 1. Distillation ignores it.
    ``progress`` says where in its step the batch is; all micro-batches of an update have the same.
    ``stored`` (B,) bool: which images come from memory; ``stored_labels`` (B, H, W): their labels, 255 on the others.
    If the method's memory is ``apart``, ``labels`` is 255 on them.
    ``reduce`` is a differentiable sum over processes. Compute a ratio, a maximum or anything else that is not linear in
    the batch from reduced sums: several processes then have exactly the gradient of the global batch.
    Terms must not write to these tensors.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        out: SegOutput,
        old: SegOutput | None,
        step: Step,
        *,
        reduce: Reduce = alone,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        memory: tuple[Tensor, ...] | None = None,
    ) -> None:
        self.images, self.labels, self.out, self.step = images, labels, out, step
        self._old, self.reduce, self.generator = old, reduce, generator
        self.progress = Progress() if progress is None else progress
        self._memory = memory  # which images are stored (B,), and the labels of these (B, H, W)
        self.pixel_weight: Callable[[Tensor, Tensor], Tensor] | None = None
        self._shared: dict[str, Any] = {}

    @property
    def old(self) -> SegOutput:
        """The previous model's output; only for terms that declare ``uses_old``."""
        if self._old is None:
            raise RuntimeError("no previous model here: a term that reads batch.old must set uses_old = True")
        return self._old

    @cached_property
    def stored(self) -> Tensor:
        """(B,) bool: which images come from memory."""
        if self._memory is None:
            return self.labels.new_zeros(len(self.labels), dtype=torch.bool)
        return self._memory[0]

    @cached_property
    def stored_labels(self) -> Tensor:
        """(B, H, W): the labels of stored images; 255 elsewhere."""
        return torch.full_like(self.labels, VOID) if self._memory is None else self._memory[1]

    @cached_property
    def logits(self) -> Tensor:
        """(B, C, H, W), at label size, at least float32."""
        return full_precision(resize(full_precision(self.out.logits), self._size))

    @cached_property
    def old_logits(self) -> Tensor:
        """(B, O, H, W), at label size, no gradient."""
        return full_precision(resize(full_precision(self.old.logits), self._size)).detach()

    @cached_property
    def valid(self) -> Tensor:
        """(B, H, W) bool: not void."""
        return self.labels != VOID

    @cached_property
    def features(self) -> Tensor:
        """(B, D, h, w): the encoder's output, at least float32."""
        return full_precision(self.out.features)

    @cached_property
    def feature_labels(self) -> Tensor:
        """(B, h, w): labels at the size of ``out.features``, nearest neighbour."""
        return shrink_labels(self.labels, self._feature_size)

    @cached_property
    def old_feature_prediction(self) -> Tensor:
        """(B, h, w): arg max of the previous model at label size, then resized to feature size by nearest neighbour."""
        return shrink_labels(self.old_logits.max(1).indices, self._feature_size)

    @cached_property
    def n_valid(self) -> Tensor:
        """Pixels of the global batch that are not void, at least 1 (a scalar, float)."""
        return self.reduce(self.valid.sum().to(self.logits.dtype)).clamp(min=1)

    @cached_property
    def n_pixels(self) -> Tensor:
        """Pixels of the global batch, void ones included (a scalar, float)."""
        return self.reduce(self.logits.new_full((), self.labels.numel()))

    @cached_property
    def flat_features(self) -> Tensor:
        """(B, D, hw): ``features`` with flat positions. All terms share this view, so gradients add in place."""
        return self.features.flatten(2)

    @cached_property
    def class_hot(self) -> Tensor:
        """(B, C, hw): one-hot ``feature_labels``; void belongs to no class."""
        return hot(self.feature_labels, self.step.n_classes, self.features.dtype)

    @cached_property
    def class_counts(self) -> Tensor:
        """(C,): positions of each class in the global batch, at feature size (float; exact up to 2^24)."""
        return self.reduce(self.class_hot.sum((0, 2)))

    @cached_property
    def class_sums(self) -> Tensor:
        """(C, D): sum of ``features`` over the positions of each class in the global batch, with gradient."""
        return self.reduce(class_sums(self.flat_features, self.class_hot))

    @property
    def has_old(self) -> bool:
        """Whether there is an output of the previous model."""
        return self._old is not None

    def share(self, name: str, compute: Callable[[], T]) -> T:
        """A value that several terms of a method use: the first one computes it."""
        if name not in self._shared:
            self._shared[name] = compute()
        found: T = self._shared[name]
        return found

    @property
    def _size(self) -> tuple[int, int]:
        return self.labels.shape[-2], self.labels.shape[-1]

    @property
    def _feature_size(self) -> tuple[int, int]:
        return self.out.features.shape[-2], self.out.features.shape[-1]
