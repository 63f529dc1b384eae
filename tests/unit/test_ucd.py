"""UCD: against the double sum over pairs, and at its edges."""

import math

import pytest
import torch
from torch import Tensor

from contseg.methods.base import Batch, SegOutput
from contseg.methods.ucd import UncertaintyContrast, contrastive_distillation, pair_labels
from contseg.tests.unit.networks import make_steps

pytestmark = pytest.mark.numeric

TAU = 0.5


def maps(n_old: int = 4, images: int = 2, h: int = 3, w: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, 5, h, w), previous features, previous logits (B, O, h, w)."""
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(images, c, h, w, generator=g, dtype=torch.float64) for c in (5, 5, n_old))


def labels_for(images: int = 2, h: int = 3, w: int = 4) -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 5, 255])[
        torch.randint(7, (images, h, w), generator=torch.Generator().manual_seed(1))
    ]


def double_sum(f: Tensor, old: Tensor, labels: Tensor, logits: Tensor, n_old: int) -> float:
    """F-UCD pair by pair."""
    at = [(b, i, j) for b in range(f.shape[0]) for i in range(f.shape[2]) for j in range(f.shape[3])]
    at = [p for p in at if labels[p] not in (0, 255)]

    def unit(x: Tensor, p: tuple[int, int, int]) -> Tensor:
        v = x[p[0], :, p[1], p[2]]
        return v / v.norm()

    keys = [(unit(f, p), p, True) for p in at] + [(unit(old, p), p, False) for p in at if labels[p] < n_old]
    total, anchors = 0.0, 0
    for p in at:
        a, own = unit(f, p), labels[p]
        negatives = sum(math.exp(a @ k / TAU) for k, q, _ in keys if labels[q] != own)
        positives = []
        for k, q, current in keys:
            if labels[q] == own and not (current and q == p):
                probabilities = [logits[r[0], :, r[1], r[2]].softmax(0) for r in (p, q)]
                u = 1.0 if own >= n_old else float(probabilities[0] @ probabilities[1])
                e = math.exp(a @ k / TAU)
                positives.append(-u * math.log(e / (e + negatives)))
        if positives:
            total, anchors = total + sum(positives) / len(positives), anchors + 1
    return total / anchors


@pytest.mark.parametrize("chunk", [5, 1000])
def test_equals_the_double_sum_however_it_is_cut(chunk: int) -> None:
    f, old, logits = maps()
    labels = labels_for()
    total, count = contrastive_distillation(f, old, labels, logits, 4, temperature=TAU, chunk=chunk)
    assert float(total / count) == pytest.approx(double_sum(f, old, labels, logits, 4), rel=1e-12)


def test_the_term_is_the_mean_over_anchors() -> None:
    f, old, logits = maps()
    labels = labels_for()
    step = make_steps(3, 2)[1]
    out, before = SegOutput(logits, f, f), SegOutput(logits, old, old)
    given = labels.masked_fill((labels > 0) & (labels < step.n_old), 0)  # what is old is not labelled
    known = torch.where(given == 0, logits.argmax(1), given)
    value = UncertaintyContrast(TAU)(Batch(torch.zeros(2, 3, 3, 4), given, out, before, step))
    assert float(value) == pytest.approx(double_sum(f, old, known, logits, step.n_old), rel=1e-12)


def test_gradient_does_not_depend_on_the_cut_and_keys_have_none() -> None:
    f, old, logits = (x.requires_grad_() for x in maps())
    whole, _ = contrastive_distillation(f, old, labels_for(), logits, 4, temperature=TAU, chunk=1000)
    cut, _ = contrastive_distillation(f, old, labels_for(), logits, 4, temperature=TAU, chunk=7)
    expected, none, neither = torch.autograd.grad(whole, (f, old, logits), allow_unused=True)
    assert none is None and neither is None
    torch.testing.assert_close(torch.autograd.grad(cut, f)[0], expected, rtol=1e-12, atol=1e-14)


def test_ground_truth_first_then_the_previous_model() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 4)
    labels = torch.tensor([[[0, 1, 3, 255]]])
    assert pair_labels(labels, logits).tolist() == [[[2, 1, 3, 255]]]


def value(labels: Tensor, f: Tensor, old: Tensor, logits: Tensor) -> Tensor:
    step = make_steps(3, 2)[1]
    out = SegOutput(logits, f, f)
    batch = Batch(torch.zeros(len(f), 3, *labels.shape[1:]), labels, out, SegOutput(logits, old, old), step)
    return UncertaintyContrast(TAU)(batch)


@pytest.mark.parametrize("label", [0, 255, 4])
def test_without_pairs_or_without_negatives_it_is_zero_with_zero_gradient(label: int) -> None:
    f, old, logits = maps()
    logits[:, 0] = 50.0  # the previous model sees background everywhere
    f.requires_grad_()
    loss = value(torch.full((2, 12, 16), label), f, old, logits)
    assert loss.detach() == 0
    (gradient,) = torch.autograd.grad(loss, f)
    assert gradient.isfinite().all() and not gradient.any()


def test_does_not_depend_on_the_order_of_images() -> None:
    f, old, logits = maps()
    labels = labels_for().repeat_interleave(4, 1).repeat_interleave(4, 2)
    swapped = value(labels.flip(0), f.flip(0), old.flip(0), logits.flip(0))
    torch.testing.assert_close(value(labels, f, old, logits), swapped, rtol=1e-12, atol=0)


def test_agreement_weighs_old_pairs_only() -> None:
    f, old, logits = maps()
    old_only, new_only = torch.full((2, 3, 4), 1), torch.full((2, 3, 4), 4)
    old_only[0, 0, :2], new_only[0, 0, :2] = 2, 5
    sure = torch.zeros_like(logits)
    sure[:, 1] = 100.0  # one class everywhere: agreement 1
    for labels, same in ((old_only, False), (new_only, True)):
        a, b = (contrastive_distillation(f, old, labels, z, 4, temperature=TAU)[0] for z in (logits, sure))
        assert torch.allclose(a, b) is same
