"""LwF-MC: distillation of sigmoid outputs. Rebuffi et al. (iCaRL), CVPR 2017, arXiv 1611.07725; per pixel as in MiB's
code.

Every channel is a binary classifier. The arg max of the sigmoids is the arg max of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, Method, Term
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method


@dataclass(eq=False)
class BinaryCrossEntropy(Term):
    """Binary cross entropy summed over classes, mean over valid pixels (F-BCE); the releases average over all."""

    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        pixels = log_partition(batch.logits).sum(1) - own_logit(batch.logits, batch.labels)
        return batch.reduce((pixels * batch.valid).sum()) / batch.n_valid


@dataclass(eq=False)
class SigmoidDistillation(Term):
    """Binary cross entropy against the previous model's sigmoids, summed over the O old classes (F-LWFMC).

    A mean over all pixels, including void. The factor O of the release turns its mean over classes into a sum.
    """

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        old = batch.old_logits  # (B, O, H, W)
        z = batch.logits[:, : old.shape[1]]
        total = log_partition(z).sum() - (old.sigmoid() * z).sum()
        return batch.reduce(total) / batch.n_pixels


@dataclass(eq=False)
class ReplacedTargets(Term):
    """iCaRL's own loss: one binary cross entropy whose targets for old classes are the previous model's sigmoids.

    ``keep_background``: the target of background still comes from the label. A mean over all pixels, as in the released
    option: void pixels count, as pixels of no class.
    """

    uses_old = True
    uses_setup = False
    counts_void: ClassVar[bool] = True
    keep_background: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        z, y, first = batch.logits, batch.labels, int(self.keep_background)
        taught = slice(first, batch.step.n_old)
        labelled = (y < first) | (y >= batch.step.n_old)
        pixels = log_partition(z).sum(1) - (batch.old_logits[:, first:].sigmoid() * z[:, taught]).sum(1)
        return batch.reduce((pixels - own_logit(z, y) * labelled).sum()) / batch.n_pixels


def log_partition(z: Tensor) -> Tensor:
    """log(1 + e^z), exact to the last digit of float64."""
    return F.softplus(z, threshold=40)


def own_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, C, H, W), labels (B, H, W) -> the logit of each pixel's label, 0 at void: (B, H, W)."""
    valid = labels != VOID
    return logits.gather(1, (labels * valid)[:, None])[:, 0] * valid


@register_method("LwF-MC", paper="Rebuffi et al., CVPR 2017, arXiv 1611.07725")
def lwf_mc(
    kd: Annotated[Weight, Search(1, 100)] = 10.0, targets: Literal["added", "replaced", "replaced_foreground"] = "added"
) -> Method:
    """Binary cross entropy and binary distillation of the old classes.

    kd: weight of the distillation; 10 in the releases of MiB and SDR
    targets: added is the releases' preset; replaced puts the previous model's sigmoids into the target (iCaRL)
    """
    terms: dict[str, Term] = {"bce": BinaryCrossEntropy(), "kd": SigmoidDistillation(weight=kd)}
    if targets != "added":  # where no class is new, these targets would not read a label
        terms = {"bce": ReplacedTargets(keep_background=targets == "replaced_foreground")}
    return Method("LwF-MC", first={"bce": BinaryCrossEntropy()}, terms=terms, domains=targets == "added")
