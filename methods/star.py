"""STAR: replay of features drawn from class statistics. Chen et al., "Saving 100x Storage: Prototype
Replay for Reconstructing Training Sample Distribution in Class-Incremental Semantic Segmentation", NeurIPS 2023.

Without old images a step has too few negatives of its new classes. STAR keeps, for each class, one unit prototype with
the spread of its directions and of its norms. Features of old classes drawn from these, and true background counted
more than once, bring the negatives back to the proportion that full data would have. Two more terms keep the features
of old regions and hold new classes away from old prototypes.

Classifiers are independent sigmoids of foreground classes; row 0 of the classifier, background's, is not used.
Prediction as DKD (F-DKD-PRED). Old rows get no gradient and are frozen; the release lets them decay.

Source: F-STAR-STAT, -COUNT, -MBCE, -PKD, -CONT of docs/methods.md, from ``STAR@9e31f36``; the printed equations were
not read. Differs from the release where that is faulty: the spread of directions is taken around the class's own
prototype (there around another one's from the second step on), void pixels are left out of the supervision (there they
are negatives), the previous model's foreground is what it predicts, sigmoid above 1/2 (there logit above 1/2), and an
empty region or an absent class adds nothing (there NaN, and distance 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.datasets.scenario import BACKGROUND, VOID, Step
from contseg.methods.base import Batch, Method, StepContext, Term, full_precision, resize
from contseg.methods.dkd import MultiBCE, above_half, half_for_background, multi_bce
from contseg.methods.losses import class_sums, hot
from contseg.methods.lwf_mc import log_partition
from contseg.methods.modules import drawn_from, without_background, without_norms
from contseg.methods.ranges import Search, Share, Weight
from contseg.methods.registry import register_method

PAPER = "Chen et al., NeurIPS 2023"
TINY = 1e-12  # a norm below it has no direction

# --- the network ---------------------------------------------------------------------------------------------------


@without_background
def kaiming_rows(model: Any, step: Step) -> None:
    """Draw the newest rows' weights as the release does: normal, variance 2 / E (models/model.py)."""
    if step.index == 0:
        model.register_forward_hook(half_for_background)
    with drawn_from(model.classifier.seed, f"STAR rows, step {step.index}"):
        rows = nn.init.kaiming_normal_(torch.empty(model.classifier.blocks[-1].weight.shape))
    with torch.no_grad():
        model.classifier.blocks[-1].weight.copy_(rows)


@dataclass(frozen=True)
class ThreeRates:
    """The encoder learns slower than ASPP, new rows faster; later, normalisation and old rows are frozen."""

    encoder_lr: float
    new_lr: float

    def __call__(self, model: Any, step: Step) -> list[dict[str, Any]]:
        if step.index == 0:
            head = [*model.aspp.parameters(), *model.classifier.parameters()]
            return [{"params": list(model.encoder.parameters()), "lr_scale": self.encoder_lr}, {"params": head}]
        return [
            {"params": without_norms([model.encoder]), "lr_scale": self.encoder_lr},
            {"params": without_norms([model.aspp])},
            {"params": list(model.classifier.blocks[-1].parameters()), "lr_scale": self.new_lr},
        ]


# --- what is kept of a class ---------------------------------------------------------------------------------------


def centre_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at the centres of the cells of a feature map -> (B, h, w); at stride 16 labels[8::16, 8::16]."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(labels.dtype)


def directions(features: Tensor) -> Tensor:
    """Unit vectors along dimension 1; zero, with gradient zero, where there is no direction."""
    norms = features.norm(dim=1, keepdim=True)
    return torch.where(norms > TINY, features / torch.where(norms > TINY, norms, 1), 0)


class Statistics(NamedTuple):
    """Of K classes: ``prototypes`` (K, E) unit vectors, ``norms`` (2, K) mean and deviation of the features' norms,
    ``noise`` (K, E) deviation of directions from the prototype, ``counts`` (K,) positions."""

    prototypes: Tensor
    norms: Tensor
    noise: Tensor
    counts: Tensor


def class_moments(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, 2 E + 3) float64 sums over each class's positions: u, u^2, |f|, |f|^2 and 1, where u = f / |f|.

    features (B, E, h, w), labels (B, h, w).
    """
    f = features.to(torch.float64)
    norms, unit = f.norm(dim=1, keepdim=True), directions(f)
    moments = torch.cat([unit, unit.square(), norms, norms.square(), torch.ones_like(norms)], 1)
    return class_sums(moments.flatten(2), hot(labels, classes, torch.float64))


def statistics(moments: Tensor) -> Statistics:
    """F-STAR-STAT from sums (K, 2 E + 3). The deviation of norms is the unbiased one, 0 for a single position."""
    unit, squares, norm, norm2, count = moments.split([(moments.shape[1] - 3) // 2] * 2 + [1, 1, 1], 1)
    n = count.clamp(min=1)
    prototypes = directions(unit)
    noise = (squares / n - 2 * prototypes * unit / n + prototypes.square()).clamp(min=0).sqrt() * (count > 0)
    mean = norm / n
    spread = ((norm2 - n * mean.square()).clamp(min=0) / (n - 1).clamp(min=1)).sqrt()
    return Statistics(prototypes, torch.cat([mean, spread], 1).T, noise, count[:, 0])


class Plan(NamedTuple):
    """``per_update`` (O - 1,) features to draw of each old class, ``background`` () how much more true background
    counts, ``counts`` (O,) what the next step takes for the positions of background and old classes."""

    per_update: Tensor
    background: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Replay:
    """F-STAR-COUNT: how many features of each class full data would have, less those in this step's images.

    In the overlapped setup an image may be shown again at a later step, hence the subtraction; ``shrink`` is what
    background loses to each new class, ``known`` the share of background that the step itself shows. Both are bare
    constants in the release's trainer.
    """

    shrink: float = 0.01
    known: float = 0.5

    def __call__(self, counts: Tensor, predicted: Tensor, updates: int, step: Step) -> Plan:
        """counts (O,) as carried; predicted (O,) positions labelled 0 by the previous model's prediction.

        updates: those of an epoch.
        """
        old, before, shown = counts[1:], counts[0], predicted[0].clamp(min=1)
        if step.setup != "overlapped":
            plan = torch.div(old, updates, rounding_mode="floor")
            return Plan(plan, before / shown, counts + predicted)
        left = before * (1 - self.shrink * step.n_new)
        plan = torch.div((old - predicted[1:]).clamp(min=0), updates, rounding_mode="floor")
        background = (left / shown - self.known).clamp(min=0)
        return Plan(plan, background, torch.cat([(self.known * predicted[0] + left)[None], old]))


@dataclass(eq=False)
class ClassStatistics(Term):
    """The statistics of all classes learned, from one pass at the end of the step in which a class is new.

    At the start of a later step another pass counts what the previous model finds in this step's background.
    """

    observes = True
    uses_old = True
    state = ("prototypes", "norms", "noise", "counts")

    replay: Replay = Replay()
    prototypes: Tensor | None = field(default=None, init=False, repr=False)  # (C - 1, E)
    norms: Tensor | None = field(default=None, init=False, repr=False)  # (2, C - 1)
    noise: Tensor | None = field(default=None, init=False, repr=False)  # (C - 1, E)
    counts: Tensor | None = field(default=None, init=False, repr=False)  # (C,) background first; float64
    owner: Tensor | None = field(default=None, init=False, repr=False)  # (n,) classes of an update's features
    background: Tensor | None = field(default=None, init=False, repr=False)  # () weight of true background

    def begin_step(self, ctx: StepContext) -> None:
        if ctx.step.index == 0:
            return
        assert self.counts is not None and ctx.old_model is not None, "statistics begin at step 0"
        predicted = torch.zeros_like(self.counts)
        for images, labels in ctx.loader():
            with torch.no_grad():
                out = ctx.old_model(images)
            size = out.embedding.shape[2], out.embedding.shape[3]
            called = centre_labels(above_half(out, (labels.shape[1], labels.shape[2])), size)
            shown = torch.where(centre_labels(labels, size) == BACKGROUND, called, VOID)
            predicted = predicted + hot(shown, len(predicted), predicted.dtype).sum((0, 2))
        plan = self.replay(self.counts, ctx.reduce(predicted), ctx.epoch_updates, ctx.step)
        each = torch.where(self.known, plan.per_update, 0).long()
        self.owner = torch.arange(len(each), device=each.device).repeat_interleave(each)
        self.background, self.counts = plan.background, plan.counts

    def end_step(self, ctx: StepContext) -> None:
        channels = ctx.model.classifier.blocks[0].in_channels
        like = full_precision(next(ctx.model.parameters()).detach())
        moments = like.new_zeros(ctx.step.n_classes, 2 * channels + 3, dtype=torch.float64)
        for images, labels in ctx.loader():
            with torch.no_grad():
                embedding = full_precision(ctx.model(images).embedding)
            small = centre_labels(labels, (embedding.shape[2], embedding.shape[3]))
            moments = moments + class_moments(embedding, small, len(moments))
        moments = ctx.reduce(moments)
        new = statistics(moments[max(ctx.step.n_old, 1) :])
        found = {"prototypes": new.prototypes, "noise": new.noise, "norms": new.norms}
        for name, value in found.items():
            before = getattr(self, name)
            value = value.to(like.dtype)
            joined = value if before is None else torch.cat([before.to(value), value], int(name == "norms"))
            setattr(self, name, joined.contiguous())
        counts = moments[ctx.step.n_old :, -1]
        self.counts = counts if self.counts is None else torch.cat([self.counts.to(counts), counts])

    @property
    def known(self) -> Tensor:
        """(C - 1,) bool: classes with a prototype."""
        assert self.prototypes is not None, "statistics begin at step 0"
        return self.prototypes.square().sum(1) > 0

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """(n, E): features of old classes for one update, (g + e noise) (norm + e' deviation), e' for each channel."""
        assert self.prototypes is not None and self.noise is not None and self.norms is not None
        assert self.owner is not None, "begin_step comes first"
        g, noise, norms = self.prototypes[self.owner], self.noise[self.owner], self.norms[:, self.owner, None]
        e = torch.randn(2, *g.shape, generator=generator, device=g.device, dtype=g.dtype)
        return (g + e[0] * noise) * (norms[0] + e[1] * norms[1])


# --- the losses ----------------------------------------------------------------------------------------------------


def old_prediction(batch: Batch) -> Tensor:
    """(B, H, W): what the previous model predicts, at label size."""
    size = batch.labels.shape[-2], batch.labels.shape[-1]
    return batch.share("STAR old prediction", lambda: above_half(batch.old, size))


def negatives(logits: Tensor, where: Tensor, n: Tensor) -> Tensor:
    """Binary cross entropy of negatives, summed over rows, a mean over n positions; 0 if n is 0.

    logits (B, N, ...), where (B, ...) bool.
    """
    return (log_partition(logits).sum(1) * where).sum() / n.clamp(min=1)


def together(image: Tensor, extra: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """(image + sum of weight times value) / (1 + sum of weights): F-STAR-MBCE."""
    value, total = image, torch.ones_like(image)
    for weight, part in extra:
        value, total = value + weight * part, total + weight
    return value / total


@dataclass(eq=False)
class ReplayedBCE(Term):
    """F-STAR-MBCE: F-MBCE of the new rows, with drawn features of old classes and more true background as negatives.

    Each micro-batch of an update draws anew, and its features weigh as a part of the update's.
    """

    uses_old = True
    revision = 2  # with micro-batches, and with stored images among those of the step

    statistics: ClassStatistics
    positive_weight: float = 4.0
    rows: Any = field(default=None, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        self.rows = ctx.model.classifier.blocks[-1]

    def __call__(self, batch: Batch) -> Tensor:
        n_old, reduce, seen = batch.step.n_old, batch.reduce, self.statistics
        pixels = multi_bce(batch.logits, batch.labels, n_old, self.positive_weight)
        image = reduce((pixels * batch.valid).sum()) / batch.n_valid

        small = full_precision(batch.out.logits)[:, n_old:]
        size = small.shape[2], small.shape[3]
        true = (centre_labels(batch.labels, size) == BACKGROUND) & (centre_labels(old_prediction(batch), size) == 0)
        positions, m = reduce(small.new_full((), true.numel())), reduce(true.sum().to(small.dtype))
        background = reduce(negatives(small, true, m))

        drawn = seen.draw(batch.generator).to(small.dtype)  # the same on every process
        n = small.new_full((), len(drawn))
        logits = F.linear(drawn, self.rows.weight.flatten(1), self.rows.bias)
        synthetic = negatives(logits, torch.ones_like(drawn[:, 0], dtype=torch.bool), n)
        assert seen.background is not None
        ratio = seen.background.to(small.dtype)
        share = n / (positions * batch.progress.parts)
        return together(image, ((share, synthetic), (ratio * m / positions, background)))


@dataclass(eq=False)
class RegionDistillation(Term):
    """F-STAR-PKD: mean squared change of the embedding where background is an old class to the previous model."""

    uses_old = True
    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        region = (batch.labels == BACKGROUND) & (old_prediction(batch) > 0)
        return region_distance(batch, region.to(batch.logits.dtype))


def region_distance(batch: Batch, region: Tensor) -> Tensor:
    """region (B, H, W) of 0 and 1, brought to the embedding's size bilinearly; 0 if it is empty."""
    new, old = full_precision(batch.out.embedding), full_precision(batch.old.embedding).detach()
    share = resize(region[:, None], (new.shape[2], new.shape[3]))
    total = batch.reduce(((new - old).square() * share).sum())
    size = batch.reduce(share.sum())
    return total / torch.where(size > 0, size * new.shape[1], 1)


@dataclass(eq=False)
class PrototypeContrast(Term):
    """F-STAR-CONT: mean over the new classes of the batch of 1 / distance to the nearest prototype of an old class."""

    uses_setup = False

    statistics: ClassStatistics

    def __call__(self, batch: Batch) -> Tensor:
        unit = directions(full_precision(batch.out.embedding))
        channels = torch.arange(batch.step.n_old, batch.step.n_classes, device=unit.device)
        masks = (batch.labels[:, None] == channels[:, None, None]).to(unit.dtype)
        masks = resize(masks, (unit.shape[2], unit.shape[3]))
        sums = batch.reduce(class_sums(unit.flatten(2), masks.flatten(2)))
        present = batch.reduce(masks.sum((0, 2, 3))) > 0
        assert self.statistics.prototypes is not None
        prototypes, known = self.statistics.prototypes.to(unit.dtype), self.statistics.known
        gaps = (directions(sums)[:, None] - prototypes).square().sum(2)  # (N, O - 1)
        nearest = torch.where(known, gaps, torch.inf).amin(1)
        apart = present & (nearest > 0) & nearest.isfinite()
        inverse = torch.where(apart, torch.where(apart, nearest, 1).rsqrt(), 0)
        return inverse.sum() / present.sum().clamp(min=1)


@register_method("STAR", paper=PAPER)
def star(
    positive: Weight = 4.0,
    *,
    pkd: Annotated[Weight, Search(0.5, 50)] = 5.0,
    contrast: Annotated[Weight, Search(0.005, 0.5)] = 0.05,
    shrink: Share = 0.01,
    known: Share = 0.5,
    encoder_lr: Weight = 0.1,
    new_lr: Weight = 10.0,
) -> Method:
    """Replay of features drawn from class statistics, distillation of old regions, contrast to old prototypes.

    positive: weight of positive pixels at every step; 4 for VOC, 30 for ADE as released
    pkd: weight of the distillation in regions that the previous model knows; 5 as released (configs/config_voc.json)
    contrast: weight of the distance to old prototypes; 0.05 as released (configs/config_voc.json)
    shrink: share of background that each new class takes away, overlapped; 0.01 as released (trainer_voc.py)
    known: share of background that a step shows by itself, overlapped; 0.5 as released (trainer_voc.py)
    encoder_lr: the encoder's learning rate over that of ASPP; 1/10 as released (train_voc.py)
    new_lr: the new rows' learning rate over that of ASPP at later steps; 10 as released (train_voc.py)
    """
    seen = ClassStatistics(Replay(shrink, known))
    return Method(
        "STAR",
        terms={
            "statistics": seen,
            "mbce": ReplayedBCE(seen, positive),
            "pkd": RegionDistillation(weight=pkd),
            "contrast": PrototypeContrast(seen, weight=contrast),
        },
        first={"statistics": seen, "mbce": MultiBCE(positive)},
        build=kaiming_rows,
        trainable=ThreeRates(encoder_lr, new_lr),
        predict=above_half,
    )
