"""MiB: modelling the background. Cermelli et al., CVPR 2020, arXiv 2002.00718.

In the labels of a step, background holds the old classes too; in the previous model's output, it holds the new ones.
Both losses move that mass to where it belongs, and the classifier's new rows start as shares of background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datasets.scenario import VOID, Step
from methods.base import Batch, Method, Term
from methods.losses import tiles
from methods.registry import register_method


@dataclass(eq=False)
class UnbiasedCrossEntropy(Term):
    """Cross entropy in which background is the sum of all old channels (MiB eq. 5, F-UNCE), mean over valid pixels.

    In the sequential setup a kept old label uses its own probability; the releases of MiB and SDR fold it into
    background, and take the mean over all pixels.
    """

    def __call__(self, batch: Batch) -> Tensor:
        return batch.reduce(_sums(batch)[0]) / batch.n_valid


@dataclass(eq=False)
class UnbiasedDistillation(Term):
    """Distillation in which the student's background takes in the new channels (MiB eq. 8, F-UNKD).

    A mean over old classes (1/O, as released) and over all pixels, void included.
    """

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        return batch.reduce(_sums(batch)[1]) / batch.n_pixels


def _sums(batch: Batch) -> tuple[Tensor, Tensor]:
    """Both losses summed over this process's pixels: one pass over the logits serves both."""

    def compute() -> tuple[Tensor, Tensor]:
        old = batch.old_logits if batch.has_old else None
        keeps_old = batch.step.setup == "sequential"
        n_old = max(batch.step.n_old, 1)  # without an old class background stands for itself
        return unbiased_losses(batch.logits, old, batch.labels, n_old, keeps_old)

    return batch.share("unbiased losses", compute)


def unbiased_losses(
    logits: Tensor, old_logits: Tensor | None, labels: Tensor, n_old: int, keeps_old: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Sums over pixels of F-UNCE and of F-UNKD (0 without a previous model).

    logits (B, C, H, W), old_logits (B, O, H, W), labels (B, H, W). With R = lse(z_1..z_{O-1}), N = lse(z_O..),
    A = lse(all), and q the teacher's softmax:
    UNCE = A - (lse(z_0, R) if y < O else z_y), UNKD = (A - q_0 lse(z_0, N) - sum_{0<c<O} q_c z_c) / O.
    ``keeps_old``: a label 0 < y < O is true and uses z_y.
    """
    ce, kd = _Unbiased.apply(logits, old_logits, labels, n_old, keeps_old)
    return ce, kd


class _Unbiased(torch.autograd.Function):
    """The pass over the logits, tile by tile: beyond inputs and gradient three maps of one channel stay."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, old_logits: Tensor | None, labels: Tensor, n_old: int, keeps_old: bool
    ) -> tuple[Tensor, Tensor]:
        z, y = logits.flatten(2), labels.flatten(1)
        old = None if old_logits is None else old_logits.flatten(2)
        # maps (B, HW): lse over the old foreground, over the new classes, and over the teacher's channels
        foreground, new, teacher = (z.new_empty(y.shape) for _ in range(3))
        ce, kd = z.new_zeros(()), z.new_zeros(())
        for b, p in tiles(z):
            tile, label = z[b, :, p], y[b, p]
            foreground[b, p] = _scaled_exp(tile[:, 1:n_old])[2]
            new[b, p] = _scaled_exp(tile[:, n_old:])[2]
            parts = _Parts(tile[:, 0], foreground[b, p], new[b, p])
            own, own_class = _own(label, n_old, keeps_old)
            log_p = torch.where(own, tile.gather(1, own_class[:, None])[:, 0], parts.old)
            ce += ((parts.all - log_p) * (label != VOID)).sum()
            if old is not None:
                q, total, teacher[b, p] = _scaled_exp(old[b, :, p])  # q times its sum
                weighted = q[:, 0] * parts.background + q[:, 1:].mul_(tile[:, 1:n_old]).sum(1)
                kd += (parts.all - weighted / total).sum()
        ctx.save_for_backward(logits, old_logits, labels, foreground, new, teacher)
        ctx.n_old, ctx.keeps_old = n_old, keeps_old
        return ce, kd / n_old

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ce: Tensor, grad_kd: Tensor) -> tuple[Tensor | None, ...]:
        logits, old_logits, labels, foreground, new, teacher = ctx.saved_tensors
        z, y, n_old = logits.flatten(2), labels.flatten(1), ctx.n_old
        old = None if old_logits is None else old_logits.flatten(2)
        grad_kd = grad_kd / n_old
        grad = torch.empty_like(z)
        for b, p in tiles(z):
            tile, label, out = z[b, :, p], y[b, p], grad[b, :, p]
            parts = _Parts(tile[:, 0], foreground[b, p], new[b, p])
            own, own_class = _own(label, n_old, ctx.keeps_old)
            supervised = grad_ce * (label != VOID)
            folded = supervised.masked_fill(own, 0)
            whole = supervised if old is None else supervised + grad_kd
            # the gradient of each group's lse, then the softmax inside the group
            d_background = whole * (parts.z0 - parts.all).exp_() - folded * (parts.z0 - parts.old).exp_()
            d_foreground = whole * (parts.foreground - parts.all).exp_()
            d_foreground -= folded * (parts.foreground - parts.old).exp_()
            d_new = whole * (parts.new - parts.all).exp_()
            _softmax_times(tile[:, 1:n_old], parts.foreground, d_foreground, out[:, 1:n_old])
            if old is not None:
                q = (old[b, :, p] - teacher[b, None, p]).exp_().mul_(grad_kd)
                out[:, 1:n_old] -= q[:, 1:]
                d_background -= q[:, 0] * (parts.z0 - parts.background).exp_()
                d_new -= q[:, 0] * (parts.new - parts.background).exp_()
            _softmax_times(tile[:, n_old:], parts.new, d_new, out[:, n_old:])
            out[:, 0] = d_background
            out.scatter_add_(1, own_class[:, None], (folded - supervised)[:, None])
        return grad.view_as(logits), None, None, None, None


def _scaled_exp(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, c, n) -> exp(x - max) (b, c, n), its sum over c (b, n), and the log-sum-exp of x (b, n)."""
    if not x.shape[1]:  # no old class but background
        nothing = x.sum(1)
        return x, nothing, nothing.log()
    highest = x.amax(1)
    scaled = (x - highest[:, None]).exp_()
    total = scaled.sum(1)
    return scaled, total, total.log().add_(highest)


def _softmax_times(x: Tensor, logsumexp: Tensor, factor: Tensor, out: Tensor) -> None:
    """Write softmax(x) * factor, maps (b, n), into ``out`` (b, c, n)."""
    torch.sub(x, logsumexp[:, None], out=out).exp_().mul_(factor[:, None])


class _Parts:
    """Log-sum-exps of the groups {0}, old foreground, new, and of their unions; maps (b, n)."""

    def __init__(self, z0: Tensor, foreground: Tensor, new: Tensor) -> None:
        self.z0, self.foreground, self.new = z0, foreground, new
        self.old = torch.logaddexp(z0, foreground)
        self.background = torch.logaddexp(z0, new)
        self.all = torch.logaddexp(self.old, new)


def _own(label: Tensor, n_old: int, keeps_old: bool) -> tuple[Tensor, Tensor]:
    """Where the label stands for its own channel alone, and that channel (0 elsewhere)."""
    own = (label >= (1 if keeps_old else n_old)) & (label != VOID)
    return own, torch.where(own, label, 0)


def background_shares(model: Any, step: Step) -> None:
    """New rows equal background's, and all share its probability (MiB eq. 9-10, F-INIT)."""
    first, new = model.classifier.blocks[0], model.classifier.blocks[step.index]
    with torch.no_grad():
        first.bias[0] -= math.log(len(new.bias) + 1)
        new.weight.copy_(first.weight[:1].expand_as(new.weight))
        new.bias.copy_(first.bias[0].expand_as(new.bias))


@register_method("MiB", paper="Cermelli et al., CVPR 2020, arXiv 2002.00718")
def mib(kd: float = 10.0) -> Method:
    """Unbiased cross entropy, unbiased distillation, and new classifier rows that share background's probability.

    kd: weight of the distillation; 10 in the authors' release, 100 for its 15-1 (issues 22 and 43 there)
    """
    terms: dict[str, Term] = {"unce": UnbiasedCrossEntropy(), "unkd": UnbiasedDistillation(weight=kd)}
    return Method("MiB", terms=terms, init=background_shares)
