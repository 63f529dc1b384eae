"""STAR: statistics and counts against loops over positions, what the losses see, and what trains."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, Method, Progress, SegOutput, StepContext
from contseg.methods.modules import is_norm
from contseg.methods.registry import build_method
from contseg.methods.star import ClassStatistics, Replay, centre_labels, class_moments, statistics
from contseg.tests.unit.networks import make_batch, make_images, make_labels, make_steps, student_of, taught
from contseg.tests.unit.steps import Grid

pytestmark = pytest.mark.numeric

FIRST, SECOND, THIRD = make_steps(3, 2, 1)


def test_labels_are_read_at_the_centres_of_cells() -> None:
    labels = torch.arange(2 * 64 * 96).reshape(2, 64, 96) % 250
    assert torch.equal(centre_labels(labels, (4, 6)), labels[:, 8::16, 8::16])


def test_statistics_against_a_loop_over_positions() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 4, 6, generator=g, dtype=torch.float64).abs()
    features[0, :, 0, 0] = 0
    labels = torch.tensor([0, 1, 2, VOID])[torch.randint(4, (3, 4, 6), generator=g)]
    labels[labels == 2] = 1
    labels[0, 0, :2] = torch.tensor([1, 2])  # class 2 has one position, class 3 none
    found = statistics(class_moments(features, labels, 4))
    for c in range(3):
        own = features.movedim(1, -1)[labels == c]
        norms = own.norm(dim=1)
        unit = torch.stack([x / n if n else x for x, n in zip(own, norms, strict=True)])
        g_c = unit.sum(0) / unit.sum(0).norm()
        torch.testing.assert_close(found.prototypes[c], g_c, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.noise[c], (unit - g_c).square().mean(0).sqrt(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.norms[0, c], norms.mean(), rtol=1e-10, atol=0)
        spread = norms.std() if len(own) > 1 else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(found.norms[1, c], spread, rtol=1e-6, atol=1e-7)
        assert found.counts[c] == len(own)
    assert all(not x[..., 3].any() for x in (found.prototypes.T, found.noise.T, found.norms, found.counts))


@pytest.mark.parametrize(
    ("setup", "per_update", "background", "counts"),
    [
        ("overlapped", [8, 0, 0], 1000 * 0.98 / 500 - 0.5, [250 + 980, 100, 20, 0]),
        ("disjoint", [10, 2, 0], 2.0, [1500, 120, 50, 7]),
        ("sequential", [10, 2, 0], 2.0, [1500, 120, 50, 7]),
    ],
)
def test_counts(setup: str, per_update: list[int], background: float, counts: list[float]) -> None:
    """A table by hand: positions carried and found, ten updates, two new classes."""
    step = make_steps(3, 2, setup=setup)[1]
    carried, found = (torch.tensor(x, dtype=torch.float64) for x in ([1000, 100, 20, 0], [500, 20, 30, 7]))
    plan = Replay()(carried, found, 10, step)
    assert plan.per_update.tolist() == per_update
    assert float(plan.background) == pytest.approx(background)
    assert plan.counts.tolist() == pytest.approx(counts)
    assert Replay()(carried, found * 0, 10, step).background.isfinite()


def led(method: Method) -> tuple[ClassStatistics, StepContext, torch.nn.Module, torch.nn.Module]:
    """The statistics at the start of the second step; its context, old network and student."""
    term = method.terms["statistics"]
    assert isinstance(term, ClassStatistics)
    old = taught(method, FIRST)
    images, labels = make_images(), make_labels(FIRST)
    with torch.no_grad():  # half of the positions are background to it
        old.classifier.blocks[0].bias[1:] -= old(images).logits[:, 1:].amax(1).median()
    term.end_step(StepContext(FIRST, old, None, lambda: [(images, labels)]))
    model = student_of(old, method, SECOND)
    ctx = StepContext(SECOND, model, old, lambda: [(images, make_labels(SECOND))])
    for t in method.terms.values():
        t.begin_step(ctx)
    return term, ctx, old, model


def test_supervision_is_that_of_image_drawn_features_and_background_together() -> None:
    method = build_method("STAR[positive=3]")
    term, _, old, model = led(method)
    batch = make_batch(model, old, SECOND)
    term.background = torch.tensor(1.7, dtype=torch.float64)
    term.owner = torch.tensor([0, 0, 2])
    batch.generator = torch.Generator().manual_seed(7)
    value = method.terms["mbce"](batch)

    def no(x: torch.Tensor) -> torch.Tensor:
        return (1 + x.exp()).log()  # the cost of a negative

    labels, n, block = batch.labels, SECOND.n_old, model.classifier.blocks[-1]
    valid = labels != VOID
    image = sum(
        torch.where(labels == k, 3 * no(-batch.logits[:, k]), no(batch.logits[:, k]))[valid].mean()
        for k in range(n, SECOND.n_classes)
    )
    drawn = term.draw(torch.Generator().manual_seed(7))
    synthetic = no(drawn @ block.weight[:, :, 0, 0].T + block.bias).sum(1).mean()
    size = batch.out.logits.shape[2:]
    foreground = (batch.old_logits[:, 1:] > 0).any(1).long()
    true = (centre_labels(labels, size) == 0) & (centre_labels(foreground, size) == 0)
    assert true.any() and not valid.all()
    background = no(batch.out.logits[:, n:].movedim(1, -1)[true]).sum(1).mean()
    weights = 3 / true.numel(), 1.7 * int(true.sum()) / true.numel()
    expected = (image + weights[0] * synthetic + weights[1] * background) / (1 + sum(weights))
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


def test_micro_batches_weigh_drawn_features_as_the_whole_batch_does() -> None:
    """Images that are all alike: a half of them is worth the whole."""
    method = build_method("STAR")
    term, _, old, model = led(method)
    term.owner = torch.tensor([0, 2])
    term.noise, term.norms[1] = torch.zeros_like(term.noise), 0  # every draw is the same
    whole = make_batch(model, old, SECOND)
    for x in (whole.images, whole.labels, *whole.out[:3], *whole.old[:3]):
        x.data[1] = x.data[0]
    halves = [
        Batch(
            *(whole.images[i], whole.labels[i], SegOutput(*(x[i] for x in whole.out[:3]))),
            SegOutput(*(x[i] for x in whole.old[:3])),
            step=SECOND,
            progress=Progress(parts=2),
        )
        for i in (slice(0, 1), slice(1, 2))
    ]
    value = torch.stack([method.terms["mbce"](half) for half in halves]).mean()
    torch.testing.assert_close(value, method.terms["mbce"](whole), rtol=1e-12, atol=0)


def test_features_are_drawn_for_the_updates_of_an_epoch_stored_images_included(tmp_path: Path) -> None:
    term, ctx, *_ = led(build_method("STAR"))
    drawn = {}
    for updates in (1, 3):
        term.counts = torch.tensor([1e3, 99, 3e3, 42], dtype=torch.float64)
        term.begin_step(ctx._replace(epoch_updates=updates, loader=lambda: []))
        drawn[updates] = term.owner.bincount().tolist()
    assert drawn == {1: [99, 3000, 42], 3: [33, 1000, 14]}

    grid = Grid(tmp_path, ("STAR", "STAR+Memory[size=4,mix=append]"))
    for name, node in ((n.method, n) for n in grid.plan.nodes.values() if n.index == 1):
        images = len(node.view.ids) + len(node.view.stored)
        assert grid.trainer(1, name).context.epoch_updates == images // 4, name
    assert images // 4 > len(node.view.ids) // 4


def test_drawn_features_have_the_statistics_they_are_drawn_from() -> None:
    term, *_ = led(build_method("STAR"))
    assert term.prototypes is not None and term.noise is not None and term.norms is not None
    term.owner = torch.full((40_000,), 1)
    drawn = term.draw(torch.Generator().manual_seed(0))
    g, noise, (mean, spread) = term.prototypes[1], term.noise[1], term.norms[:, 1]
    torch.testing.assert_close(drawn.mean(0), g * mean, rtol=0.05, atol=0.02 * float(mean))
    variance = (g.square() + noise.square()) * (mean**2 + spread**2) - (g * mean).square()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.1, atol=1e-3 * float(mean) ** 2)


def test_a_class_without_a_prototype_is_neither_drawn_nor_near() -> None:
    term, ctx, old, model = led(build_method("STAR"))
    assert term.prototypes is not None and term.counts is not None
    term.counts = term.counts.new_full((FIRST.n_classes,), 1e6)
    term.prototypes[1] = 0
    term.begin_step(ctx)
    assert term.owner is not None
    assert set(term.owner.tolist()) == {0, 2}
    method = build_method("STAR")
    contrast, batch = method.terms["contrast"], make_batch(model, old, SECOND)
    contrast.statistics = term
    value = contrast(batch)
    term.prototypes[1] = term.prototypes[0]
    torch.testing.assert_close(contrast(batch), value, rtol=1e-12, atol=0)
    term.prototypes.zero_()
    assert contrast(batch) == 0


def test_distillation_is_a_mean_over_old_regions() -> None:
    method = build_method("STAR")
    _, _, old, model = led(method)
    batch = make_batch(model, old, SECOND)
    best, _ = batch.old_logits[:, 1:].max(1)
    region = ((batch.labels == 0) & (best > 0)).double()
    new, before = batch.out.embedding, batch.old.embedding
    share = F.interpolate(region[:, None], new.shape[2:], mode="bilinear")
    expected = ((new - before).square().mean(1, keepdim=True) * share).sum() / share.sum()
    assert region.any()
    value = method.terms["pkd"](batch)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-18)
    batch = make_batch(model, old, SECOND)
    batch.labels = torch.full_like(batch.labels, VOID)
    assert method.terms["pkd"](batch) == 0


def test_old_rows_and_norms_are_frozen_and_new_rows_fast() -> None:
    method = build_method("STAR")
    model = taught(method, FIRST, SECOND)
    rates = {id(p): g.get("lr_scale", 1.0) for g in method.trainable(model, SECOND) for p in g["params"]}
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters()}
    old_rows = {id(p) for p in model.classifier.blocks[0].parameters()}
    assert set(rates) == {id(p) for p in model.parameters()} - norms - old_rows
    assert {rates[id(p)] for p in model.classifier.blocks[-1].parameters()} == {10.0}
    assert {rates[id(p)] for p in model.encoder.parameters() if id(p) in rates} == {0.1}


def test_rows_are_drawn_anew_for_the_newest_block_alone() -> None:
    method = build_method("STAR")
    old = taught(method, FIRST, SECOND)
    model = student_of(old, method, THIRD)
    for before, after in zip(old.classifier.blocks, model.classifier.blocks[:-1], strict=True):
        assert torch.equal(before.weight, after.weight)
    drawn = model.classifier.blocks[-1].weight.detach()
    assert float(drawn.square().mean()) == pytest.approx(2 / drawn.shape[1], rel=0.5)
    assert torch.equal(drawn, student_of(old, method, THIRD).classifier.blocks[-1].weight)
