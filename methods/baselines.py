"""Three baselines that freeze most of the network after step 0.

Zhang et al., "Revisiting Continual Semantic Segmentation with Pre-trained Vision Models", arXiv 2508.04267, find that
forgetting happens in the classifier rather than in the backbone. Their own method is ``DFTStar`` (``methods/dft.py``).
Only one of the three baselines is in their release: ``LinearProbe``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.scenario import Step
from contseg.methods.base import (
    CrossEntropy,
    Method,
    SegOutput,
    StepContext,
    Term,
    full_precision,
    later,
    resize,
    shrink_labels,
)
from contseg.methods.fit import EMBEDDING, ENCODER, freezes
from contseg.methods.losses import class_sums, hot
from contseg.methods.registry import register_method

PAPER = "after Zhang et al., 2025, arXiv 2508.04267"


@register_method("FrozenBackbone", paper=PAPER)
def frozen_backbone() -> Method:
    """Fine-tuning of ASPP and classifier; the encoder is frozen after step 0.

    Not in the release of arXiv 2508.04267, which always freezes ASPP together with the encoder.
    """
    return Method("FrozenBackbone", terms={"ce": CrossEntropy()}, trainable=train_head, domains=True)


@register_method("LinearProbe", paper=PAPER)
def linear_probe() -> Method:
    """Fine-tuning of the classifier alone, on the features of step 0: old rows and background's learn too.

    It is what the release of arXiv 2508.04267 calls FixB. It is not DFT*, where old rows are frozen, and not that
    paper's "probing", a measurement: there a new classifier is trained on all classes with all labels.
    """
    return Method("LinearProbe", terms={"ce": CrossEntropy()}, trainable=train_classifier, domains=True)


@register_method("NearestPrototype", paper=PAPER)
def nearest_prototype() -> Method:
    """No update after step 0: a pixel gets the class whose mean embedding has the smallest angle to its embedding."""
    means = ClassMeans()
    return Method(
        "NearestPrototype",
        first={"ce": CrossEntropy(), "means": means},
        terms={"means": means},
        trainable=train_nothing,
        predict=NearestMean(means),
    )


# --- what trains ---------------------------------------------------------------------------------------------------


@later
@freezes(ENCODER)
def train_head(model: Any, step: Step) -> list[dict[str, Any]]:
    """All parameters after the encoder."""
    encoder = {id(p) for p in model.encoder.parameters()}
    return [{"params": [p for p in model.parameters() if id(p) not in encoder]}]


@later
@freezes(ENCODER, EMBEDDING)
def train_classifier(model: Any, step: Step) -> list[dict[str, Any]]:
    """The classifier alone."""
    return [{"params": list(model.classifier.parameters())}]


@later
def train_nothing(model: Any, step: Step) -> list[dict[str, Any]]:
    """No update."""
    return []


# --- nearest prototype ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ClassMeans(Term):
    """Mean direction of each class's embedding, over all positions of the step in which the class is new.

    Computed in one pass after the last update, with the network in evaluation mode and labels resized to the embedding.
    The mean of background comes from step 0, because at later steps its label contains old classes. The mean of a class
    without positions is zero.
    """

    observes = True
    uses_setup = False
    state = ("means",)
    means: Tensor | None = field(default=None, init=False, repr=False)  # (C, E)

    def end_step(self, ctx: StepContext) -> None:
        sums: Tensor | int = 0
        for images, labels in ctx.loader():
            with torch.no_grad():
                directions = F.normalize(full_precision(ctx.model(images).embedding), dim=1)
            small = shrink_labels(labels, (directions.shape[2], directions.shape[3]))
            sums = sums + class_sums(directions.flatten(2), hot(small, ctx.step.n_classes, directions.dtype))
        new = F.normalize(ctx.reduce(torch.as_tensor(sums))[ctx.step.n_old :], dim=1)
        self.means = new if self.means is None else torch.cat([self.means.to(new), new])


@dataclass(eq=False)
class NearestMean:
    """The class with the largest cosine; cosines are upsampled like logits. A class without a mean is never chosen."""

    means: ClassMeans

    def __call__(self, out: SegOutput, size: tuple[int, int]) -> Tensor:
        assert self.means.means is not None, "class means come at the end of a step"
        means = self.means.means
        cosine = torch.einsum("behw,ce->bchw", F.normalize(full_precision(out.embedding), dim=1), means)
        known = (means.square().sum(1) > 0)[:, None, None]
        return resize(torch.where(known, cosine, -2), size).argmax(1)
