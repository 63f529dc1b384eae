"""CFSSeg: a classifier in closed form. Li et al., "CFSSeg: Closed-Form Solution for Class-Incremental Semantic
Segmentation of 2D Images and 3D Point Clouds", 2025, arXiv 2412.10834.

Step 0 trains a network with sigmoid rows. After that the network never changes. Its rows go, and the classifier
is a ridge regression of one-hot labels on a fixed random expansion of the embedding. One pass over each step's images
brings it up to date: it equals the regression on all images ever seen, in any order, so that nothing is forgotten. But
old classes in later images are background in their labels, unless the classifier is sure of them (pseudo-labels).

Source: F-RLS of docs/methods.md, from ``SegACIL@a782479``; the printed equations were not read. Differs from the
release in what it keeps, the sums A and B instead of the inverse, from which the same weights follow; and in the state
of step 0, the last one (there the best by validation score). ``width=2048`` is ours: the release's logs have 16384,
whose sums take 2.1 GB a step (34 MB at 2048). Scores approximate 0 and 1, so that a sigmoid of 0.7 is a score of 0.85.
From 0.74 on (the release's ``run.sh`` has 0.9) hardly a pixel is relabelled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from contseg.datasets.scenario import BACKGROUND, Step
from contseg.methods.base import Method, SegOutput, StepContext, Term, full_precision, resize, shrink_labels
from contseg.methods.losses import hot
from contseg.methods.lwf_mc import BinaryCrossEntropy
from contseg.methods.modules import beside, drawn_from, norm_like, own_heads
from contseg.methods.ranges import Count, Positive, Share, Weight
from contseg.methods.registry import register_method

# --- the network ---------------------------------------------------------------------------------------------------


@own_heads
def deeper_head(model: Any, step: Step) -> None:
    """At step 0 put a 3x3 convolution, norm and ReLU behind ASPP: their output is the embedding."""
    if step.index > 0:
        return
    channels = model.classifier.blocks[0].in_channels
    with drawn_from(model.classifier.seed, "CFSSeg head"):
        hidden = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers = nn.Sequential(hidden, norm_like(model, channels), nn.ReLU())
    model.aspp = nn.Sequential(model.aspp, *beside(layers, model))


@dataclass(frozen=True)
class FirstStepOnly:
    """Step 0 trains everything, the encoder slower than the rest; later nothing trains."""

    encoder_lr: float

    def __call__(self, model: Any, step: Step) -> list[dict[str, Any]]:
        if step.index > 0:
            return []
        head = [*model.aspp.parameters(), *model.classifier.parameters()]
        return [{"params": list(model.encoder.parameters()), "lr_scale": self.encoder_lr}, {"params": head}]


# --- the classifier ------------------------------------------------------------------------------------------------


def expand(embedding: Tensor, projection: Tensor) -> Tensor:
    """phi (B, K, hw) = relu(projection f), float64, of an embedding (B, E, h, w); projection (K, E)."""
    return (projection @ embedding.flatten(2).to(projection.dtype)).relu()


def ridge(gram: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """(K, C) weights: (A + gamma I)^-1 B."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(gram + gamma * eye))


@dataclass(eq=False)
class AnalyticClassifier(Term):
    """F-RLS: ridge regression on all positions seen so far, from one pass at the end of each step.

    The network is in evaluation mode. Labels come to the embedding's size by nearest neighbour; void is left out.
    """

    observes = True
    state = ("projection", "gram", "targets", "weights")

    width: int = 2048
    gamma: float = 10.0
    threshold: float | None = 0.7
    projection: Tensor | None = field(default=None, init=False, repr=False)  # (K, E), fixed
    gram: Tensor | None = field(default=None, init=False, repr=False)  # A = sum phi phi^T (K, K)
    targets: Tensor | None = field(default=None, init=False, repr=False)  # B = sum phi y^T (K, C)
    weights: Tensor | None = field(default=None, init=False, repr=False)  # (K, C)

    def end_step(self, ctx: StepContext) -> None:
        classes = ctx.step.n_classes
        if self.projection is None:
            self._begin(ctx)
        assert self.projection is not None and self.gram is not None and self.targets is not None
        gram, targets = torch.zeros_like(self.gram), self.targets.new_zeros(self.width, classes)
        for images, labels in ctx.loader():
            with torch.no_grad():
                embedding = full_precision(ctx.model(images).embedding)
            if ctx.step.index > 0 and ctx.step.setup != "sequential" and self.threshold is not None:
                labels = self.relabel(embedding, labels, self.threshold)
            small = shrink_labels(labels, (embedding.shape[2], embedding.shape[3]))
            for phi, y in zip(embedding.split(1), hot(small, classes, gram.dtype), strict=True):
                phi = expand(phi, self.projection)[0]
                gram += (phi * y.sum(0)) @ phi.T  # y has no 1 at void
                targets += phi @ y.T
        self.gram = self.gram + ctx.reduce(gram)
        before = torch.nn.functional.pad(self.targets, (0, classes - self.targets.shape[1]))
        self.targets = before + ctx.reduce(targets)
        self.weights = ridge(self.gram, self.targets, self.gamma)

    def scores(self, embedding: Tensor) -> Tensor:
        """(B, C, h, w) of an embedding (B, E, h, w): about 1 for its class, about 0 for the others."""
        assert self.projection is not None and self.weights is not None, "the classifier comes at the end of a step"
        scores = self.weights.T @ expand(embedding, self.projection)
        return scores.unflatten(2, embedding.shape[2:])

    def relabel(self, embedding: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Background becomes the class whose sigmoid is the largest, if that is at least the threshold."""
        sigmoids = resize(self.scores(embedding).sigmoid(), (labels.shape[1], labels.shape[2]))
        best, channel = sigmoids.max(1)
        return torch.where((labels == BACKGROUND) & (best >= threshold), channel, labels)

    def _begin(self, ctx: StepContext) -> None:
        device = next(ctx.model.parameters()).device
        channels = ctx.model.classifier.blocks[0].in_channels
        with drawn_from(ctx.seed, "CFSSeg projection"):
            bound = channels**-0.5  # torch's for a linear layer
            drawn = torch.empty(self.width, channels, dtype=torch.float64).uniform_(-bound, bound)
        self.projection = drawn.to(device)
        self.gram = self.projection.new_zeros(self.width, self.width)
        self.targets = self.projection.new_zeros(self.width, 0)


@dataclass(eq=False)
class LargestSigmoid:
    """(B, H, W): arg max of the classifier's sigmoids, upsampled."""

    classifier: AnalyticClassifier

    def __call__(self, out: SegOutput, size: tuple[int, int]) -> Tensor:
        return resize(self.classifier.scores(full_precision(out.embedding)).sigmoid(), size).max(1).indices


@register_method("CFSSeg", paper="Li et al., 2025, arXiv 2412.10834")
def cfsseg(
    width: Count = 2048, gamma: Positive = 10.0, threshold: Share | None = 0.7, encoder_lr: Weight = 0.1
) -> Method:
    """A frozen network and a ridge regression on a random expansion of its embedding, in closed form.

    width: channels of the random expansion; 16384 in the release's logs, which takes 2.1 GB a step
    gamma: of the ridge regression; 10 as released (utils/parser.py)
    threshold: sigmoid from which background becomes a pseudo-label, none: never; 0.7 in the release's logs
    encoder_lr: the encoder's learning rate over that of the rest at step 0; 0.001 / 0.01 as released
    """
    classifier = AnalyticClassifier(width, gamma, threshold)
    return Method(
        "CFSSeg",
        terms={"classifier": classifier},
        first={"bce": BinaryCrossEntropy(), "classifier": classifier},
        build=deeper_head,
        trainable=FirstStepOnly(encoder_lr),
        predict=LargestSigmoid(classifier),
    )
