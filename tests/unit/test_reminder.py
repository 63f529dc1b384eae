"""REMINDER: class means without upsampled features, similarity weights, the pixels that count."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.methods.base import Batch, SegOutput, StepContext, alone
from contseg.methods.registry import build_method
from contseg.methods.reminder import BatchPrototypes, SimilarityDistillation, class_means, similarity_weights
from contseg.tests.unit.networks import make_batch, make_images, make_labels, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND, THIRD = make_steps(3, 2, 1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_class_means_equal_those_of_upsampled_features() -> None:
    embedding, labels = draw(2, 5, 3, 4), make_labels(SECOND, 2, 16, 24)
    full = F.interpolate(embedding, (16, 24), mode="bilinear", align_corners=True).movedim(1, -1)
    means, counts = class_means(embedding, labels, 0, 6, alone)
    for k in range(6):
        assert counts[k] == (labels == k).sum()
        expected = full[labels == k].mean(0) if counts[k] else torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(means[k], expected, rtol=1e-10, atol=1e-12)


def test_class_means_of_halves_are_those_of_the_batch() -> None:
    embedding, labels = draw(2, 5, 3, 4), make_labels(SECOND, 2, 16, 24)
    whole, _ = class_means(embedding, labels, 4, 6, alone)
    sums = [class_means(embedding[i : i + 1], labels[i : i + 1], 4, 6, alone) for i in (0, 1)]
    joined = sum(m * c[:, None] for m, c in sums) / sum(c for _, c in sums).clamp(min=1)[:, None]
    torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-12)


def test_weights_are_a_softmax_with_a_threshold_and_without_renormalisation() -> None:
    old = torch.eye(4, dtype=torch.float64)
    plain = similarity_weights(old[:1] * 7, old, delta=0.0)
    assert plain.sum().item() == pytest.approx(1)
    e = torch.tensor(1.0).exp().item()
    assert plain[0].tolist() == pytest.approx([e / (e + 3), *[1 / (e + 3)] * 3])
    assert similarity_weights(old[:1] * 7, old, delta=1.0)[0].tolist() == pytest.approx([e / (e + 3), 0, 0, 0])


def batch_of(labels: Tensor, logits: Tensor, old_logits: Tensor) -> tuple[SimilarityDistillation, Batch]:
    embedding = draw(len(labels), 5, 3, 4)
    observer = BatchPrototypes()
    observer.prototypes = draw(4, 5, seed=3)
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=torch.float64)
    out, old = SegOutput(logits, embedding, embedding), SegOutput(old_logits, embedding, embedding)
    return SimilarityDistillation(observer), Batch(images, labels, out, old, SECOND)


def test_pixel_by_pixel() -> None:
    labels, logits, old = make_labels(SECOND), draw(2, 6, 16, 24, seed=1), draw(2, 4, 16, 24, seed=2)
    term, batch = batch_of(labels, logits, old)
    means, _ = class_means(batch.out.embedding, labels, 4, 6, alone)
    weights = similarity_weights(means, term.prototypes.prototypes, 0.0)
    total, n = 0.0, 0
    for b, i, j in [tuple(p) for p in ((labels == 4) | (labels == 5)).nonzero().tolist()]:
        q, p = (old[b, :, i, j] / 3).softmax(0), (logits[b, :4, i, j] / 3).softmax(0)
        total, n = total - 9 * float((weights[labels[b, i, j] - 4] * q * p.log()).sum()), n + 1
    assert n and term(batch).item() == pytest.approx(total / n, rel=1e-10)


def test_only_new_pixels_and_old_channels_have_a_gradient() -> None:
    labels, logits = make_labels(SECOND), draw(2, 6, 16, 24, seed=1).requires_grad_()
    term, batch = batch_of(labels, logits, draw(2, 4, 16, 24, seed=2))
    (gradient,) = torch.autograd.grad(term(batch), logits)
    new = (labels == 4) | (labels == 5)
    assert gradient[:, :4].movedim(1, -1)[new].any() and not gradient[:, 4:].any()
    assert not gradient.movedim(1, -1)[~new].any()


@pytest.mark.parametrize("label", [0, 255])
def test_without_new_pixels_zero_and_no_gradient(label: int) -> None:
    logits = draw(2, 6, 16, 24, seed=1).requires_grad_()
    term, batch = batch_of(torch.full((2, 16, 24), label), logits, draw(2, 4, 16, 24, seed=2))
    loss = term(batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.detach() == 0 and not gradient.any()


def test_uniform_weights_and_equal_models_have_no_gradient() -> None:
    logits = draw(2, 6, 16, 24, seed=1).requires_grad_()
    term, batch = batch_of(make_labels(SECOND), logits, logits.detach()[:, :4])
    term.prototypes.prototypes = torch.zeros(4, 5, dtype=torch.float64)  # cosine 0 with every class
    (gradient,) = torch.autograd.grad(term(batch), logits)
    assert gradient.abs().max() < 1e-15


def test_prototypes_grow_by_steps_and_old_ones_stay() -> None:
    method = build_method("REMINDER")
    observer = method.terms["means"]
    assert method.first["means"] is observer is method.terms["csw"].prototypes
    model, images = taught(method, FIRST), make_images()
    model.train()
    observer.end_step(StepContext(FIRST, model, None, lambda: [(images, make_labels(FIRST))]))
    first = observer.prototypes.clone()
    assert model.training and first.shape == (4, 48)
    later = student_of(taught(method, FIRST), method, SECOND)
    observer.end_step(StepContext(SECOND, later, model, lambda: [(images, make_labels(SECOND))]))
    assert torch.equal(observer.prototypes[:4], first) and observer.prototypes.shape == (6, 48)


def test_prototypes_are_those_of_the_network_in_evaluation_mode() -> None:
    method = build_method("REMINDER")
    observer, model, images = method.terms["means"], taught(method, FIRST), make_images()
    with torch.no_grad():
        expected, _ = class_means(model(images).embedding, make_labels(FIRST), 0, FIRST.n_classes, alone)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    observer.end_step(StepContext(FIRST, model.train(), None, lambda: [(images, make_labels(FIRST))]))
    torch.testing.assert_close(observer.prototypes, expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # no statistic has moved


def test_a_batch_counts_once_whatever_its_pixels() -> None:
    few, many = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64)
    few[0, 0, 0] = 1
    maps = [torch.full((1, 1, 4, 4), v, dtype=torch.float64) for v in (1.0, 3.0, 100.0)]
    labels = [few, many, torch.zeros_like(few)]
    observer, model = BatchPrototypes(), torch.nn.Module()
    model.forward = lambda x: SimpleNamespace(embedding=x)
    observer.end_step(StepContext(make_steps(1)[0], model, None, lambda: zip(maps, labels, strict=True)))
    assert observer.prototypes[1].item() == pytest.approx(2.0)


def test_the_whole_method_on_a_network() -> None:
    method = build_method("REMINDER[delta=1]")
    old = taught(method, FIRST)
    context = StepContext(FIRST, old, None, lambda: [(make_images(), make_labels(FIRST))])
    method.first["means"].end_step(context)
    model = student_of(old, method, SECOND)
    for term in method.terms.values():
        term.begin_step(StepContext(SECOND, model, old, lambda: [(make_images(), make_labels(SECOND))]))
    losses = method.losses(make_batch(model, old, SECOND))
    assert set(losses) == {"pseudo", "pod", "csw"} and all(v.isfinite() for v in losses.values())
