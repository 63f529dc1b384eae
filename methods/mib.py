"""MiB: modelling the background. Cermelli et al., CVPR 2020, arXiv 2002.00718.

In the labels of a step, background includes the old classes. In the output of the previous model, it includes the new
classes. Both losses correct this. The new rows of the classifier start with a share of the background probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contseg.datasets.scenario import VOID, Step
from contseg.methods.base import Batch, CrossEntropy, Method, Term
from contseg.methods.losses import tiles
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method


@dataclass(eq=False)
class UnbiasedCrossEntropy(Term):
    """Cross entropy in which background is the sum of all old channels (MiB eq. 5, F-UNCE), mean over valid pixels.

    In the sequential setup an old label that is present uses its own probability. The releases of MiB and SDR add it to
    background, and take the mean over all pixels. Where no class is new, labels are complete: plain cross entropy.
    """

    keeps_old: ClassVar[bool] = True  # in the sequential setup

    def __call__(self, batch: Batch) -> Tensor:
        if not batch.step.n_new:
            return CrossEntropy()(batch)
        return batch.reduce(_sums(batch, self.keeps_old)[0]) / batch.n_valid


@dataclass(eq=False)
class UnbiasedDistillation(Term):
    """Distillation in which the student's background includes the new channels (MiB eq. 8, F-UNKD).

    A mean over old classes (1/O, as released) and over all pixels, including void.
    """

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        return batch.reduce(_sums(batch)[1]) / batch.n_pixels


def _sums(batch: Batch, keeps_old: bool = True) -> tuple[Tensor, Tensor]:
    """Both losses, summed over the pixels of this process, from one pass over the logits."""
    keeps_old = keeps_old and batch.step.setup == "sequential"

    def compute() -> tuple[Tensor, Tensor]:
        old = batch.old_logits if batch.has_old else None
        n_old = max(batch.step.n_old, 1)  # without old classes, background is background
        return unbiased_losses(batch.logits, old, batch.labels, n_old, keeps_old)

    return batch.share(f"unbiased losses, old labels {'kept' if keeps_old else 'folded'}", compute)


def unbiased_losses(
    logits: Tensor, old_logits: Tensor | None, labels: Tensor, n_old: int, keeps_old: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Sums over pixels of F-UNCE and of F-UNKD (0 without a previous model).

    logits (B, C, H, W), old_logits (B, O, H, W), labels (B, H, W). With R = lse(z_1..z_{O-1}), N = lse(z_O..),
    A = lse(all), and q the teacher's softmax:
    UNCE = A - (lse(z_0, R) if y < O else z_y), UNKD = (A - q_0 lse(z_0, N) - sum_{0<c<O} q_c z_c) / O.
    ``keeps_old``: a label 0 < y < O uses its own z_y.
    """
    ce, kd = _Unbiased.apply(logits, old_logits, labels, n_old, keeps_old)
    return ce, kd


class _Unbiased(torch.autograd.Function):
    """The pass over the logits. Apart from inputs and gradient it needs only maps of one channel.

    Three groups of channels have one log-sum-exp each: background (its logit), the old foreground, the new classes.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, old_logits: Tensor | None, labels: Tensor, n_old: int, keeps_old: bool
    ) -> tuple[Tensor, Tensor]:
        z, y = logits.flatten(2), labels.flatten(1)
        parts = _Parts.of(z, n_old)
        own, own_class = _own(y, n_old, keeps_old)
        log_p = torch.where(own, z.gather(1, own_class[:, None])[:, 0], parts.old)
        ce, kd = ((parts.all - log_p) * (y != VOID)).sum(), z.new_zeros(())
        teacher = None
        if old_logits is not None:
            teacher, expected = _expected(old_logits.flatten(2), z, parts.background)
            kd = (parts.all - expected).sum()
        ctx.save_for_backward(logits, old_logits, labels, teacher, *parts[1:])
        ctx.n_old, ctx.keeps_old = n_old, keeps_old
        return ce, kd / n_old

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ce: Tensor, grad_kd: Tensor) -> tuple[Tensor | None, ...]:
        logits, old_logits, labels, teacher, *maps = ctx.saved_tensors
        z, y, n_old = logits.flatten(2), labels.flatten(1), ctx.n_old
        parts, grad = _Parts(z[:, 0], *maps), torch.empty_like(z)
        own, own_class = _own(y, n_old, ctx.keeps_old)
        grad_kd = grad_kd / n_old
        supervised = grad_ce * (y != VOID)
        folded = supervised.masked_fill(own, 0)
        whole = supervised if old_logits is None else supervised + grad_kd
        # the gradient of the log-sum-exp of each group, then the softmax inside the group
        d_background = whole * _exp(parts.z0, parts.all) - folded * _exp(parts.z0, parts.old)
        d_foreground = whole * _exp(parts.foreground, parts.all) - folded * _exp(parts.foreground, parts.old)
        d_new = whole * _exp(parts.new, parts.all)
        _softmax_times(z[:, 1:n_old], parts.foreground, d_foreground, grad[:, 1:n_old])
        if old_logits is not None:
            old = old_logits.flatten(2)
            _less_softmax(old[:, 1:], teacher, grad_kd, grad[:, 1:n_old])
            pull = _exp(old[:, 0], teacher).mul_(grad_kd)
            d_background -= pull * _exp(parts.z0, parts.background)
            d_new -= pull * _exp(parts.new, parts.background)
        _softmax_times(z[:, n_old:], parts.new, d_new, grad[:, n_old:])
        grad[:, 0] = d_background
        grad.scatter_add_(1, own_class[:, None], (folded - supervised)[:, None])
        return grad.view_as(logits), None, None, None, None


class _Parts(NamedTuple):
    """Log-sum-exps of the groups {0}, old foreground, new, and of their unions; maps (B, P)."""

    z0: Tensor
    foreground: Tensor
    new: Tensor
    old: Tensor
    background: Tensor
    all: Tensor

    @classmethod
    def of(cls, z: Tensor, n_old: int) -> _Parts:
        """From z (B, C, P)."""
        z0, foreground, new = z[:, 0], _logsumexp(z[:, 1:n_old]), _logsumexp(z[:, n_old:])
        old = torch.logaddexp(z0, foreground)
        return cls(z0, foreground, new, old, torch.logaddexp(z0, new), torch.logaddexp(old, new))


# The functions below allocate nothing as large as their input: they work on pieces that fit the processor's cache.
# Maps (B, P) are log-sum-exps or factors.
PIECE = 2**19


def _exp(x: Tensor, logsumexp: Tensor) -> Tensor:
    """Maps exp(x - logsumexp): the share of one group in another."""
    return (x - logsumexp).exp_()


def _scaled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (b, c, n) -> exp(x - max) (b, c, n), its sum over c and the maximum (b, n)."""
    highest = x.amax(1)
    scaled = (x - highest[:, None]).exp_()
    return scaled, scaled.sum(1), highest


def _logsumexp(x: Tensor) -> Tensor:
    """x (B, c, P) -> (B, P); -inf where c = 0: no old class but background."""
    out = x.new_full((x.shape[0], x.shape[2]), -math.inf)
    for b, p in tiles(x, PIECE):
        _, total, highest = _scaled(x[b, :, p])
        torch.add(total.log_(), highest, out=out[b, p])
    return out


def _expected(old: Tensor, z: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """old (B, O, P), z (B, C, P), background (B, P) -> the teacher's log-sum-exp, and q_0 background + sum_c>0 q_c z_c.

    Both (B, P); ``background`` is the student's log-sum-exp of background and new classes.
    """
    logsumexp, expected = (old.new_empty(old.shape[0], old.shape[2]) for _ in range(2))
    for b, p in tiles(old, PIECE):
        scaled, total, highest = _scaled(old[b, :, p])  # q times its sum
        weighted = scaled[:, 0] * background[b, p] + scaled[:, 1:].mul_(z[b, 1 : old.shape[1], p]).sum(1)
        torch.div(weighted, total, out=expected[b, p])
        torch.add(total.log_(), highest, out=logsumexp[b, p])
    return logsumexp, expected


def _softmax_times(x: Tensor, logsumexp: Tensor, factor: Tensor, out: Tensor) -> None:
    """Write softmax(x) * factor into ``out`` (B, c, P)."""
    for b, p in tiles(x, PIECE):
        torch.sub(x[b, :, p], logsumexp[b, None, p], out=out[b, :, p]).exp_().mul_(factor[b, None, p])


def _less_softmax(x: Tensor, logsumexp: Tensor, factor: Tensor, out: Tensor) -> None:
    """Subtract softmax(x) * factor () from ``out`` (B, c, P)."""
    for b, p in tiles(x, PIECE):
        out[b, :, p].sub_((x[b, :, p] - logsumexp[b, None, p]).exp_().mul_(factor))


def _own(label: Tensor, n_old: int, keeps_old: bool) -> tuple[Tensor, Tensor]:
    """Where the label means its own channel only, and that channel (0 elsewhere)."""
    own = (label >= (1 if keeps_old else n_old)) & (label != VOID)
    return own, torch.where(own, label, 0)


def background_shares(model: Any, step: Step) -> None:
    """New rows are copies of background's; together they keep its old probability (MiB eq. 9-10, F-INIT)."""
    first, new = model.classifier.blocks[0], model.classifier.blocks[step.index]
    with torch.no_grad():
        first.bias[0] -= math.log(len(new.bias) + 1)
        new.weight.copy_(first.weight[:1].expand_as(new.weight))
        new.bias.copy_(first.bias[0].expand_as(new.bias))


@register_method("MiB", paper="Cermelli et al., CVPR 2020, arXiv 2002.00718")
def mib(kd: Annotated[Weight, Search(1, 100)] = 10.0) -> Method:
    """Unbiased cross entropy, unbiased distillation, and new classifier rows that share background's probability.

    kd: weight of the distillation; 10 in the authors' release, 100 for its 15-1 (issues 22 and 43 there)
    """
    terms: dict[str, Term] = {"unce": UnbiasedCrossEntropy(), "unkd": UnbiasedDistillation(weight=kd)}
    return Method("MiB", terms=terms, init=background_shares, domains=True)
