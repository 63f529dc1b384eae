"""AWT: attribution-aware weight transfer. Goswami et al., "Attribution-aware Weight Transfer: A Warm-Start
Initialization for Class-Incremental Semantic Segmentation", WACV 2023, arXiv 2210.07207; an add-on.

Before a step trains, its new rows receive the channels of background's row that matter most, by attribution, for pixels
of new classes. The release integrates gradients over 50 steps an image. But the sum of background's logit is linear in
what the classifier reads, so the integral is exactly w_0 (f - f_zero), f_zero the features of an image of zeros: one
forward pass is enough.

Source: F-AWT of docs/methods.md, from ``AWT-for-CISS@995da6e``; the printed equations were not read. The release adds
the masked row to the drawn one: ``formulation=released``. The other, the masked row alone, is what we take to be meant.
The biases of new rows are as torch draws them and background's is untouched: a base's initialisation is overruled.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Method, StepContext, full_precision, shrink_labels
from contseg.methods.modules import refuse_other_heads
from contseg.methods.plop import Formulation
from contseg.methods.ranges import Share
from contseg.methods.registry import register_addon


def attribution(gap: Tensor, labels: Tensor, n_old: int, row: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over images of m_j w_0 (f - f_zero), (E, h, w), and the number () of images that show a new class.

    gap (B, E, h, w): f - f_zero; labels (B, H, W); row (E,): background's. m: a new class, nearest at feature size.
    """
    new = (labels >= n_old) & (labels != VOID)
    small = shrink_labels(new.to(gap.dtype), (gap.shape[2], gap.shape[3]))
    return torch.einsum("behw,bhw,e->ehw", gap, small, row), new.flatten(1).any(1).sum().to(gap.dtype)


def top_channels(total: Tensor, images: Tensor, share: float) -> Tensor:
    """(E,) of 0 and 1: the channels of the largest maximum over positions of the mean; none if no position counts: no
    image shows a new class, or none does at feature size."""
    scores = (total / images.clamp(min=1)).amax((1, 2))
    chosen = scores.topk(max(int(share * len(scores)), 1)).indices
    return torch.zeros_like(scores).index_fill(0, chosen, 1) * total.any()


@dataclass(frozen=True)
class TransferAttributed:
    """F-AWT, from one pass of the previous model over the step's images. Changes classifier rows only."""

    writes_rows: ClassVar[bool] = True

    share: float = 0.25
    formulation: Formulation = "intended"

    def __call__(self, ctx: StepContext) -> None:
        assert ctx.old_model is not None, "a warm-up is called at later steps"
        refuse_other_heads("AWT", ctx.old_model.classifier.blocks)
        drawn = copy.deepcopy(ctx.old_model.classifier)
        drawn.grow(ctx.step.n_new)
        background, new = drawn.blocks[0], ctx.model.classifier.blocks[-1]
        with torch.no_grad():
            row = full_precision(background.weight[0]).flatten()
            total, images = row.new_zeros(len(row), 1, 1), row.new_zeros(())
            for inputs, labels in ctx.loader():
                f, zero = (full_precision(ctx.old_model(x).embedding) for x in (inputs, torch.zeros_like(inputs[:1])))
                sums, n = attribution(f - zero, labels, ctx.step.n_old, row)
                total, images = total + sums, images + n
            mask = top_channels(ctx.reduce(total), ctx.reduce(images), self.share)
            rows = (mask * row)[:, None, None].expand_as(new.weight)
            new.weight.copy_(drawn.blocks[-1].weight + rows if self.formulation == "released" else rows)
            new.bias.copy_(drawn.blocks[-1].bias)
            ctx.model.classifier.blocks[0].bias[0] = background.bias[0]


@register_addon("AWT", paper="Goswami et al., WACV 2023, arXiv 2210.07207")
def awt(share: Share = 0.25, formulation: Formulation = "intended") -> Method:
    """New rows receive the channels of background's row that matter most for their pixels.

    share: of the channels that are kept; 0.25 as released
    formulation: intended writes the masked row, released adds it to the drawn one
    """
    return Method("AWT", terms={}, first={}, warm_up=(TransferAttributed(share, formulation),))
