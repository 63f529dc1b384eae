"""The terms of FT, LwF, ILT, MiB and SDR by name, and random batches for them: material of their tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contseg.datasets.scenario import VOID, Step
from contseg.methods.base import Batch, CrossEntropy, SegOutput, Term, alone
from contseg.methods.ilt import FeatureDistillation
from contseg.methods.lwf import Distillation
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation
from contseg.methods.sdr import Attraction, Matching, Prototypes, Repulsion, Sparsity
from contseg.methods.sdr_variants import (
    PrintedAttraction,
    PrintedMatching,
    PrintedRepulsion,
    ReleasedAttraction,
    ReleasedMatching,
    ReleasedRepulsion,
    ReleasedSparsity,
)

O, N, D = 4, 2, 6  # old channels, new ones, feature channels
C = O + N


def step(setup: str = "disjoint", index: int = 1, old: int = O, new: int = N) -> Step:
    if index == 0:
        return Step(0, setup, (), tuple(range(1, old + new)))
    return Step(index, setup, tuple(range(1, old)), tuple(range(old, old + new)))


class Data:
    """Random tensors of one batch; labels are those of the step, void among them."""

    def __init__(self, seed: int = 0, images: int = 3, setup: str = "disjoint", index: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.step = step(setup, index)
        allowed = [0, *range(O, C), VOID] if setup != "sequential" and index else [*range(C), VOID]
        coarse = torch.tensor(allowed)[torch.randint(len(allowed), (images, 3, 5), generator=g)]
        self.labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
        self.logits = torch.randn(images, C, 6, 10, generator=g, dtype=torch.float64) * 3
        self.old_logits = torch.randn(images, O, 6, 10, generator=g, dtype=torch.float64) * 3
        self.features = torch.randn(images, D, 3, 5, generator=g, dtype=torch.float64).abs()
        self.old_features = torch.randn(images, D, 3, 5, generator=g, dtype=torch.float64)
        self.prototypes = torch.randn(C, D, generator=g, dtype=torch.float64)

    def cut(self, images: slice | Tensor) -> "Data":
        """These images of the batch; gradients still reach the whole."""
        part = object.__new__(Data)
        part.__dict__.update(self.__dict__)
        for name in ("labels", "logits", "old_logits", "features", "old_features"):
            setattr(part, name, getattr(self, name)[images])
        return part

    def batch(self, reduce: Callable = alone) -> Batch:
        images = torch.zeros(len(self.labels), 3, 6, 10)
        out = SegOutput(self.logits, self.features, self.features)
        old = SegOutput(self.old_logits, self.old_features, self.old_features)
        return Batch(images, self.labels, out, old, self.step, reduce=reduce)

    def held(self, kind: type[Prototypes] = Prototypes) -> Prototypes:
        term = kind()
        term.prototypes, term.counts = self.prototypes.clone(), torch.ones(C, dtype=torch.int64)
        return term


INTENDED: dict[str, Callable[[Data], Term]] = {
    "ce": lambda d: CrossEntropy(),
    "kd": lambda d: Distillation(),
    "features": lambda d: FeatureDistillation(),
    "unce": lambda d: UnbiasedCrossEntropy(),
    "unkd": lambda d: UnbiasedDistillation(),
    "matching": lambda d: Matching(d.held()),
    "attraction": lambda d: Attraction(d.held()),
    "repulsion": lambda d: Repulsion(),
    "sparsity": lambda d: Sparsity(),
    "printed matching": lambda d: PrintedMatching(d.held()),
    "printed attraction": lambda d: PrintedAttraction(d.held()),
    "printed repulsion": lambda d: PrintedRepulsion(),
}
RELEASED: dict[str, Callable[[Data], Term]] = {
    "released matching": lambda d: ReleasedMatching(d.held()),
    "released attraction": lambda d: ReleasedAttraction(d.held()),
    "released repulsion": lambda d: ReleasedRepulsion(),
    "released sparsity": lambda d: ReleasedSparsity(),
}
SUPERVISED = ("ce", "unce", "attraction", "repulsion", "sparsity", "printed attraction", "printed repulsion")
SETUPS = ("sequential", "disjoint", "overlapped", "partitioned")
each_term = pytest.mark.parametrize("name", INTENDED)
each_setup = pytest.mark.parametrize("setup", SETUPS)


def gradients(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The gradients, zero where the value does not depend on the leaf."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))


def value_and_gradients(term: Term, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    data.logits.requires_grad_()
    data.features.requires_grad_()
    value = term(data.batch())
    assert value is not None
    return value.detach(), *gradients(value, data.logits, data.features)


def positions(data: Data) -> dict[int, Tensor]:
    """Features (n, D) of each class of the batch."""
    labels, flat = data.labels[:, ::2, ::2].flatten(), data.features.movedim(1, -1).flatten(0, 2)
    return {int(c): flat[labels == c] for c in labels.unique() if c != VOID}
