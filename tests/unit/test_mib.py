"""Distillation, and MiB's losses and initialisation, against their definitions."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, CrossEntropy, SegOutput
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation, background_shares
from contseg.tests.unit.terms import (
    INTENDED,
    SETUPS,
    C,
    Data,
    N,
    O,
    gradients,
    step,
    value_and_gradients,
)

pytestmark = pytest.mark.numeric


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 2))
def test_distillation_and_cross_entropy_equal_their_definition(seed: int, images: int) -> None:
    """F-CE, F-KD and F-ILT from probabilities, pixel by pixel."""
    data = Data(seed, images)
    data.labels[0, 0, 0] = 0
    ce, kd = [], []
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in data.labels.shape)).tolist():
        z, y = data.logits[b, :, i, j], int(data.labels[b, i, j])
        ce += [] if y == VOID else [-z.softmax(0)[y].log()]
        kd.append(-(data.old_logits[b, :, i, j].softmax(0) * z[:O].softmax(0).log()).sum() / O)
    gaps = [(f - g).square() for f, g in zip(data.features.flatten(), data.old_features.flatten(), strict=True)]
    for name, costs in (("ce", ce), ("kd", kd), ("features", gaps)):
        found = INTENDED[name](data)(data.batch())
        torch.testing.assert_close(found, torch.stack(costs).mean(), rtol=1e-11, atol=0)


def test_distillation_of_a_model_with_itself_has_no_gradient() -> None:
    data = Data(9)
    data.old_logits = data.logits[:, :O].detach().clone()
    data.old_features = data.features.detach().clone()
    for name in ("kd", "features"):
        _, *found = value_and_gradients(INTENDED[name](data), data)
        assert max(x.abs().max() for x in found) < 1e-16


def test_unbiased_distillation_has_no_gradient_after_the_initialisation() -> None:
    data = Data(10)
    shared = data.old_logits[:, :1] - math.log(N + 1)
    data.logits = torch.cat([shared, data.old_logits[:, 1:], shared.expand(-1, N, -1, -1)], 1)
    _, found, _ = value_and_gradients(UnbiasedDistillation(), data)
    assert found.abs().max() < 1e-16


def test_distillation_sees_void() -> None:
    data = Data(11)
    _, found, _ = value_and_gradients(UnbiasedDistillation(), data)
    assert found.movedim(1, -1)[data.labels == VOID].any(-1).all()


# --- MiB -----------------------------------------------------------------------------------------------------------


def slow_unbiased(data: Data) -> tuple[Tensor, Tensor]:
    """Both losses from probabilities, pixel by pixel."""
    p, q = data.logits.softmax(1), data.old_logits.softmax(1)
    ce, kd = [], []
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in data.labels.shape)).tolist():
        y, here = int(data.labels[b, i, j]), p[b, :, i, j]
        own = y >= O or (data.step.setup == "sequential" and y > 0)
        if y != VOID:
            ce.append(-(here[y] if own else here[:O].sum()).log())
        mixed = torch.cat([(here[:1] + here[O:].sum()), here[1:O]])
        kd.append(-(q[b, :, i, j] * mixed.log()).sum() / O)
    return torch.stack(ce).mean(), torch.stack(kd).mean()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), setup=st.sampled_from(SETUPS), images=st.integers(1, 2))
def test_unbiased_losses_equal_their_definition(seed: int, setup: str, images: int) -> None:
    data = Data(seed, images, setup)
    data.labels[0, 0, 0] = 0
    data.logits.requires_grad_()
    for term, expected in zip((UnbiasedCrossEntropy(), UnbiasedDistillation()), slow_unbiased(data), strict=True):
        value = term(data.batch())
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(*(gradients(x, data.logits)[0] for x in (value, expected)), rtol=1e-10, atol=1e-15)


def test_unbiased_losses_in_pieces_equal_the_whole() -> None:
    """More pixels than a tile holds, several images to a tile, and both at once."""
    g = torch.Generator().manual_seed(0)
    for size in ((1, 3, 300, 700), (5, 3, 9, 7), (2, 3, 450, 450)):
        logits = torch.randn(*size, generator=g).requires_grad_()
        old = torch.randn(size[0], 2, *size[2:], generator=g)
        labels = torch.tensor([0, 2, VOID])[torch.randint(3, (size[0], *size[2:]), generator=g)]
        out = SegOutput(logits, logits[:, :1], logits[:, :1])
        batch = Batch(labels, labels, out, SegOutput(old, old, old), step(old=2, new=1))
        p = logits.softmax(1)
        target = torch.stack([p[:, :2].sum(1), p[:, 2]], 1).log()
        ce = F.nll_loss(target, labels.div(2, rounding_mode="floor").masked_fill(labels == VOID, -1), ignore_index=-1)
        kd = -(old.softmax(1) * torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1).log()).mean()
        for term, expected in ((UnbiasedCrossEntropy(), ce), (UnbiasedDistillation(), kd)):
            value = term(batch)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(*(gradients(x, logits)[0] for x in (value, expected)), rtol=1e-4, atol=1e-9)


def test_unbiased_cross_entropy_without_old_classes_is_cross_entropy() -> None:
    data = Data(12, setup="sequential")
    data.step, data.old_logits = step(old=1, new=C - 1), data.old_logits[:, :1]
    for unbiased, plain in zip(
        value_and_gradients(UnbiasedCrossEntropy(), data), value_and_gradients(CrossEntropy(), data), strict=True
    ):
        torch.testing.assert_close(unbiased, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_unbiased_losses_survive_extreme_logits(scale: float) -> None:
    data = Data(13)
    data.logits, data.old_logits = (data.logits * scale).float(), (data.old_logits * scale).float()
    for term in (UnbiasedCrossEntropy(), UnbiasedDistillation()):
        for x in value_and_gradients(term, data):
            assert x.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_initialisation_keeps_the_old_probabilities(groups: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    groups[0] += 1  # background and at least one class
    blocks = nn.ModuleList(nn.Conv2d(7, n, 1, dtype=torch.float64) for n in groups)
    x, n_old = torch.randn(2, 7, 3, 3, dtype=torch.float64), sum(groups[:-1])
    before = torch.cat([block(x) for block in blocks[:-1]], 1).softmax(1)
    model = SimpleNamespace(classifier=SimpleNamespace(blocks=blocks))
    background_shares(model, step(index=len(groups) - 1, old=n_old, new=groups[-1]))
    after = torch.cat([block(x) for block in blocks], 1).softmax(1)
    torch.testing.assert_close(after[:, 1:n_old], before[:, 1:], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(after[:, :1] + after[:, n_old:].sum(1, keepdim=True), before[:, :1])
    # background and every new class have one row: equal numbers, and equal probabilities up to rounding
    background, new = blocks[0], blocks[-1]
    assert torch.equal(new.weight, background.weight[:1].expand_as(new.weight))
    assert torch.equal(new.bias, background.bias[:1].expand_as(new.bias))
    torch.testing.assert_close(after[:, n_old:], after[:, :1].expand_as(after[:, n_old:]), rtol=1e-13, atol=0)
