"""ALIFE: adaptive logit regulariser. Oh, Baek and Ham, "ALIFE: Adaptive Logit Regularizer and Feature Replay for
Incremental Semantic Segmentation", NeurIPS 2022, arXiv 2210.06816.

Background pixels have no label of their own: cross entropy leaves them out. There the previous model's probabilities
are the target of the softmax over all classes, so that new logits fall. Where a label is given, the old logits are
distilled by themselves.

Source: F-CE-FG, F-ALI and F-ALIFE-KD of docs/methods.md, from ``ALIFE@353bf0b`` (``run_step1.py``, ``configs/``). The
printed equations were not read. This is the release's ALIFE without memory: its feature replay (ALIFE-M) has a second
and a third training stage with stored features. Its decoder has one more 3x3 convolution, and dropout of
1/2 in front of it at step 0, which networks here have not; it upsamples logits with aligned corners, here without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from contseg.datasets.scenario import BACKGROUND, VOID, Step
from contseg.methods.base import Batch, Method, Term, later
from contseg.methods.losses import cross_entropy_sum
from contseg.methods.mib import background_shares
from contseg.methods.modules import without_norms
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method


def soft_cross_entropy(logits: Tensor, old_logits: Tensor) -> Tensor:
    """(B, H, W): -sum_{c<O} q_c log p_c, p the softmax of logits (B, C, H, W) and q that of old_logits (B, O, H, W)."""
    n_old = old_logits.shape[1]
    return logits.logsumexp(1) - (old_logits.softmax(1) * logits[:, :n_old]).sum(1)


@dataclass(eq=False)
class ForegroundCrossEntropy(Term):
    """Cross entropy where the label is neither background nor void, mean over all pixels (as released)."""

    uses_setup = False
    counts_void: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Tensor:
        labels = batch.labels.masked_fill(batch.labels == BACKGROUND, VOID)
        return batch.reduce(cross_entropy_sum(batch.logits, labels)) / batch.n_pixels


@dataclass(eq=False)
class LogitRegulariser(Term):
    """Cross entropy with the previous model's softmax as target, mean over background pixels (F-ALI)."""

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        return _mean(batch, soft_cross_entropy(batch.logits, batch.old_logits), batch.labels == BACKGROUND)


@dataclass(eq=False)
class ForegroundDistillation(Term):
    """F-KD where the label is not background, void included: a mean over these pixels and the old classes."""

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        n_old = batch.old_logits.shape[1]
        pixels = soft_cross_entropy(batch.logits[:, :n_old], batch.old_logits) / n_old
        return _mean(batch, pixels, batch.labels != BACKGROUND)


def _mean(batch: Batch, pixels: Tensor, chosen: Tensor) -> Tensor:
    """Over the chosen pixels of the global batch; 0 if there is none."""
    return batch.reduce((pixels * chosen).sum()) / batch.reduce(chosen.sum().to(pixels.dtype)).clamp(min=1)


@later
def without_normalisation(model: Any, step: Step) -> list[dict[str, Any]]:
    """Everything trains except the norms of encoder and ASPP."""
    return [{"params": without_norms([model.encoder, model.aspp, model.classifier])}]


@register_method("ALIFE", paper="Oh et al., NeurIPS 2022, arXiv 2210.06816")
def alife(ali: Annotated[Weight, Search(0.1, 10)] = 3.0, kd: Annotated[Weight, Search(0.1, 10)] = 1.0) -> Method:
    """No label for background: there the previous model's probabilities are the target. Without feature replay.

    ali: weight of that target; 3 for VOC, 1 for ADE as released (configs/)
    kd: weight of the distillation at labelled pixels; 1 as released (configs/)
    """
    terms: dict[str, Term] = {
        "ce": ForegroundCrossEntropy(),
        "ali": LogitRegulariser(weight=ali),
        "kd": ForegroundDistillation(weight=kd),
    }
    return Method("ALIFE", terms=terms, init=background_shares, trainable=without_normalisation)
