"""NeST: new classifier pre-tuning. Xie et al., "Early Preparation Pays Off: New Classifier Pre-tuning for Class
Incremental Semantic Segmentation", ECCV 2024, arXiv 2407.14142; an add-on for MiB and PLOP.

Before a step trains, each new row is composed of all old rows, channel by channel, and background's row is scaled. Only
these factors are tuned, for some passes, with the network frozen. They start from a statistic of the previous model:
how much each channel of each old row speaks for it at pixels of the new class. Then the base trains as usual.

Source: F-NEST-IMP, F-NEST-GEN and F-NEST-INIT of docs/methods.md, from ``ECCV24_NeST@f96185b``; the printed equations
were not read. What the release does otherwise, and ``formulation=released`` does too: it brings the vector of N new
biases to the norm of that of O old ones, a factor sqrt(O / N), where ``intended`` compares root mean squares; and new
biases start from the bias that a new network draws for background, where ``intended`` takes the trained one. Not
reproduced: its tuning moves the running statistics of all norms (here everything but classifier rows stays), its loss
is a mean over all pixels (here over valid ones), a class without a pixel is 0/0 (here 0).
Background's bias is untouched: MiB's initialisation is overruled, as in the release.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Method, StepContext, full_precision, resize, shrink_labels, train_all
from contseg.methods.ewf import freeze_old_rows
from contseg.methods.losses import hot
from contseg.methods.mib import unbiased_losses
from contseg.methods.modules import refuse_other_heads
from contseg.methods.plop import Formulation
from contseg.methods.ranges import Count, Positive
from contseg.methods.registry import register_addon

GRID = 128, 128  # the size at which pixels are counted; as released (train.py)
MOMENTUM, DECAY, POWER = 0.9, 1e-4, 0.9  # of the tuning; as released (run.py, argparser.py)
OldRows: TypeAlias = Literal["trained", "frozen"]


class Composition(NamedTuple):
    """What is tuned. O old classes with background, N new ones, E channels of the embedding."""

    importance: Tensor  # (N, O, E)
    mix: Tensor  # (N, O)
    bias: Tensor  # (N,), of the new rows
    gate: Tensor  # (E,), of background's row
    scale: Tensor  # (), of background's row

    def rows(self, old: Tensor) -> Tensor:
        """Rows (O + N, E) from the old ones (O, E): background scaled, the others kept, new ones composed."""
        new = torch.einsum("nk,nke,ke->ne", self.mix, self.importance, old)
        return torch.cat([self.scale * (self.gate * old[:1]), old[1:], new])

    def aligned(self, old: Tensor, bias: Tensor, formulation: Formulation) -> tuple[Tensor, Tensor, Tensor]:
        """Background's row (E,), new rows (N, E) and new biases (N,), with the norms of the old ones (F-NEST-INIT).

        old (O, E), bias (O,).
        """
        rows = self.rows(old)
        background, new, norms = rows[0], rows[len(old) :], old.norm(dim=1)
        share = sqrt(len(new) / len(old)) if formulation == "intended" else 1.0
        return (
            background * (norms[0] / _positive(background.norm())),
            new * (norms.mean() / _positive(new.norm(dim=1).mean())),
            self.bias * (share * bias.norm() / _positive(self.bias.norm())),
        )


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def importance_sums(
    logits: Tensor, embedding: Tensor, labels: Tensor, old: Tensor, n_new: int
) -> tuple[Tensor, Tensor]:
    """Sums of q_k [W_ke f_e > 0] over the pixels of each new class, (N, O, E), and numbers of these pixels (N,).

    logits (B, O, H, W) of the previous model at label size, embedding (B, E, h, w), labels (B, H, W), old (O, E): W.
    """
    n_old = len(old)
    member = hot(shrink_labels(labels, GRID), n_old + n_new, logits.dtype)[:, n_old:]
    q, f = resize(logits, GRID).softmax(1).flatten(2), resize(embedding, GRID).flatten(2)
    above, below = (logits.new_zeros(n_new * n_old, old.shape[1]) for _ in range(2))
    for mine, probability, value in zip(member, q, f, strict=True):  # a map (N, O, P) of one image at a time
        weighed = (mine[:, None] * probability).flatten(0, 1)
        above += weighed @ (value > 0).to(weighed).T
        below += weighed @ (value < 0).to(weighed).T
    sums = torch.where(old > 0, above.view(n_new, *old.shape), torch.where(old < 0, below.view(n_new, *old.shape), 0))
    return sums, member.sum((0, 2))


@dataclass(frozen=True)
class PreTuning:
    """Compose and tune the new rows and background's. Changes nothing else."""

    writes_rows: ClassVar[bool] = True

    epochs: int = 5
    lr_scale: float = 1.0
    formulation: Formulation = "intended"

    def __call__(self, ctx: StepContext) -> None:
        assert ctx.old_model is not None, "a warm-up is called at later steps"
        blocks = ctx.old_model.classifier.blocks
        refuse_other_heads("NeST", blocks)
        with torch.no_grad():
            old = torch.cat([full_precision(block.weight) for block in blocks]).flatten(1)
            bias = torch.cat([full_precision(block.bias) for block in blocks])
        start, batches = self.start(ctx, old, bias)
        tuned = self.tune(ctx, start, old, bias, batches)
        with torch.no_grad():
            background, rows, biases = tuned.aligned(old, bias, self.formulation)
            first, new = ctx.model.classifier.blocks[0], ctx.model.classifier.blocks[-1]
            first.weight[0] = background[:, None, None]
            first.bias[0] = bias[0]
            new.weight.copy_(rows[:, :, None, None])
            new.bias.copy_(biases)

    @torch.no_grad()
    def start(self, ctx: StepContext, old: Tensor, bias: Tensor) -> tuple[Composition, int]:
        """Where the tuning starts, from one pass (F-NEST-IMP), and the number of batches of a pass."""
        model: Any = ctx.old_model
        n_new, batches = ctx.step.n_new, 0
        total, count = old.new_zeros(n_new, *old.shape), old.new_zeros(n_new)
        for images, labels in ctx.loader():
            out = model(images)
            logits = resize(full_precision(out.logits), (labels.shape[1], labels.shape[2]))
            sums, n = importance_sums(logits, full_precision(out.embedding), labels, old, n_new)
            total, count, batches = total + sums, count + n, batches + 1
        importance = ctx.reduce(total) / ctx.reduce(count).clamp(min=1)[:, None, None]
        first = bias[:1]
        if self.formulation == "released":
            drawn = copy.deepcopy(model.classifier)
            drawn.grow(n_new)
            first = drawn.blocks[-1].bias[:1].to(bias)
        mix = importance.sum(2).softmax(1)
        ones = torch.ones_like(old[0])
        return Composition(importance, mix, first.expand(n_new).clone(), ones, ones[0].clone()), batches

    def tune(self, ctx: StepContext, start: Composition, old: Tensor, bias: Tensor, batches: int) -> Composition:
        """SGD on the composition alone, with F-UNCE; each pass has its own order and augmentation."""
        tuned = Composition(*(t.clone().requires_grad_() for t in start))
        rate, total, update = self.lr_scale * ctx.lr, self.epochs * batches, 0
        optimizer = torch.optim.SGD(list(tuned), lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
        for number in range(1, self.epochs + 1):
            for images, labels in ctx.loader(number):
                with torch.no_grad():
                    embedding = full_precision(ctx.model(images).embedding)
                values = torch.cat([bias, tuned.bias])[:, None, None]
                logits = torch.einsum("behw,ce->bchw", embedding, tuned.rows(old)) + values
                loss, _ = unbiased_losses(
                    resize(logits, (labels.shape[1], labels.shape[2])), None, labels, len(old), keeps_old=True
                )
                pixels = ctx.reduce((labels != VOID).sum().to(loss.dtype)).clamp(min=1)
                for t, gradient in zip(tuned, torch.autograd.grad(loss / pixels, list(tuned)), strict=True):
                    t.grad = ctx.reduce(gradient)
                optimizer.param_groups[0]["lr"] = rate * (1 - update / total) ** POWER
                optimizer.step()
                update += 1
        return Composition(*(t.detach() for t in tuned))


@register_addon("NeST", paper="Xie et al., ECCV 2024, arXiv 2407.14142")
def nest(
    epochs: Count = 5,
    lr_scale: Positive = 1.0,
    old_rows: OldRows = "trained",
    formulation: Formulation = "intended",
) -> Method:
    """New rows are composed of all old ones, and the composition is tuned before each step trains.

    epochs: passes of the tuning; 5 for VOC, 15 for ADE as released
    lr_scale: its learning rate over the step's; 1 for VOC, 500 for ADE as released
    old_rows: while the step trains; frozen with PLOP on VOC as released, there with background's
    formulation: intended gives new biases the size of old ones, released a factor sqrt(O / N) more
    """
    return Method(
        "NeST",
        terms={},
        first={},
        trainable=freeze_old_rows if old_rows == "frozen" else train_all,
        warm_up=(PreTuning(epochs, lr_scale, formulation),),
    )
