"""SSUL: semantic segmentation with unknown label (Cha et al., NeurIPS 2021, arXiv 2106.11562).

Independent sigmoid heads, and one more channel, *unknown*: background that may contain future classes. After step 0 the
encoder, the ASPP and the heads of old classes are frozen, so pseudo-labels train only the unknown, the background and
the new head. A new head starts as a copy of the unknown head.

Source: F-SSUL-LABEL, F-SSUL-PSEUDO, F-BCE and F-SSUL-PRED of docs/methods.md, from ``SSUL@e08ee9c``, in the form
without external saliency (the release's own rule for ADE): every background pixel is unknown. No memory (SSUL-M).
Differs from the release: the last state is kept, not the one with the best validation score on the step's classes.

Channels of scores and labels are shifted by one: 0 unknown, 1 background, class k at k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contseg.datasets.scenario import BACKGROUND, VOID, Step
from contseg.methods.base import Batch, Method, SegOutput, Term, full_precision, resize
from contseg.methods.fit import PARTS, freezes
from contseg.methods.lwf_mc import log_partition, own_logit
from contseg.methods.modules import beside, drawn_from, norm_like, own_heads, without_norms
from contseg.methods.ranges import Share, Weight
from contseg.methods.registry import register_method

UNKNOWN = 0

# --- the network ---------------------------------------------------------------------------------------------------


class Head(nn.Sequential):
    """Embedding (B, E, h, w) -> logits (B, n, h, w) of a group of classes: 3x3 convolution, norm, ReLU, 1x1."""

    def __init__(self, norm: nn.Module, channels: int, n: int) -> None:
        hidden = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        super().__init__(hidden, norm, nn.ReLU(), nn.Conv2d(channels, n, 1))


def new_head(model: nn.Module, channels: int, n: int, seed: int, purpose: str) -> Head:
    """A head with the kind of norm that ``model`` has, on the same device."""
    with drawn_from(seed, f"SSUL head, {purpose}"):
        head = Head(norm_like(model, channels), channels, n)
    return beside(head, model)


class GroupHeads(nn.Module):
    """Embedding (B, E, h, w) -> logits (B, C, h, w): a head for background and one for each step's classes.

    It replaces the 1x1 classifier, and grows in the same way.
    """

    def __init__(self, background: Head, first: Head, channels: int, seed: int) -> None:
        super().__init__()
        self.channels, self.seed = channels, seed
        self.background, self.blocks = background, nn.ModuleList([first])

    def grow(self, n: int) -> None:
        """Add a head for ``n`` new classes."""
        self.blocks.append(new_head(self, self.channels, n, self.seed, f"step {len(self.blocks)}"))

    def forward(self, embedding: Tensor) -> Tensor:
        return torch.cat([self.background(embedding), *(head(embedding) for head in self.blocks)], dim=1)


@own_heads
def head_per_group(model: Any, step: Step) -> None:
    """At step 0, replace the classifier by heads of two layers, and add the unknown head."""
    if step.index > 0:
        return
    rows, seed = model.classifier.blocks[0], model.classifier.seed
    sizes = {"background": 1, "step 0": rows.out_channels - 1, "unknown": 1}
    background, first, unknown = (new_head(model, rows.in_channels, n, seed, name) for name, n in sizes.items())
    model.classifier = GroupHeads(background, first, rows.in_channels, seed)
    model.heads["unknown"] = unknown


def start_from_unknown(model: Any, step: Step) -> None:
    """The new head is a copy of the unknown head; the unknown row initialises every new class (main.py:305)."""
    unknown, new = model.heads["unknown"], model.classifier.blocks[-1]
    with torch.no_grad():
        for mine, theirs in zip(new.state_dict().values(), unknown.state_dict().values(), strict=True):
            mine.copy_(theirs.expand_as(mine))


@freezes(*PARTS)
@dataclass(frozen=True)
class NewUnknownBackground:
    """Later steps train the new and the unknown head, and the background head very slowly; all norms are frozen."""

    encoder_lr: float
    later_lr: float
    background_lr: float = 1e-4  # main.py:243-260

    def __call__(self, model: Any, step: Step) -> list[dict[str, Any]]:
        classifier, unknown = model.classifier, model.heads["unknown"]
        if step.index == 0:
            heads = [*model.aspp.parameters(), *classifier.parameters(), *unknown.parameters()]
            return [{"params": list(model.encoder.parameters()), "lr_scale": self.encoder_lr}, {"params": heads}]
        return [
            {"params": without_norms([classifier.blocks[-1], unknown]), "lr_scale": self.later_lr},
            {"params": without_norms([classifier.background]), "lr_scale": self.later_lr * self.background_lr},
        ]


def scores(out: SegOutput) -> Tensor:
    """(B, C + 1, h, w): the unknown channel, then the logits."""
    return torch.cat([full_precision(out.extra["unknown"]), full_precision(out.logits)], dim=1)


def unknown_is_background(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """(B, H, W): arg max after adding the sigmoids of unknown and background (F-SSUL-PRED)."""
    probability = resize(scores(out), size).sigmoid()
    background = probability[:, :2].sum(1, keepdim=True)
    return torch.cat([background, probability[:, 2:]], dim=1).argmax(1)


# --- the loss ------------------------------------------------------------------------------------------------------


def shifted_labels(labels: Tensor, salient: Tensor) -> Tensor:
    """(B, H, W): void stays; background becomes unknown where salient; class k becomes k + 1 (F-SSUL-LABEL).

    labels (B, H, W), salient (B, H, W) bool, or () for one value everywhere.
    """
    background = torch.where(salient, UNKNOWN, UNKNOWN + 1)
    return torch.where(labels == VOID, VOID, torch.where(labels == BACKGROUND, background, labels + 1))


def pseudo_labels(shifted: Tensor, old_scores: Tensor, threshold: float) -> Tensor:
    """(B, H, W): unknown and background become the old class that the previous model is certain of (F-SSUL-PSEUDO).

    shifted (B, H, W), old_scores (B, O + 1, H, W).
    """
    best, channel = old_scores.sigmoid().max(1)
    sure = (channel >= 2) & (best >= threshold)
    return torch.where((shifted < 2) & sure, channel, shifted)


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, H, W): binary cross entropy with the one-hot label, summed over channels; 0 where void (F-BCE).

    logits (B, K, H, W), labels (B, H, W).
    """
    return (log_partition(logits).sum(1) - own_logit(logits, labels)) * (labels != VOID)


@dataclass(eq=False)
class UnknownBCE(Term):
    """F-BCE over the channels of all classes seen and the unknown one, mean over the valid pixels."""

    uses_old = True
    uses_setup = False
    weighable = True

    threshold: float = 0.7

    def __call__(self, batch: Batch) -> Tensor:
        size = batch.labels.shape[-2], batch.labels.shape[-1]
        labels = shifted_labels(batch.labels, torch.ones_like(batch.labels, dtype=torch.bool))
        if batch.step.index > 0:
            labels = pseudo_labels(labels, resize(scores(batch.old), size).detach(), self.threshold)
        return self.mean(batch, labels)

    def mean(self, batch: Batch, labels: Tensor) -> Tensor:
        """The mean over valid pixels; labels (B, H, W) number the channels: 0 unknown, 1 background, k + 1 class k."""
        size = batch.labels.shape[-2], batch.labels.shape[-1]
        pixels = sigmoid_cross_entropy(resize(scores(batch.out), size), labels)
        if batch.pixel_weight is not None:
            targets = torch.where(labels == VOID, VOID, (labels - 1).clamp(min=BACKGROUND))
            pixels = pixels * batch.pixel_weight(targets, resize(scores(batch.old), size))
        total = pixels.sum()
        return batch.reduce(total) / batch.reduce(batch.valid.sum().to(total.dtype)).clamp(min=1)


@register_method("SSUL", paper="Cha et al., NeurIPS 2021, arXiv 2106.11562")
def ssul(threshold: Share = 0.7, encoder_lr: Weight = 0.1, later_lr: Weight = 10.0) -> Method:
    """Unknown channel, pseudo-labels and a frozen network; without saliency and without memory.

    threshold: sigmoid from which the previous model's class becomes a pseudo-label; 0.7 as released
    encoder_lr: the encoder's learning rate over that of the heads at step 0; 0.001 / 0.01 as released
    later_lr: factor of the heads' learning rate at later steps; 0.01 for VOC as released, over the usual 0.001
    """
    loss = UnknownBCE(threshold)
    return Method(
        "SSUL",
        terms={"bce": loss},
        first={"bce": loss},
        build=head_per_group,
        init=start_from_unknown,
        trainable=NewUnknownBackground(encoder_lr, later_lr),
        predict=unknown_is_background,
    )
