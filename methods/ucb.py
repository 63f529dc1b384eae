"""UCB: uncertainty and class balance for pseudo-labelled losses, IEEE TIP 2025; an add-on.

Each pixel of the supervised loss is weighed by how sure the previous model is there and by how rare its class is. Where
the previous model is not sure and there is no new class, the pixel drops out. The weights have mean 1; distillation
ignores them. They need labels that the previous model completed: bases are PLOP (and REMINDER) and SSUL.

Source: F-UCB of docs/methods.md, from ``UCB@651c650``; the printed equations were not read. Differs from the release in
the class counts (there a histogram without limits, so that classes swap counts whenever the highest one is absent) and
in void pixels, which are left out of counts and mean (there they are background).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, Method, StepContext, Term
from contseg.methods.losses import hot
from contseg.methods.ranges import Positive
from contseg.methods.registry import register_addon


def class_factors(frequencies: Tensor, n_old: int) -> Tensor:
    """(C,) v: the mean frequency of the foreground classes seen over a class's own, within sqrt(N/O) to sqrt(O/N);
    sqrt(O/N) for all of them where there are more new classes than old ones, as released.

    frequencies (C,), background first; 1 for background, and the upper limit for a class never seen.
    """
    n_new = len(frequencies) - n_old
    others = ((frequencies > 0).sum() - 1).clamp(min=1)
    seen = frequencies > 0
    ratio = frequencies[1:].sum() / others / torch.where(seen, frequencies, 1)
    factors = torch.where(seen, ratio, torch.inf).clamp(math.sqrt(n_new / n_old), math.sqrt(n_old / n_new))
    return torch.where(torch.arange(len(factors), device=factors.device) > 0, factors, 1)


def uncertainty(scores: Tensor) -> Tensor:
    """(B, H, W): entropy of the softmax of scores (B, K, H, W), 1 if uniform; 1e-8 in both logarithms as released."""
    q = scores.softmax(1)
    return -(q * (q + 1e-8).log()).sum(1) / math.log(scores.shape[1] + 1e-8)


@dataclass(eq=False)
class UncertaintyBalance(Term):
    """F-UCB: no loss of its own, but the weights of the base's supervised loss.

    The class frequencies are running means over the batches of this step.
    """

    uses_old = True
    uses_setup = False
    state = ("frequencies", "images")

    threshold: float = 0.8
    stretch: bool = True
    frequencies: Tensor | None = field(default=None, init=False, repr=False)  # (C,)
    images: Tensor | None = field(default=None, init=False, repr=False)  # () images that these rest on

    def begin_step(self, ctx: StepContext) -> None:
        like = next(ctx.model.parameters()).detach()
        self.frequencies, self.images = like.new_zeros(ctx.step.n_classes), like.new_zeros(())

    def weigh(self, batch: Batch, targets: Tensor, scores: Tensor) -> Tensor:
        """(B, H, W) weights, mean 1 over the pixels that have a target; 0 at void.

        targets (B, H, W): the pseudo-labelled channels; scores (B, K, H, W): the previous model's, at the same size.
        """
        with torch.no_grad():
            valid = targets != VOID
            v = class_factors(self.update(batch, targets).to(scores.dtype), batch.step.n_old)
            factor = v[torch.where(valid, targets, 0)] * self.sureness(batch, targets, scores) * valid
            mean = batch.reduce(factor.sum()) / batch.reduce(valid.sum().to(factor.dtype)).clamp(min=1)
            return factor / torch.where(mean > 0, mean, 1)

    def update(self, batch: Batch, targets: Tensor) -> Tensor:
        """The running class frequencies, this batch included."""
        assert self.frequencies is not None and self.images is not None, "begin_step comes first"
        counts = batch.reduce(hot(targets, batch.step.n_classes, self.frequencies.dtype).sum((0, 2)))
        images = batch.reduce(self.images.new_full((), len(targets)))
        total = self.images + images
        own = counts / counts.sum().clamp(min=1)
        self.frequencies, self.images = self.frequencies + (own - self.frequencies) * (images / total), total
        return self.frequencies

    def sureness(self, batch: Batch, targets: Tensor, scores: Tensor) -> Tensor:
        """(B, H, W) u = exp(1 - H / threshold); e at new classes, 0 elsewhere where H reaches the threshold."""
        entropy = uncertainty(scores)
        if self.stretch:
            low, high = -batch.reduce.max(-entropy.min()), batch.reduce.max(entropy.max())
            entropy = (entropy - low) / torch.where(high > low, high - low, 1)
        new = (targets >= batch.step.n_old) & (targets != VOID)
        entropy = torch.where(new, 0, entropy)
        return torch.where(entropy < self.threshold, (1 - entropy / self.threshold).exp(), 0)


@register_addon("UCB", paper="UCB, IEEE TIP 2025")
def ucb(threshold: Positive = 0.8, stretch: bool = True) -> Method:
    """Weigh each pseudo-labelled pixel by certainty and by the rarity of its class; for PLOP and SSUL.

    threshold: uncertainty from which a pixel without a new class drops out; 0.8 with PLOP, 0.5 with SSUL as released
    stretch: bring the uncertainties of a batch to 0..1 first; true with PLOP, false with SSUL as released
    """
    return Method("UCB", terms={"ucb": UncertaintyBalance(threshold, stretch)}, first={})
