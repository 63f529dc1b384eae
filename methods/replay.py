"""Memory as an add-on, and the rows of papers that store images: SSUL-M, DKD-M, STAR-M, MiB-AugM.

After a step some of its images are kept and shown again later. Releases differ above all in the labels that a stored
image carries: those of all classes seen (SSUL-M), of the current step only, so that every old class in it is background
(DKD-M, STAR-M), or of the step in which it was training data (CISS_partitioned). The last is the default of the add-on.

Sources: F-MEM-ROUND, F-MEM-GREEDY, F-MEM-LABEL and F-AUGM-CE of docs/methods.md, from ``SSUL@e08ee9c``,
``DKD@fb4693f``, ``STAR@9e31f36`` and ``CISS_partitioned@7353b46``. Differs from all of them: images are chosen by their
own labels on the whole image, without pseudo-labels (from the second step on those of DKD, STAR and CISS_partitioned
come from a network whose weights are not loaded), and not from random crops (DKD, STAR).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, Method, Term
from contseg.methods.dkd import dkd, multi_bce
from contseg.methods.fit import OLD_ROWS
from contseg.methods.memory import Labels, Memory, Mix, Policy
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation, background_shares
from contseg.methods.ranges import Count, Number, Search, Share, Weight
from contseg.methods.registry import register_addon, register_method
from contseg.methods.ssul import ssul
from contseg.methods.star import star

Loss: TypeAlias = Literal["shared", "augm", "bce"]
CISS = "CISS_partitioned; the abstract alone was read"


def augmented_cross_entropy(logits: Tensor, labels: Tensor, n_old: int) -> Tensor:
    """(B, H, W): cross entropy in which background takes in the new classes; 0 where void (F-AUGM-CE).

    logits (B, C, H, W), labels (B, H, W); a label of a new class counts as background. The mirror of MiB's F-UNCE.
    """
    background = torch.logaddexp(logits[:, 0], logits[:, n_old:].logsumexp(1))
    old = (labels > 0) & (labels < n_old)
    own = logits.gather(1, torch.where(old, labels, 0)[:, None])[:, 0]
    return (logits.logsumexp(1) - torch.where(old, own, background)) * (labels != VOID)


@dataclass(eq=False)
class AugmentedCrossEntropy(Term):
    """F-AUGM-CE of the stored images, mean over their valid pixels; 0 without a stored image."""

    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        labels = batch.stored_labels
        return _mean(batch, augmented_cross_entropy(batch.logits, labels, batch.step.n_old))


@dataclass(eq=False)
class OldRowsBCE(Term):
    """Binary cross entropy of the old foreground rows on the stored images, summed over rows, mean over valid pixels.

    For methods with a sigmoid of each class, such as DKD.
    """

    uses_setup = False
    acts_through: ClassVar[str] = OLD_ROWS

    def __call__(self, batch: Batch) -> Tensor:
        labels = batch.stored_labels
        return _mean(batch, multi_bce(batch.logits[:, : batch.step.n_old], labels, 1, 1.0) * (labels != VOID))


def _mean(batch: Batch, pixels: Tensor) -> Tensor:
    """Over the valid pixels of stored images of all processes."""
    n = (batch.stored_labels != VOID).sum().to(pixels.dtype)
    return batch.reduce(pixels.sum()) / batch.reduce(n).clamp(min=1)


@register_addon("Memory", paper="SSUL, NeurIPS 2021; DKD, NeurIPS 2022; STAR, NeurIPS 2023; CISS_partitioned")
def memory(
    size: Number = 100, policy: Policy = "round", labels: Labels = "own", mix: Mix = "half", loss: Loss = "shared"
) -> Method:
    """Images of earlier steps are stored and shown again.

    size: images in memory; 100 for VOC, 300 for ADE as released (STAR: 50); 0 stores none
    policy: round takes classes in turn (SSUL, DKD, STAR), greedy those with the fewest images (CISS_partitioned)
    labels: own are those of the image's own step; as released all in SSUL-M, current in DKD-M and STAR-M
    mix: half of each batch (SSUL-M, CISS_partitioned), or append to the step's images (DKD-M, STAR-M)
    loss: shared is the method's own; augm (softmax) and bce (sigmoids) train old classes on stored images alone
    """
    if not size:
        return Method("Memory", terms={}, first={})
    terms: dict[Loss, dict[str, Term]] = {
        "shared": {},
        "augm": {"augm": AugmentedCrossEntropy()},
        "bce": {"old bce": OldRowsBCE()},
    }
    return Method("Memory", terms=terms[loss], first={}, memory=Memory(size, policy, labels, mix, loss != "shared"))


@register_method("SSUL-M", paper="Cha et al., NeurIPS 2021, arXiv 2106.11562")
def ssul_m(size: Count = 100, labels: Labels = "all", threshold: Share = 0.7) -> Method:
    """SSUL+Memory[labels=all]: SSUL with stored images in half of each batch; without saliency.

    size: images in memory; 100 for VOC, 300 for ADE as released
    labels: of stored images; all classes seen as released, own are those of the image's own step
    threshold: sigmoid from which the previous model's class becomes a pseudo-label; 0.7 as released
    """
    return replace(ssul(threshold), name="SSUL-M", memory=Memory(size, labels=labels))


@register_method("DKD-M", paper="Baek et al., NeurIPS 2022, arXiv 2210.05941")
def dkd_m(
    size: Count = 100,
    labels: Labels = "current",
    kd: Annotated[Weight, Search(0.5, 50)] = 5.0,
    evidence: Annotated[Weight, Search(0.5, 50)] = 5.0,
    *,
    first_positive: Weight = 2.0,
    positive: Weight = 1.0,
) -> Method:
    """DKD+Memory[labels=current,mix=append]: DKD with stored images among those of the step.

    size: images in memory; 100 for VOC, 300 for ADE as released
    labels: of stored images; current as released: old classes in them are background. own keeps their old labels
    kd: weight of the old logits' distillation; 5 as released (configs/config_voc.json)
    evidence: weight of each of the two parts' distillation; 5 as released (configs/config_voc.json)
    first_positive: weight of positive pixels at step 0; 2 for VOC, 35 for ADE as released
    positive: weight of positive pixels at later steps; 1 for VOC, 35 for ADE as released
    """
    base = dkd(kd, evidence, first_positive, positive)
    return replace(base, name="DKD-M", memory=Memory(size, labels=labels, mix="append"))


@register_method("STAR-M", paper="Chen et al., NeurIPS 2023")
def star_m(
    size: Count = 50,
    labels: Labels = "current",
    positive: Weight = 4.0,
    pkd: Annotated[Weight, Search(0.5, 50)] = 5.0,
    contrast: Annotated[Weight, Search(0.005, 0.5)] = 0.05,
) -> Method:
    """STAR+Memory[size=50,labels=current,mix=append]: STAR with stored images among those of the step.

    size: images in memory; 50 for VOC as released
    labels: of stored images; current as released: old classes in them are background. own keeps their old labels
    positive: weight of positive pixels at every step; 4 for VOC, 30 for ADE as released
    pkd: weight of the distillation in regions that the previous model knows; 5 as released (configs/config_voc.json)
    contrast: weight of the distance to old prototypes; 0.05 as released (configs/config_voc.json)
    """
    base = star(positive, pkd=pkd, contrast=contrast)
    return replace(base, name="STAR-M", memory=Memory(size, labels=labels, mix="append"))


@register_method("MiB-AugM", paper=CISS)
def mib_augm(size: Count = 100, kd: Annotated[Weight, Search(1, 100)] = 10.0, share: Share = 0.5) -> Method:
    """MiB with stored images in half of each batch, on which background takes in the new classes.

    size: images in memory; 100 for VOC as released
    kd: weight of the distillation, on both halves; 10 as released
    share: weight of the stored half's cross entropy, the current half's is 1 - share; 1/2 as released
    """
    return Method(
        "MiB-AugM",
        terms={
            "unce": UnbiasedCrossEntropy(weight=1 - share),
            "augm": AugmentedCrossEntropy(weight=share),
            "unkd": UnbiasedDistillation(weight=kd),
        },
        init=background_shares,
        memory=Memory(size, "greedy", apart=True),
    )
