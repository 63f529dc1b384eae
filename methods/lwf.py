"""LwF: learning without forgetting. Li and Hoiem, ECCV 2016, arXiv 1606.09282; per pixel as in MiB's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from contseg.methods.base import Batch, CrossEntropy, Method, Term
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method


@dataclass(eq=False)
class Distillation(Term):
    """Distillation of the previous model's distribution over the old classes (F-KD).

    Cross entropy between the softmax of teacher and student over the O old channels; a mean over classes (1/O) and over
    all pixels, including void.
    """

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        old = batch.old_logits  # (B, O, H, W)
        n_old = old.shape[1]
        total = F.cross_entropy(batch.logits[:, :n_old], old.softmax(1), reduction="sum") / n_old
        return batch.reduce(total) / batch.n_pixels


@register_method("LwF", paper="Li and Hoiem, ECCV 2016, arXiv 1606.09282")
def lwf(kd: Annotated[Weight, Search(10, 1000)] = 100.0) -> Method:
    """Cross entropy and distillation of the old classes' distribution.

    kd: weight of the distillation; 100 in the releases of MiB and SDR, whose loss has the factor 1/O
    """
    return Method("LwF", terms={"ce": CrossEntropy(), "kd": Distillation(weight=kd)}, domains=True)
