"""Adapter (AAAI 2025): STAR with a loss against uncertain pixels, and prototypes that move with the features.

Where no class is sure, the runner-up is pushed away from the best: the add-on ``UAC`` (the name is ours). After a step
the prototype of an old class moves as the features did that both models are sure belong to it: ``adc=true``.

The release calls neither the moving of prototypes nor the second half of its third part, a compensation of prototypes,
which is left out here. So the published row cannot be told from the code: ``Adapter`` is ``STAR+UAC``, the part that
runs there, and ``Adapter[adc=true]`` is our reading of the rest.

Source: F-ADAPTER-UAC and F-ADAPTER-ADC of docs/methods.md, from ``Adapter@036d9c0``; the printed equations were not
read. Differs from the release in void pixels, which are left out (there they count as uncertain), and in STAR's
constants, which stay STAR's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from contseg.datasets.scenario import BACKGROUND, VOID
from contseg.methods.base import Batch, Method, SegOutput, StepContext, Term, full_precision, resize
from contseg.methods.dkd import MultiBCE, above_half
from contseg.methods.losses import class_sums, hot
from contseg.methods.ranges import Search, Share, Weight
from contseg.methods.registry import register_addon, register_method
from contseg.methods.star import (
    ClassStatistics,
    PrototypeContrast,
    RegionDistillation,
    ReplayedBCE,
    ThreeRates,
    centre_labels,
    directions,
    kaiming_rows,
)


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


# --- prototypes that move ------------------------------------------------------------------------------------------


def sure_prediction(out: SegOutput, size: tuple[int, int], sure: float) -> Tensor:
    """(B, H, W): the predicted class where its sigmoid leads the second one by more than ``sure``, else background."""
    scores = resize(full_precision(out.logits), size)[:, 1:].sigmoid()
    best = scores.topk(min(2, scores.shape[1]), dim=1).values
    lead = best[:, 0] - (best[:, 1] if best.shape[1] > 1 else 0)
    return torch.where(lead > sure, above_half(out, size), BACKGROUND)


@dataclass(eq=False)
class MovedStatistics(ClassStatistics):
    """F-ADAPTER-ADC: at the end of a later step old prototypes move, and their noise grows by the size of the move."""

    sure: float = 0.7

    def end_step(self, ctx: StepContext) -> None:
        if ctx.step.index > 0:
            self.move(ctx)
        super().end_step(ctx)

    def move(self, ctx: StepContext) -> None:
        """One pass over the step's images with both models; a class that they never agree on stays."""
        assert self.prototypes is not None and self.noise is not None and self.counts is not None
        assert ctx.old_model is not None
        classes, channels = self.prototypes.shape
        sums = self.counts.new_zeros(2, classes, channels)
        found = self.counts.new_zeros(classes)
        for images, labels in ctx.loader():
            with torch.no_grad():
                outputs = ctx.old_model(images), ctx.model(images)
            before, after = (sure_prediction(out, (labels.shape[1], labels.shape[2]), self.sure) for out in outputs)
            agreed = torch.where((labels == BACKGROUND) & (before == after), before, VOID)
            size = outputs[0].embedding.shape[2], outputs[0].embedding.shape[3]
            members = hot(centre_labels(agreed, size), classes + 1, sums.dtype)[:, 1:]
            units = [directions(out.embedding.to(sums.dtype)).flatten(2) for out in outputs]
            sums = sums + torch.stack([class_sums(unit, members) for unit in units])
            found = found + members.sum((0, 2))
        old, new = (directions(part) for part in ctx.reduce(sums))
        share = ctx.reduce(found) / self.counts[1:].clamp(min=1) * self.known
        shift = (share[:, None] * (new - old)).to(self.prototypes)
        self.prototypes, self.noise = self.prototypes + shift, self.noise + shift.abs()


@register_method("Adapter", paper="Adapter, AAAI 2025; adc=true is our reading")
def adapter(adc: bool = False, positive: Weight = 4.0, sure: Share = 0.7) -> Method:
    """STAR+UAC, the part of Adapter that its release runs; adc=true moves old prototypes with the features.

    adc: old prototypes move with the features at the end of a step; the release has it and never calls it
    positive: weight of positive pixels at every step; 4 for VOC as STAR
    sure: sigmoid above which a pixel is certain, and lead with which both models agree; 0.7 as released
    """
    seen = MovedStatistics(sure=sure) if adc else ClassStatistics()
    return Method(
        "Adapter",
        terms={
            "statistics": seen,
            "mbce": ReplayedBCE(seen, positive),
            "pkd": RegionDistillation(weight=5.0),
            "contrast": PrototypeContrast(seen, weight=0.05),
            "uac": UncertainRunnerUp(sure, weight=0.1),
        },
        first={"statistics": seen, "mbce": MultiBCE(positive)},
        build=kaiming_rows,
        trainable=ThreeRates(0.1, 10.0),
        predict=above_half,
    )


@register_addon("UAC", paper="Adapter, AAAI 2025; the name of the add-on is ours")
def uac(weight: Annotated[Weight, Search(0.01, 1)] = 0.1, sure: Share = 0.7) -> Method:
    """Push the runner-up down where no class is sure; for methods with a sigmoid of each foreground class.

    weight: of the loss; 0.1 as released
    sure: sigmoid above which a pixel is certain and left alone; 0.7 as released
    """
    return Method("UAC", terms={"uac": UncertainRunnerUp(sure, weight=weight)}, first={})
