"""DKD: decomposed knowledge distillation (Baek et al., NeurIPS 2022, arXiv 2210.05941).

Independent sigmoid classifiers replace the softmax, so old and new classes do not compete. Distillation keeps the
logits of the old classes and, separately, the evidence for and against each of them. The first row of the classifier is
not a background class but the *auxiliary* row, "none of the classes seen". It is trained on detached features to answer
no at every pixel. It initialises the rows of the next classes and is not used in the prediction.

Source: F-MBCE, F-BKD, F-DKD, F-AC, F-DKD-PRED of docs/methods.md, from ``DKD@fb4693f``. Checkpoints, data recipe and
warm-up are those of the suite. Differs from the release in F-MBCE: void pixels are left out (in the release they are
negatives of every new class).

The split into evidence for and against needs non-negative features before the classifier (ReLU, not leaky).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, Method, Reduce, SegOutput, Term, full_precision, resize
from contseg.methods.lwf_mc import log_partition
from contseg.methods.modules import without_norms
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method

# --- the network ---------------------------------------------------------------------------------------------------


def logit_parts(embedding: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The evidence for and against each class: z+ and z-, each (B, K, h, w), without bias (F-DKD).

    embedding (B, E, h, w), weight (K, E, 1, 1); z+ + z- + bias is the logit.
    """
    return F.conv2d(embedding, weight.clamp(min=0)), F.conv2d(embedding, weight.clamp(max=0))


def decompose(model: Any, images: tuple[Tensor, ...], out: SegOutput) -> SegOutput:
    """Forward hook. It gives background the logit 0, and adds to ``extra``: "for" and "against" (B, C - 1, h, w) of the
    foreground classes, and "auxiliary" (B, 1, h, w), which gives no gradient to the features."""
    rows = torch.cat([block.weight for block in model.classifier.blocks])
    speaks_for, speaks_against = logit_parts(out.embedding, rows[1:])
    auxiliary = F.conv2d(out.embedding.detach(), rows[:1], model.classifier.blocks[0].bias[:1])
    parts = {"for": speaks_for, "against": speaks_against, "auxiliary": auxiliary}
    return half_for_background(model, images, out._replace(extra={**out.extra, **parts}))


def half_for_background(model: Any, images: tuple[Tensor, ...], out: SegOutput) -> SegOutput:
    """Forward hook. The logit of background is 0, a sigmoid of 1/2, and not that of row 0, which predicts nothing: the
    arg max of the logits is then F-DKD-PRED, for whatever reads them (SDR, UCD)."""
    return out._replace(logits=torch.cat([torch.zeros_like(out.logits[:, :1]), out.logits[:, 1:]], 1))


def add_decomposition(model: Any, step: Step) -> None:
    """Make the network return the parts of its logits. The classifier does not change."""
    if step.index == 0:
        if not getattr(model.aspp, "nonnegative", True):
            raise UserError("DKD needs an embedding that is never negative: set model.head_activation=relu")
        model.register_forward_hook(decompose)


def start_from_auxiliary(model: Any, step: Step) -> None:
    """Every new row starts as the auxiliary row of the previous step, weight and bias (models/model.py:110)."""
    auxiliary, new = model.classifier.blocks[0], model.classifier.blocks[-1]
    with torch.no_grad():
        new.weight.copy_(auxiliary.weight[:1].expand_as(new.weight))
        new.bias.copy_(auxiliary.bias[:1].expand_as(new.bias))


@dataclass(frozen=True)
class SlowEncoder:
    """A lower learning rate for the encoder. At later steps norms are frozen and only new rows have weight decay."""

    lr_scale: float

    def __call__(self, model: Any, step: Step) -> list[dict[str, Any]]:
        if step.index == 0:
            head = [*model.aspp.parameters(), *model.classifier.parameters()]
            return [{"params": list(model.encoder.parameters()), "lr_scale": self.lr_scale}, {"params": head}]
        *old, new = model.classifier.blocks
        return [
            {"params": without_norms([model.encoder]), "lr_scale": self.lr_scale, "weight_decay": 0.0},
            {"params": without_norms([model.aspp, *old]), "weight_decay": 0.0},
            {"params": list(new.parameters())},
        ]


def above_half(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """(B, H, W): the most probable foreground class if its sigmoid exceeds 1/2, else background (F-DKD-PRED)."""
    best, channel = resize(full_precision(out.logits), size)[:, 1:].max(1)
    return torch.where(best > 0, channel + 1, 0)


# --- the losses ----------------------------------------------------------------------------------------------------


def multi_bce(logits: Tensor, labels: Tensor, first: int, positive_weight: float) -> Tensor:
    """(B, H, W): binary cross entropy summed over the classes from ``first`` on (F-MBCE).

    logits (B, C, H, W), labels (B, H, W).
    """
    new = logits[:, first:]
    channels = torch.arange(first, logits.shape[1], device=logits.device)
    positive = labels[:, None] == channels[:, None, None]
    return torch.where(positive, positive_weight * log_partition(-new), log_partition(new)).sum(1)


def binary_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """(B, h, w): binary cross entropy with the old sigmoids, summed over classes (F-BKD, F-DKD).

    logits, old_logits (B, K, h, w).
    """
    return (log_partition(logits) - old_logits.detach().sigmoid() * logits).sum(1)


def mean(values: Tensor, reduce: Reduce) -> Tensor:
    """Over all pixels of all processes."""
    return reduce(values.sum()) / reduce(values.new_full((), values.numel()))


@dataclass(eq=False)
class MultiBCE(Term):
    """F-MBCE: the step's classes against everything else, over the valid pixels."""

    uses_setup = False

    positive_weight: float = 1.0

    def __call__(self, batch: Batch) -> Tensor:
        first = max(batch.step.n_old, 1)
        pixels = multi_bce(batch.logits, batch.labels, first, self.positive_weight)
        return batch.reduce((pixels * batch.valid).sum()) / batch.n_valid


@dataclass(eq=False)
class BinaryDistillation(Term):
    """F-BKD: the old foreground classes, every pixel, at label size."""

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        n_old = batch.step.n_old
        return mean(binary_distillation(batch.logits[:, 1:n_old], batch.old_logits[:, 1:n_old]), batch.reduce)


@dataclass(eq=False)
class EvidenceDistillation(Term):
    """F-DKD: one part of the old foreground logits, "for" or "against", at feature size."""

    uses_old = True
    uses_setup = False

    part: str

    def __call__(self, batch: Batch) -> Tensor:
        old = full_precision(batch.old.extra[self.part])
        new = full_precision(batch.out.extra[self.part])[:, : old.shape[1]]
        return mean(binary_distillation(new, old), batch.reduce)


@dataclass(eq=False)
class Auxiliary(Term):
    """F-AC: the auxiliary row answers no at every pixel, at label size."""

    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        size = batch.labels.shape[-2], batch.labels.shape[-1]
        return mean(log_partition(resize(full_precision(batch.out.extra["auxiliary"]), size)), batch.reduce)


@register_method("DKD", paper="Baek et al., NeurIPS 2022, arXiv 2210.05941")
def dkd(
    kd: Annotated[Weight, Search(0.5, 50)] = 5.0,
    evidence: Annotated[Weight, Search(0.5, 50)] = 5.0,
    first_positive: Weight = 2.0,
    positive: Weight = 1.0,
    encoder_lr: Weight = 0.1,
) -> Method:
    """Decomposed knowledge distillation: sigmoid classifiers; separate distillation of evidence for and against.

    kd: weight of the old logits' distillation; 5 as released (configs/config_voc.json)
    evidence: weight of each of the two parts' distillation; 5 as released (configs/config_voc.json)
    first_positive: weight of positive pixels at step 0; 2 for VOC, 35 for ADE as released
    positive: weight of positive pixels at later steps; 1 for VOC, 35 for ADE as released
    encoder_lr: the encoder's learning rate over that of ASPP and classifier; 1/10 as released
    """
    return Method(
        "DKD",
        terms={
            "mbce": MultiBCE(positive),
            "kd": BinaryDistillation(weight=kd),
            "dkd+": EvidenceDistillation("for", weight=evidence),
            "dkd-": EvidenceDistillation("against", weight=evidence),
            "ac": Auxiliary(),
        },
        first={"mbce": MultiBCE(first_positive), "ac": Auxiliary()},
        build=add_decomposition,
        init=start_from_auxiliary,
        trainable=SlowEncoder(encoder_lr),
        predict=above_half,
    )
