"""Of Adapter (AAAI 2025) its loss against uncertain pixels, as an add-on of our naming: ``STAR+UAC``.

Where no class is sure, the runner-up is pushed away from the best. Adapter is STAR with moved prototypes, this loss and
a loss of compensation. Its release calls neither the moving of prototypes nor the second half of the compensation, so
the row of that name cannot be told from the code; ``STAR+UAC`` is that part of it which runs.

Source: F-ADAPTER-UAC of docs/methods.md, from ``Adapter@036d9c0``; the printed equation was not read. Departs from the
release in void pixels, which are left out (there they count as uncertain), and in STAR's constants, which stay STAR's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from contseg.methods.base import Batch, Method, Term
from contseg.methods.ranges import Search, Share, Weight
from contseg.methods.registry import register_addon


def runner_up(logits: Tensor, labels: Tensor, sure: float) -> Tensor:
    """(B, H, W): (1 - s_1 + s_2)^2 of the two largest sigmoids, s_1 without gradient (F-ADAPTER-UAC).

    0 where the best class is the label, or s_1 > ``sure``. logits (B, C - 1, H, W) of foreground classes.
    """
    scores, channels = logits.topk(2, dim=1)
    best, second = scores.sigmoid().unbind(1)
    counted = (channels[:, 0] + 1 != labels) & (best <= sure)
    return torch.where(counted, (1 - best.detach() + second).square(), 0)


@dataclass(eq=False)
class UncertainRunnerUp(Term):
    """F-ADAPTER-UAC over the foreground classes, a mean over valid pixels."""

    uses_setup = False

    sure: float = 0.7

    def __call__(self, batch: Batch) -> Tensor:
        pixels = runner_up(batch.logits[:, 1:], batch.labels, self.sure)
        return batch.reduce((pixels * batch.valid).sum()) / batch.n_valid


@register_addon("UAC", paper="Adapter, AAAI 2025; the name of the add-on is ours")
def uac(weight: Annotated[Weight, Search(0.01, 1)] = 0.1, sure: Share = 0.7) -> Method:
    """Push the runner-up down where no class is sure; for methods with a sigmoid of each foreground class.

    weight: of the loss; 0.1 as released
    sure: sigmoid above which a pixel is certain and left alone; 0.7 as released
    """
    return Method("UAC", terms={"uac": UncertainRunnerUp(sure, weight=weight)}, first={})
