"""REMINDER: class similarity weighted distillation (Phan et al., CVPR 2022), on top of PLOP.

On the pixels of a new class the previous model's output is distilled. The weight of an old class grows with the
similarity of its prototype to that of the new class. Source: F-CSW and F-CSW-PROTO of docs/methods.md, from the
released code (``REMINDER@f8d225e``, numbers only).

``delta`` is a parameter because it changes the method. With 0, the release's preset for VOC, the weights are nearly
uniform, and the term is close to plain distillation on new pixels divided by O. With 1, as in all its scripts for ADE,
old classes with a similarity below the average are left out.
Differs from the release: no 1e-7 is added to the target; a batch without new pixels gives 0, not NaN; prototypes and
means are those of all processes.

Shapes: ``E`` channels of the embedding, the input of the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, Method, Reduce, StepContext, Term, full_precision
from contseg.methods.plop import plop
from contseg.methods.ranges import Positive, Search, Weight
from contseg.methods.registry import register_method


def class_means(embedding: Tensor, labels: Tensor, first: int, last: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Means (K, E) and pixel counts (K,) of classes ``first`` to ``last - 1`` at label size, over all processes.

    embedding (B, E, h, w), upsampled bilinearly with aligned corners; labels (B, H, W). A class without pixels has the
    mean 0. Instead of upsampling E channels of features, the K masks are resized by the transposed upsampling.
    """
    masks = (labels[:, None] == torch.arange(first, last, device=labels.device)[:, None, None]).to(embedding.dtype)
    up_h, up_w = (_upsampling(embedding, dim, labels.shape[dim - 1]) for dim in (2, 3))
    shares = torch.einsum("hH,bkHW,wW->bkhw", up_h, masks, up_w)
    counts = reduce(masks.sum((0, 2, 3)))
    sums = reduce(torch.einsum("bkhw,behw->ke", shares, embedding))
    return sums / counts.clamp(min=1)[:, None], counts


def _upsampling(embedding: Tensor, dim: int, size: int) -> Tensor:
    """(n, size): the weight of each of the n positions along ``dim`` at each position after upsampling."""
    n = embedding.shape[dim]
    unit = torch.eye(n, dtype=embedding.dtype, device=embedding.device)
    return F.interpolate(unit[None], size=size, mode="linear", align_corners=True)[0]


def similarity_weights(new: Tensor, old: Tensor, delta: float) -> Tensor:
    """(N, O): softmax over old classes of the cosine with a new class; weights below delta / O become 0 (F-CSW).

    new (N, E), old (O, E). No temperature, and no renormalisation after the threshold.
    """
    cosine = F.normalize(new, dim=1) @ F.normalize(old, dim=1).T
    weights = cosine.softmax(1)
    return torch.where(weights < delta / len(old), 0.0, weights)


def weighted_distillation(
    logits: Tensor, old_logits: Tensor, labels: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum over the pixels of new classes of the weighted cross entropy, and their number |M| (F-CSW).

    logits (B, C, H, W), only the O old channels are used; old_logits (B, O, H, W); weights (N, O).
    """
    n_old = old_logits.shape[1]
    chosen = (labels >= n_old) & (labels != VOID)
    target = (old_logits / temperature).softmax(1)
    log_p = (logits[:, :n_old] / temperature).log_softmax(1)
    weight = F.embedding(torch.where(chosen, labels - n_old, 0), weights).movedim(-1, 1)  # (B, O, H, W)
    pixels = -(weight * target * log_p).sum(1)
    return temperature**2 * (pixels * chosen).sum(), chosen.sum().to(pixels.dtype)


@dataclass(eq=False)
class BatchPrototypes(Term):
    """The mean embedding of each class: the mean over batches of the batch's mean, for any pixel count (F-CSW-PROTO).

    Computed after a step in one pass over its images, for the new classes of the step. Prototypes of earlier classes do
    not change; that of background is from step 0.
    """

    observes = True
    uses_setup = False
    state = ("prototypes",)

    prototypes: Tensor | None = field(default=None, init=False)

    @torch.no_grad()
    def end_step(self, ctx: StepContext) -> None:
        """One pass with the model in evaluation mode."""
        first, last = ctx.step.n_old, ctx.step.n_classes
        training = ctx.model.training
        ctx.model.eval()
        batches = [
            class_means(full_precision(ctx.model(images).embedding), labels, first, last, ctx.reduce)
            for images, labels in ctx.loader()
        ]
        ctx.model.train(training)
        means = torch.stack([mean for mean, _ in batches]).sum(0)
        present = torch.stack([count > 0 for _, count in batches]).sum(0)
        new = means / present.clamp(min=1)[:, None]
        self.prototypes = new if self.prototypes is None else torch.cat([self.prototypes[:first], new])


@dataclass(eq=False)
class SimilarityDistillation(Term):
    """F-CSW: distillation on the pixels of new classes, weighted by their similarity to each old class."""

    uses_old = True
    uses_setup = False

    prototypes: BatchPrototypes
    delta: float = 0.0
    temperature: float = 3.0

    def __call__(self, batch: Batch) -> Tensor:
        old, n_old = self.prototypes.prototypes, batch.step.n_old
        assert old is not None  # computed at the end of the previous step
        embedding = full_precision(batch.out.embedding).detach()
        means, _ = class_means(embedding, batch.labels, n_old, batch.step.n_classes, batch.reduce)
        weights = similarity_weights(means, old[:n_old].to(means), self.delta)
        total, count = weighted_distillation(batch.logits, batch.old_logits, batch.labels, weights, self.temperature)
        return batch.reduce(total) / batch.reduce(count).clamp(min=1)


@register_method("REMINDER", paper="Phan et al., CVPR 2022")
def reminder(
    csw: Annotated[Weight, Search(0.05, 5)] = 0.5,
    delta: Weight = 0.0,
    temperature: Positive = 3.0,
    pod: Annotated[Weight, Search(0.001, 0.1)] = 0.01,
    pod_logits: Annotated[Weight, Search(0.00005, 0.005)] = 0.0005,
) -> Method:
    """PLOP plus distillation on the pixels of new classes, weighted by the similarity of classes.

    csw: weight of the similarity weighted distillation; 0.5 as released (argparser.py:67)
    delta: old classes with a weight below delta / O are left out; 0 for VOC, 1 for ADE as released
    temperature: of the distillation; 3 as released (utils/loss.py:327)
    pod: factor of the encoder's stages and the embedding; 0.01 for VOC, 0.001 for ADE as released
    pod_logits: factor of the logits; 0.0005 for VOC, 0.00001 for ADE as released
    """
    prototypes = BatchPrototypes()
    term = SimilarityDistillation(prototypes, delta, temperature, weight=csw)
    added = Method("CSW", terms={"csw": term, "means": prototypes}, first={"means": prototypes})
    return replace(plop(pod, pod_logits).plus(added), name="REMINDER")
