"""SDR: sparse and disentangled representations. Michieli and Zanuttigh, CVPR 2021, arXiv 2103.06342.

Four terms on the encoder's features, with running class prototypes: matching keeps the features of old classes in
place, attraction and repulsion separate the classes, sparsity leaves capacity for future classes. These are the
intended formulas; the released and the printed forms differ (``sdr_variants``).

``f_i`` (D,): the feature at position i of ``B h w``; ``y_i``: its label; ``mu_c`` (D,): the running prototype of class
c; ``K``: the classes of the batch. No term uses void. Sums and counts are those of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, CrossEntropy, Method, StepContext, Term
from contseg.methods.fit import ENCODER
from contseg.methods.losses import class_sums, hot, tiles
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_addon, register_method

PAPER = "Michieli and Zanuttigh, CVPR 2021, arXiv 2103.06342"
Formulation = Literal["intended", "released", "printed"]


def background_is_trusted(step: Step) -> bool:
    """Whether the label background means background: false if it includes classes that were or will be learned."""
    return step.setup == "sequential" or (step.index == 0 and step.setup != "overlapped")


@dataclass(eq=False)
class Prototypes(Term):
    """Mean feature of every class over all positions seen so far (F-PROTO); it never decays.

    Background is skipped if its label is not trusted. The release has one set of prototypes for each process.
    """

    observes = True
    state = ("prototypes", "counts")

    prototypes: Tensor | None = field(default=None, init=False)  # (C, D)
    counts: Tensor | None = field(default=None, init=False)  # (C,) int64

    def begin_step(self, ctx: StepContext) -> None:
        if self.prototypes is not None and self.counts is not None:
            grown = ctx.step.n_classes - len(self.counts)
            device = next(ctx.model.parameters()).device
            self.prototypes = F.pad(self.prototypes, (0, 0, 0, grown)).to(device)
            self.counts = F.pad(self.counts, (0, grown)).to(device)

    def __call__(self, batch: Batch) -> None:
        sums, counts = self.seen(batch)
        if self.prototypes is None:
            self.prototypes, self.counts = torch.zeros_like(sums), torch.zeros_like(counts, dtype=torch.int64)
        if not background_is_trusted(batch.step):
            counts = counts * (torch.arange(len(counts), device=counts.device) > 0)
        self.update(sums, counts)

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums (C, D) and counts (C,) of this batch."""
        return batch.class_sums.detach(), batch.class_counts

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Update the mean of every class with a count."""
        assert self.prototypes is not None and self.counts is not None
        total = self.counts + counts.round().to(torch.int64)
        shift = (sums - counts[:, None] * self.prototypes) / total.clamp(min=1).to(sums.dtype)[:, None]
        self.prototypes = torch.where((counts > 0)[:, None], self.prototypes + shift, self.prototypes)
        self.counts = total

    def trusted(self, step: Step) -> tuple[Tensor, Tensor]:
        """The prototypes (C, D), and (C,) bool: whether each is known and trusted."""
        assert self.prototypes is not None and self.counts is not None, "prototypes come before the terms that use them"
        known = self.counts > 0
        if not background_is_trusted(step):
            known = known & (torch.arange(len(known), device=known.device) > 0)
        return self.prototypes, known


def pseudo_labels(batch: Batch) -> Tensor:
    """(B, h, w): old class of each position, 0 where there is none.

    The label itself in the sequential setup; elsewhere the previous model's class where the label is background.
    """
    labels = batch.feature_labels
    if batch.step.setup == "sequential":
        return torch.where(labels < batch.step.n_old, labels, 0)
    return torch.where(labels == 0, batch.old_feature_prediction, 0)


@dataclass(eq=False)
class Matching(Term):
    """F-PM: mean over present old foreground classes of the mean squared distance from centroid to prototype."""

    uses_old = True
    acts_through: ClassVar[str] = ENCODER

    prototypes: Prototypes

    def __call__(self, batch: Batch) -> Tensor:
        prototypes, known = self.prototypes.trusted(batch.step)
        centroids, counts = old_centroids(batch)
        old = slice(1, batch.step.n_old)
        present = (counts > 0) & known[old]
        gaps = (centroids - prototypes[old]).square().mean(1)
        return (gaps * present).sum() / present.sum().clamp(min=1)


def old_centroids(batch: Batch) -> tuple[Tensor, Tensor]:
    """Centroids (O - 1, D) and counts of the old foreground classes after ``pseudo_labels``."""
    membership = hot(pseudo_labels(batch), batch.step.n_old, batch.features.dtype)[:, 1:]
    counts = batch.reduce(membership.sum((0, 2)))
    return batch.reduce(class_sums(batch.flat_features, membership)) / counts.clamp(min=1)[:, None], counts


@dataclass(eq=False)
class Attraction(Term):
    """F-ATT: mean over present classes of the mean squared distance, over positions and channels, to the prototype.

    A class without a trusted prototype, such as background in the overlapped setup, is left out. The release pulls it
    to the origin.
    """

    acts_through: ClassVar[str] = ENCODER

    prototypes: Prototypes

    def __call__(self, batch: Batch) -> Tensor:
        prototypes, known = self.prototypes.trusted(batch.step)
        counts = batch.class_counts
        present = (counts > 0) & known
        per_position = present / (present.sum().clamp(min=1) * counts.clamp(min=1) * prototypes.shape[1])
        weights = torch.einsum("c,bcp->bp", per_position.to(prototypes.dtype), batch.class_hot)
        gap: Tensor = _SquaredGap.apply(batch.flat_features, prototypes, batch.class_hot, weights)
        return batch.reduce(gap)


@dataclass(eq=False)
class Repulsion(Term):
    """F-REP: mean over pairs of present classes of the inverse distance of their centroids; 0 below two classes.

    Distances are computed from differences, never from products, so equal centroids have distance exactly zero; they
    then add nothing. (From 26 classes on, the release's ``cdist`` adds the rounding noise between a class and itself.)
    """

    uses_setup = False
    acts_through: ClassVar[str] = ENCODER

    def __call__(self, batch: Batch) -> Tensor:
        present = batch.class_counts > 0
        return mean_inverse_distance(batch.class_sums / batch.class_counts.clamp(min=1)[:, None], present)


def mean_inverse_distance(centroids: Tensor, present: Tensor) -> Tensor:
    """Centroids (C, D), present (C,) bool -> scalar."""
    i, j = torch.triu_indices(len(present), len(present), offset=1, device=present.device)
    distances = F.pdist(centroids)
    pairs = present[i] & present[j]
    apart = pairs & (distances > 0)
    inverse = torch.where(apart, 1 / torch.where(apart, distances, 1), 0)
    return inverse.sum() / pairs.sum().clamp(min=1)


@dataclass(eq=False)
class Sparsity(Term):
    """F-SP: mean over positions of (sum_j exp a_j) / (sum_j a_j + phi), a = |f| / max |f| of the position's class.

    The gradient flows through the maximum. phi is the most negative feature of the class, divided by the same maximum,
    and is a constant. If no feature is negative, phi is 0 and this is the published ratio to the last bit. With phi no
    denominator of a class with negative features is near zero, neither by cancellation nor for a small vector: with
    m = max |f|, value <= e D / phi and |d value / d f| <= 2 e (D + 1) / (phi^2 m).
    A position whose sizes sum to less than ``TINY``, such as an all-zero vector, has no such ratio and is left out. The
    release divides by 1e-15 there, treats void as a class, and gives 0 if there is only background.
    """

    uses_setup = False
    acts_through: ClassVar[str] = ENCODER
    revision = 2  # features may be negative

    def __call__(self, batch: Batch) -> Tensor:
        peaks = class_peaks(batch, batch.class_hot, signed=False)
        usable = (peaks > 0) & (1 / peaks / peaks).isfinite()  # otherwise the gradient is NaN
        scale = torch.where(usable, 1 / torch.where(usable, peaks, 1), 0)
        lowest = batch.reduce.max(by_class(-extremes(batch)[0], batch.class_hot).amax(1)).clamp(min=0)
        exponentials, sums = scaled_sums(batch.flat_features, batch.class_hot, scale, signed=False)
        phi = torch.einsum("c,bcp->bp", lowest * scale.detach(), batch.class_hot)
        counted = sums > TINY
        ratios = torch.where(counted, exponentials / torch.where(counted, sums + phi, 1), 0)
        return batch.reduce(ratios.sum()) / batch.reduce(counted.sum().to(ratios.dtype)).clamp(min=1)


TINY = 1e-4  # of the class's maximum: features whose sizes sum to less count as zero


def extremes(batch: Batch) -> tuple[Tensor, Tensor]:
    """Lowest and highest feature of each position, both (B, P), without gradient."""
    features = batch.flat_features.detach()
    return batch.share("extremes", lambda: (features.amin(1), features.amax(1)))  # twice as fast as aminmax


def by_class(values: Tensor, membership: Tensor) -> Tensor:
    """Values (B, P), membership (B, C, P) -> (C, B P): -inf at positions of other classes."""
    return torch.where(membership > 0, values[:, None], -torch.inf).transpose(0, 1).flatten(1)


def class_peaks(batch: Batch, membership: Tensor, signed: bool) -> Tensor:
    """(C,): maximum of f, or of |f| unless ``signed``, over the channels and positions of each class; 0 where absent.

    Over the global batch. The gradient goes to the maximal element, in equal shares if several processes have the same
    maximum. The slope of |f| at zero is 1, because features after a ReLU are often zero.
    """
    features = batch.flat_features
    low, high = extremes(batch)
    highest = high if signed else torch.maximum(high, -low)
    here, where = by_class(highest, membership).max(1)  # (C,): this process's peaks and their places in B P
    pixels = features.shape[2]
    there = features[where // pixels, :, where % pixels]  # (C, D)
    own = (there if signed else torch.where(there < 0, -there, there)).amax(1)
    is_peak = (here == batch.reduce.max(here)) & (here > -torch.inf)
    ties = batch.reduce(is_peak.to(own.dtype)).clamp(min=1)
    return batch.reduce(torch.where(is_peak, own, 0)) / ties


def scaled_sums(features: Tensor, membership: Tensor, scale: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Maps (B, P) of sum_j exp(s a_j) and sum_j s a_j, where s is the scale (C,) of the position's class, or 0.

    features (B, D, P), membership (B, C, P); a is f if ``signed``, else |f|.
    """
    own = torch.einsum("c,bcp->bp", scale, membership)
    exponentials, sums = _ExpSums.apply(features, own, signed)
    return exponentials, sums * own


class _SquaredGap(torch.autograd.Function):
    """sum_i w_i |f_i - mu_{y_i}|^2, tile by tile, without a second map as large as the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, membership: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(features, prototypes, membership, weights)
        total = features.new_zeros(())
        for b, p in tiles(features):
            here = membership[b, :, p]
            gap = torch.baddbmm(features[b, :, p], _each(prototypes.T, here), here, alpha=-1)
            total += (gap.square_().sum(1) * weights[b, p]).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, prototypes, membership, weights = ctx.saved_tensors
        out = torch.empty_like(features)
        for b, p in tiles(features):
            here = membership[b, :, p]
            torch.baddbmm(features[b, :, p], _each(prototypes.T, here), here, alpha=-1, out=out[b, :, p])
            out[b, :, p].mul_((2 * grad * weights[b, p])[:, None])
        return out, None, None, None


def _each(matrix: Tensor, images: Tensor) -> Tensor:
    """The same matrix for every image."""
    return matrix.expand(len(images), -1, -1)


class _ExpSums(torch.autograd.Function):
    """sum_j exp(s a_j) and sum_j a_j, tile by tile: f (B, D, P), s (B, P) -> two maps (B, P); a is f or |f|."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features, scale)
        ctx.signed = signed
        exponentials, sums = torch.empty_like(scale), torch.empty_like(scale)
        for b, p in tiles(features):
            size = features[b, :, p].clone() if signed else features[b, :, p].abs()
            torch.sum(size, 1, out=sums[b, p])
            torch.sum(size.mul_(scale[b, None, p]).exp_(), 1, out=exponentials[b, p])
        return exponentials, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_exponentials: Tensor, d_sums: Tensor) -> tuple[Tensor | None, ...]:
        features, scale = ctx.saved_tensors
        out, out_scale = torch.empty_like(features), torch.empty_like(scale)
        for b, p in tiles(features):
            tile, s, d, here = features[b, :, p], scale[b, p], d_exponentials[b, p], out[b, :, p]
            torch.mul(tile, s[:, None], out=here)
            weighted = tile * (here if ctx.signed else here.abs_()).exp_()
            out_scale[b, p] = (weighted if ctx.signed else weighted.abs_()).sum(1) * d
            here.mul_((d * s)[:, None]).add_(d_sums[b, None, p])
            if not ctx.signed:  # the slope of |f|: -1 where f < 0
                here.addcmul_(here, torch.lt(tile, 0, out=weighted), value=-2)
        return out, out_scale, None


# formulation -> the class of each term; ``sdr_variants`` adds the forms for study
FORMULATIONS: dict[str, dict[str, type[Any]]] = {
    "intended": {
        "unce": UnbiasedCrossEntropy,
        "prototypes": Prototypes,
        "matching": Matching,
        "attraction": Attraction,
        "repulsion": Repulsion,
        "sparsity": Sparsity,
    }
}


# --- the recipe ----------------------------------------------------------------------------------------------------


@register_addon("SDR", paper=PAPER)
def latent(
    matching: Annotated[Weight | None, Search(0.001, 1)] = 1e-2,
    attraction: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    repulsion: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    sparsity: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    formulation: Formulation = "intended",
) -> Method:
    """The four latent terms, to be added to any method.

    matching: weight of prototype matching, none leaves it out; 1e-2 in the release's preset
    attraction: weight of the pull towards prototypes; 1e-3 in the release's preset
    repulsion: weight of the push between classes; 1e-3 in the release's preset
    sparsity: weight of sparsity; 1e-3 in the release's preset
    formulation: intended formulas, or as the release computes them, or as the authors print them
    """
    forms = FORMULATIONS[formulation]
    prototypes = forms["prototypes"]()
    wanted = {"matching": matching, "attraction": attraction, "repulsion": repulsion, "sparsity": sparsity}
    terms: dict[str, Term] = {}
    for name, weight in wanted.items():
        if weight:
            shared = {"prototypes": prototypes} if name in ("matching", "attraction") else {}
            terms[name] = forms[name](weight=weight, **shared)
    observed = {"prototypes": prototypes} if matching or attraction else {}
    return Method("SDR", terms={**observed, **terms}, first=dict(observed))


@register_method("SDR", paper=PAPER)
def sdr(
    kd: Annotated[Weight, Search(10, 1000)] = 100.0,
    *,
    matching: Annotated[Weight | None, Search(0.001, 1)] = 1e-2,
    attraction: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    repulsion: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    sparsity: Annotated[Weight | None, Search(0.0001, 0.1)] = 1e-3,
    formulation: Formulation = "intended",
) -> Method:
    """The released preset: MiB's losses without its initialisation, and the four latent terms.

    kd: weight of the unbiased distillation; 100 in the release's preset
    matching: weight of prototype matching, none leaves it out; 1e-2 in the release's preset
    attraction: weight of the pull towards prototypes; 1e-3 in the release's preset
    repulsion: weight of the push between classes; 1e-3 in the release's preset
    sparsity: weight of sparsity; 1e-3 in the release's preset
    formulation: intended formulas, or as the release computes them, or as the authors print them
    """
    unce: Term = FORMULATIONS[formulation]["unce"]()
    terms: dict[str, Term] = {"unce": unce, "unkd": UnbiasedDistillation(weight=kd)}
    base = Method("SDR", terms=terms, first={"ce": CrossEntropy()})
    return base.plus(latent(matching, attraction, repulsion, sparsity, formulation))
