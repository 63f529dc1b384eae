"""CIL: re-using neither old data nor old labels. Klingner et al., ITSC 2020, arXiv 2005.06050.

Labelled pixels train the new classes; pixels without a label train the old ones, by distillation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor

from contseg.datasets.scenario import BACKGROUND
from contseg.methods.base import Batch, CrossEntropy, Method, Term
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method

Formulation: TypeAlias = Literal["intended", "released"]


@dataclass(eq=False)
class LabelledCrossEntropy(Term):
    """Cross entropy over the labelled pixels: neither background nor void.

    These are the pixels of new classes, and in the sequential setup also those of old classes.
    """

    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        labelled = batch.valid & (batch.labels != BACKGROUND)
        own = batch.logits.gather(1, (batch.labels * labelled)[:, None])[:, 0]
        total = ((batch.logits.logsumexp(1) - own) * labelled).sum()
        return batch.reduce(total) / batch.reduce(labelled.sum().to(total.dtype)).clamp(min=1)


@dataclass(eq=False)
class UnlabelledDistillation(Term):
    """Distillation on pixels without a label, stronger where the previous model is uncertain (F-CIL).

    - 1/|M| sum_{i in M} (1 + g_s H_2(q_i)) sum_{c < O} q_ic log p_ic,    M: background or void

    p: softmax over all channels, q: over the old ones; entropy in bits. Background counts as unlabelled, as in SDR's
    port. ``released`` is that port: it lacks sign and logarithm, so it drives the student away from the teacher.
    """

    uses_old = True
    uses_setup = False
    gradient_scaling: float = 1.0
    formulation: Formulation = "intended"

    def __call__(self, batch: Batch) -> Tensor:
        unlabelled = ~batch.valid | (batch.labels == BACKGROUND)
        released = self.formulation == "released"
        loss = ported_distillation if released else scaled_distillation
        total = (loss(batch.logits, batch.old_logits, self.gradient_scaling) * unlabelled).sum()
        count = batch.reduce(unlabelled.sum().to(total.dtype))
        return batch.reduce(total) / (count + 1e-8 if released else count.clamp(min=1))


def scaled_distillation(logits: Tensor, old_logits: Tensor, gradient_scaling: float) -> Tensor:
    """Logits (B, C, H, W), old logits (B, O, H, W) -> (B, H, W): (1 + g_s H_2(q)) sum_c -q_c log p_c."""
    q, log_q = old_logits.softmax(1), old_logits.log_softmax(1)
    bits = -(q * log_q).sum(1) / math.log(2)
    cross_entropy = logits.logsumexp(1) - (q * logits[:, : q.shape[1]]).sum(1)
    return (1 + gradient_scaling * bits) * cross_entropy


def ported_distillation(logits: Tensor, old_logits: Tensor, gradient_scaling: float) -> Tensor:
    """The form of SDR's release: + sum_c q_c p_c, where the teacher's logits of new classes are 0."""
    padding = old_logits.new_zeros(len(logits), logits.shape[1] - old_logits.shape[1], *logits.shape[2:])
    q = torch.cat([old_logits, padding], 1).softmax(1)
    bits = -(q * (q + 1e-8).log2()).sum(1)
    return (1 + gradient_scaling * bits) * (q * logits.softmax(1)).sum(1)


@register_method("CIL", paper="Klingner et al., ITSC 2020, arXiv 2005.06050")
def cil(
    kd: Annotated[Weight, Search(0.1, 10)] = 1.0, gradient_scaling: Weight = 1.0, formulation: Formulation = "intended"
) -> Method:
    """Cross entropy on the labelled pixels, distillation on the others.

    The authors' weights were not found: both are 1.

    kd: weight of the distillation; 1, not from the authors
    gradient_scaling: g_s, how much more an unsure pixel counts; 1 in the authors' code
    formulation: released is SDR's port switched on by hand (its preset leaves it off and is FT); anti-distillation
    """
    supervised = LabelledCrossEntropy() if formulation == "intended" else CrossEntropy()
    distillation = UnlabelledDistillation(gradient_scaling, formulation, weight=kd)
    return Method("CIL", terms={"ce": supervised, "kd": distillation})
