"""ILT: incremental learning techniques for segmentation. Michieli and Zanuttigh, ICCVW 2019, arXiv 1907.13372."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from contseg.methods.base import Batch, CrossEntropy, Method, Term
from contseg.methods.lwf import Distillation
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method


@dataclass(eq=False)
class FeatureDistillation(Term):
    """Distillation of the encoder's features: mean squared difference over images, channels, positions (F-ILT)."""

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        old = batch.old.features.detach().to(batch.features.dtype)
        total = F.mse_loss(batch.features, old, reduction="sum")
        return batch.reduce(total) / batch.reduce(total.new_full((), old.numel()))


@register_method("ILT", paper="Michieli and Zanuttigh, ICCV workshops 2019, arXiv 1907.13372")
def ilt(
    kd: Annotated[Weight, Search(10, 1000)] = 100.0, features: Annotated[Weight, Search(10, 1000)] = 100.0
) -> Method:
    """Distillation of the output and of the encoder's features.

    kd: weight of the output distillation; 100 in the releases of MiB and SDR
    features: weight of the feature distillation; 100 in the releases of MiB and SDR
    """
    terms: dict[str, Term] = {
        "ce": CrossEntropy(),
        "kd": Distillation(weight=kd),
        "features": FeatureDistillation(weight=features),
    }
    return Method("ILT", terms=terms, domains=True)
