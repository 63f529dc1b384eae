"""UCD: uncertainty-aware contrastive distillation (Yang et al., TPAMI 2022, arXiv 2203.14098).

A supervised contrastive loss on the features before the classifier, with keys from the current and the previous
network. The weight of a positive pair of old classes is the similarity that the previous network gives to the two
positions. An add-on for any method: ``MiB+UCD``, ``PLOP+UCD``. Source: F-UCD of docs/methods.md, in the consistent
form.

Differs from the released code (``UCD@cc73546``), whose version on MiB stops with an error at every step >= 1:

- negatives have the same weight as positives (release: e^(1/temperature) times more)
- labels are resized to feature size by nearest neighbour (release: bilinearly, which invents class ids)
- labels are never pseudo-labels
- any number of classes works (release: 20)
- the factor that normalisation cancels is left out

As released, pairs stay inside a process. Several processes give the mean over all their anchors, but no pair across
processes. So, unlike other terms, this one depends on how a batch is split.

Shapes: ``P`` positions of the batch (B h w), of which anchors and keys are chosen by masks; ``E`` embedding channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contseg.datasets.scenario import BACKGROUND, VOID
from contseg.methods.base import Batch, Method, Term, full_precision, shrink_labels
from contseg.methods.fit import EMBEDDING
from contseg.methods.ranges import Positive, Search, Weight
from contseg.methods.registry import register_addon

FAR = -1e9  # a similarity that adds nothing to a log-sum-exp, without the NaN gradient of -inf


def pair_labels(labels: Tensor, old_logits: Tensor) -> Tensor:
    """(B, h, w): the label; where it is background, the previous model's arg max; 255 where void.

    labels (B, H, W), old_logits (B, O, h, w).
    """
    labels = shrink_labels(labels, (old_logits.shape[-2], old_logits.shape[-1]))
    return torch.where(labels == BACKGROUND, old_logits.argmax(1).to(labels.dtype), labels)


class Points(NamedTuple):
    """Anchors or keys: vectors (P, E) of unit length; labels (P,), -1 where unused; the previous model's
    probabilities (P, O)."""

    vectors: Tensor
    labels: Tensor
    probabilities: Tensor


def pair_weights(anchors: Points, keys: Points, n_old: int) -> Tensor:
    """(A, K): similarity <q_j, q_k> of two positions for the previous model; 1 where both are of new classes."""
    both_new = (anchors.labels >= n_old)[:, None] & (keys.labels >= n_old)
    return torch.where(both_new, 1.0, anchors.probabilities @ keys.probabilities.T)


def contrast(anchors: Points, keys: Points, own_key: Tensor, n_old: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Each anchor's loss and whether it has a positive key, both (A,) (F-UCD).

    own_key (A,): the key that is the anchor itself.
    """
    similarity = anchors.vectors @ keys.vectors.T / temperature
    same = anchors.labels[:, None] == keys.labels
    itself = torch.arange(len(keys.labels), device=own_key.device) == own_key[:, None]
    used = (anchors.labels >= 0)[:, None]
    positive = same & ~itself & used
    negative = ~same & (keys.labels >= 0)

    against = similarity.masked_fill(~negative, FAR).logsumexp(1, keepdim=True)
    # -log(e^s / (e^s + sum of negatives)), one positive at a time
    weight = pair_weights(anchors, keys, n_old) * positive
    loss = (weight * F.softplus(against - similarity)).sum(1)
    n_positive = positive.sum(1)
    return loss / n_positive.clamp(min=1), n_positive > 0


def contrastive_distillation(
    embedding: Tensor,
    old_embedding: Tensor,
    labels: Tensor,
    old_logits: Tensor,
    n_old: int,
    *,
    temperature: float,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Sum of the anchors' losses, and the number of anchors that have a positive, |A+| (F-UCD).

    embedding, old_embedding (B, E, h, w); labels (B, h, w) of ``pair_labels``; old_logits (B, O, h, w). Anchors: the
    foreground positions. Keys, without gradient: the anchors, and the previous features where the label is old.
    The matrix of pairs is computed for ``chunk`` anchors at a time, and computed again for the gradient.
    """
    current, previous = _positions(F.normalize(embedding, dim=1)), _positions(F.normalize(old_embedding, dim=1))
    labels = labels.flatten().long()
    labels = torch.where((labels == BACKGROUND) | (labels == VOID), -1, labels)
    probabilities = _positions(old_logits.detach().softmax(1))
    keys = Points(
        torch.cat([current, previous]).detach(),
        torch.cat([labels, torch.where(labels < n_old, labels, -1)]),
        probabilities.repeat(2, 1),
    )

    total, count = embedding.new_zeros(()), embedding.new_zeros(())
    everywhere = torch.arange(len(labels), device=labels.device)
    for own_key in everywhere.split(chunk):
        loss, has_positive = checkpoint(
            contrast,
            Points(current[own_key], labels[own_key], probabilities[own_key]),
            keys,
            own_key,
            n_old,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        total, count = total + loss.sum(), count + has_positive.sum()
    return total, count


def _positions(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (P, C), P = B h w in C order."""
    return maps.movedim(1, -1).flatten(0, -2)


@dataclass(eq=False)
class UncertaintyContrast(Term):
    """F-UCD, averaged over the anchors of all processes; pairs are those of this process."""

    uses_old = True
    uses_setup = False
    splits = False  # no pair across processes
    acts_through: ClassVar[str] = EMBEDDING

    temperature: float = 0.07

    def __call__(self, batch: Batch) -> Tensor:
        labels = pair_labels(batch.labels, batch.old.logits)
        total, count = contrastive_distillation(
            full_precision(batch.out.embedding),
            full_precision(batch.old.embedding),
            labels,
            full_precision(batch.old.logits),
            batch.step.n_old,
            temperature=self.temperature,
        )
        return batch.reduce(total) / batch.reduce(count).clamp(min=1)


@register_addon("UCD", paper="Yang et al., TPAMI 2022, arXiv 2203.14098")
def ucd(weight: Annotated[Weight, Search(0.001, 0.1)] = 0.01, temperature: Positive = 0.07) -> Method:
    """Uncertainty-aware contrastive distillation, in the consistent form.

    weight: of the contrastive term; 1/100 as released (train.py:116)
    temperature: of the similarities; 0.07 as released (argparser.py:138)
    """
    return Method("UCD", terms={"ucd": UncertaintyContrast(temperature, weight=weight)}, first={})
