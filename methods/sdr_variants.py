"""SDR's terms as its release computes them and as its authors print them: for study, ``formulation=`` of SDR.

The release selects the features of a class with a mask over (image, channel, position), and reshapes the flat result as
if it were one image. With several images the rows then mix channels (R1); in matching they do for every batch (R2).
``flat_positions`` computes where the mask puts every number, so no loop over classes is needed.
As released, each process computes its own loss and mixes its own images, so ``released`` depends on the number of
processes (rule 16 of the contract check reports it). The loss is the mean over processes; prototypes are summed over
processes. Not reproduced: the rounding noise that the release adds to repulsion from 26 classes on (R11).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch
from contseg.methods.losses import hot
from contseg.methods.mib import UnbiasedCrossEntropy
from contseg.methods.sdr import (
    FORMULATIONS,
    Attraction,
    Matching,
    Prototypes,
    Repulsion,
    Sparsity,
    background_is_trusted,
    class_peaks,
    mean_inverse_distance,
    old_centroids,
    pseudo_labels,
    scaled_sums,
)

# --- as released ---------------------------------------------------------------------------------------------------


def flat_positions(membership: Tensor, channels: int) -> Tensor:
    """(B, D, P) int64: index of every number in ``features[mask of its class]``, a flat list by image, channel, rank.

    membership (B, C, P); 0 at positions without a class.
    """
    members = membership.to(torch.int64)
    inside = members.sum(2)  # (B, C): positions of the class in each image
    before = inside.cumsum(0) - inside  # and in the images before
    owner = members.argmax(1)  # (B, P)
    rank = (members.cumsum(2) - members).gather(1, owner[:, None])  # (B, 1, P)
    channel = torch.arange(channels, device=members.device)[:, None]
    place = before.gather(1, owner)[:, None] * channels + channel * inside.gather(1, owner)[:, None] + rank
    return place * members.sum(1, keepdim=True)


def scattered_sums(features: Tensor, membership: Tensor, places: Tensor) -> Tensor:
    """Sums (C, D) of the numbers of each class and place; features and places (B, D, P)."""
    classes, channels = membership.shape[1], features.shape[1]
    owner = torch.where(membership.any(1), membership.argmax(1), classes)[:, None]  # (B, 1, P); no class: a spare row
    sums = features.new_zeros((classes + 1) * channels)
    return sums.index_add(0, (owner * channels + places).flatten(), features.flatten()).view(-1, channels)[:-1]


def mixed_rows(membership: Tensor, channels: int) -> Tensor:
    """(B, D, P): the channel where R1's reshape to (D, N_c) puts every number."""
    counts = membership.sum((0, 2)).to(torch.int64).clamp(min=1)
    own_count = counts[membership.argmax(1)][:, None]  # (B, 1, P)
    return flat_positions(membership, channels) // own_count


def local_mean(batch: Batch, value: Tensor) -> Tensor:
    """The mean of the values of the processes."""
    return batch.reduce(value) / batch.reduce(torch.ones_like(value))


def mixed_sums(batch: Batch) -> Tensor:
    """(C, D): class sums over this process's batch with R1's mixed channels."""
    features = batch.flat_features
    return scattered_sums(features, batch.class_hot, mixed_rows(batch.class_hot, features.shape[1]))


@dataclass(eq=False)
class ReleasedCrossEntropy(UnbiasedCrossEntropy):
    """An old label of the sequential setup is added to background; still a mean over valid pixels."""

    keeps_old = False


@dataclass(eq=False)
class ReleasedPrototypes(Prototypes):
    """R1 and R5: mixed channels; instead of background, the lowest present class is skipped, whichever it is."""

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        counts = batch.class_counts
        if not background_is_trusted(batch.step):
            counts = torch.where((counts > 0).cumsum(0) == 1, 0, counts)
        return batch.reduce(mixed_sums(batch).detach()), counts


@dataclass(eq=False)
class ReleasedMatching(Matching):
    """R2: number k of the flat list counts for channel k mod D."""

    def __call__(self, batch: Batch) -> Tensor:
        assert self.prototypes.prototypes is not None
        old = slice(1, batch.step.n_old)
        features = batch.flat_features
        membership = hot(pseudo_labels(batch), batch.step.n_old, features.dtype)[:, 1:]
        counts = membership.sum((0, 2))
        places = flat_positions(membership, features.shape[1]) % features.shape[1]
        centroids = scattered_sums(features, membership, places) / counts.clamp(min=1)[:, None]
        gaps = (centroids - self.prototypes.prototypes[old]).square().mean(1) * (counts > 0)
        return local_mean(batch, gaps.sum() / (counts > 0).sum().clamp(min=1))


@dataclass(eq=False)
class ReleasedAttraction(Attraction):
    """R1, R3, R4: mixed channels; class k of n present has weight n^-(n-k+1); background is pulled to its prototype."""

    def __call__(self, batch: Batch) -> Tensor:
        assert self.prototypes.prototypes is not None
        features, membership = batch.flat_features, batch.class_hot
        counts = membership.sum((0, 2))
        present = counts > 0
        n, channels = present.sum(), features.shape[1]
        weights = present / (n.clamp(min=1).to(counts.dtype) ** (n - present.cumsum(0) + 1) * counts.clamp(min=1))
        owner = membership.argmax(1)[:, None]  # (B, 1, P)
        target = self.prototypes.prototypes.flatten()[owner * channels + mixed_rows(membership, channels)]
        per_position = torch.einsum("c,bcp->bp", weights / channels, membership)
        return local_mean(batch, ((features - target).square() * per_position[:, None]).sum())


@dataclass(eq=False)
class ReleasedRepulsion(Repulsion):
    """R1: centroids with mixed channels."""

    def __call__(self, batch: Batch) -> Tensor:
        counts = batch.class_hot.sum((0, 2))
        centroids = mixed_sums(batch) / counts.clamp(min=1)[:, None]
        return local_mean(batch, mean_inverse_distance(centroids, counts > 0))


@dataclass(eq=False)
class ReleasedSparsity(Sparsity):
    """R10: void is a class; 0 if there is only background, or if the sum of the normalised features is <= 0."""

    revision = 1

    def __call__(self, batch: Batch) -> Tensor:
        labels = batch.feature_labels
        classes = batch.step.n_classes
        membership = hot(torch.where(labels == VOID, classes, labels), classes + 1, batch.features.dtype)
        peaks = class_peaks(batch, membership, signed=True)
        exponentials, sums = scaled_sums(batch.flat_features, membership, 1 / (peaks + 1e-15), signed=True)
        on = (sums.sum() > 0) & (labels > 0).any()
        return local_mean(batch, torch.where(on, (exponentials / (sums + 1e-15)).mean(), 0))


# --- as printed ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PrintedMatching(Matching):
    """Sum of the norms (not squared, not averaged) over present classes, divided by the number O of old classes."""

    def __call__(self, batch: Batch) -> Tensor:
        prototypes, known = self.prototypes.trusted(batch.step)
        centroids, counts = old_centroids(batch)
        old = slice(1, batch.step.n_old)
        norms = torch.linalg.vector_norm(centroids - prototypes[old], dim=1)
        return (norms * ((counts > 0) & known[old])).sum() / batch.step.n_old


@dataclass(eq=False)
class PrintedAttraction(Attraction):
    """Sum over positions of the norm, not squared, divided by the number of present classes."""

    def __call__(self, batch: Batch) -> Tensor:
        prototypes, known = self.prototypes.trusted(batch.step)
        present = (batch.class_counts > 0) & known
        target = prototypes.T @ batch.class_hot  # (B, D, P)
        norms = torch.linalg.vector_norm(batch.flat_features - target, dim=1)
        counted = torch.einsum("c,bcp->bp", present.to(norms.dtype), batch.class_hot)
        return batch.reduce((norms * counted).sum()) / present.sum().clamp(min=1)


@dataclass(eq=False)
class PrintedRepulsion(Repulsion):
    """Sum over all other classes for each class: (K - 1) times the mean over pairs."""

    def __call__(self, batch: Batch) -> Tensor:
        others: Tensor = ((batch.class_counts > 0).sum() - 1).clamp(min=0)
        return super().__call__(batch) * others


FORMULATIONS["released"] = {
    "unce": ReleasedCrossEntropy,
    "prototypes": ReleasedPrototypes,
    "matching": ReleasedMatching,
    "attraction": ReleasedAttraction,
    "repulsion": ReleasedRepulsion,
    "sparsity": ReleasedSparsity,
}
FORMULATIONS["printed"] = {
    **FORMULATIONS["intended"],
    "matching": PrintedMatching,
    "attraction": PrintedAttraction,
    "repulsion": PrintedRepulsion,
}
