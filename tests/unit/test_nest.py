"""NeST: importance against a loop over pixels, the tuned composition, and what it leaves alone."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import VOID
from contseg.methods import nest
from contseg.methods.base import StepContext
from contseg.methods.nest import PreTuning, importance_sums
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_images, make_labels, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(3, 2)
METHOD = build_method("MiB+NeST[epochs=2]")


def rows_of(old: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return old.classifier.blocks[0].weight.detach().flatten(1), old.classifier.blocks[0].bias.detach()


def blocks_of(model: Any) -> list[Any]:
    return list(model.classifier.blocks)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def test_importance_is_the_probability_of_an_old_class_where_a_channel_speaks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nest, "GRID", (4, 6))
    logits, embedding, old = draw(2, 3, 4, 6), draw(2, 5, 4, 6), draw(3, 5)
    old[1, 2] = 0
    labels = torch.tensor([0, 3, 4, VOID])[torch.randint(4, (2, 4, 6), generator=torch.Generator().manual_seed(0))]
    sums, counts = importance_sums(logits, embedding, labels, old, 2)
    expected, number = torch.zeros(2, 3, 5).double(), torch.zeros(2).double()
    for b in range(2):
        for i in range(4):
            for j in range(6):
                n = int(labels[b, i, j]) - 3
                if n in (0, 1):
                    number[n] += 1
                    speaks = old * embedding[b, :, i, j] > 0
                    expected[n] += logits[b, :, i, j].softmax(0)[:, None] * speaks
    assert counts.all()
    torch.testing.assert_close(counts, number)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-14)


def passes(*orders: tuple[int, ...]) -> Callable[..., Iterable[Any]]:
    """``ctx.loader``: pass n gives the images in the order n, two at a time."""
    images, labels = make_images(4), make_labels(SECOND, 4)

    def loader(number: int = 0) -> Iterable[Any]:
        order = list(orders[number])
        return zip(images[order].split(2), labels[order].split(2), strict=True)

    return loader


def test_only_the_composition_is_tuned_by_sgd_on_the_unbiased_cross_entropy() -> None:
    """Against torch's modules: two passes of two batches, Nesterov, weight decay, and a rate that falls."""
    old = taught(METHOD, FIRST)
    model = student_of(old, METHOD, SECOND)
    loader = passes((0, 1, 2, 3), (3, 1, 0, 2), (2, 0, 1, 3))
    context = StepContext(SECOND, model, old, loader, lr=0.05)
    rows, bias = rows_of(old)
    start, batches = PreTuning(2, 3.0).start(context, rows, bias)
    assert batches == 2 and torch.equal(start.bias, bias[:1].expand(2))
    tuned = PreTuning(2, 3.0).tune(context, start, rows, bias, batches)

    parts = [t.clone().requires_grad_() for t in start]
    importance, mix, new_bias, gate, scale = parts
    momentum, update = [torch.zeros_like(t) for t in start], 0
    for number in (1, 2):
        for images, labels in loader(number):
            z0 = torch.einsum("behw,e->bhw", model(images).embedding.detach(), scale * gate * rows[0])
            others = torch.cat([rows[1:], (mix[..., None] * importance * rows).sum(1)])
            z = torch.einsum("behw,ce->bchw", model(images).embedding.detach(), others)
            z = torch.cat([z0[:, None], z], 1) + torch.cat([bias, new_bias])[:, None, None]
            z = torch.nn.functional.interpolate(z, labels.shape[1:], mode="bilinear")
            p = z.softmax(1)
            p = torch.cat([p[:, :4].sum(1, keepdim=True), p[:, 4:]], 1).log()  # background and the old classes are one
            valid = labels != VOID
            target = torch.where(labels >= 4, labels - 3, 0)[:, None] * valid[:, None]
            loss = -(p.gather(1, target)[:, 0] * valid).sum() / valid.sum()
            rate = 3 * 0.05 * (1 - update / 4) ** 0.9
            gradients = torch.autograd.grad(loss, parts)
            with torch.no_grad():
                for t, g, m in zip(parts, gradients, momentum, strict=True):
                    g = g + 1e-4 * t
                    m.mul_(0.9).add_(g)
                    t -= rate * (g + 0.9 * m)
            update += 1
    for mine, theirs, before in zip(tuned, parts, start, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-12)
        assert not torch.equal(mine, before)


@pytest.mark.parametrize("formulation", ["intended", "released"])
def test_norms_are_those_of_old_rows_and_the_rest_stays(formulation: str) -> None:
    method = build_method(f"MiB+NeST[epochs=2,formulation={formulation}]")
    old = taught(method, FIRST)
    model = student_of(old, method, SECOND)
    before = copy.deepcopy(model.state_dict())
    method.warm_up[0](StepContext(SECOND, model, old, passes(*[(0, 1, 2, 3)] * 3), lr=0.05))
    (known,), (first, new) = blocks_of(old), blocks_of(model)
    norms = known.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(first.weight[0].norm(), norms[0])
    torch.testing.assert_close(new.weight.flatten(1).norm(dim=1).mean(), norms.mean())
    ratio = (2 / 4) ** 0.5 if formulation == "intended" else 1.0
    torch.testing.assert_close(new.bias.norm(), ratio * known.bias.norm())
    assert torch.equal(first.bias, known.bias)  # MiB has lowered background's
    assert torch.equal(first.weight[1:], known.weight[1:])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    written = {f"classifier.blocks.{k}" for k in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert changed == written


def test_a_class_without_a_pixel_has_finite_rows() -> None:
    old = taught(METHOD, FIRST)
    for value in (0, VOID):
        model = student_of(old, METHOD, SECOND)
        labels = torch.full((2, 16, 24), value)
        METHOD.warm_up[0](StepContext(SECOND, model, old, lambda _=0, y=labels: [(make_images(), y)]))
        assert all(p.isfinite().all() for p in model.classifier.parameters())


def test_an_empty_share_of_a_process_counts_nothing() -> None:
    """A process without images gives its zeros to every sum: the same composition as without it."""
    old = taught(METHOD, FIRST)
    ends = []
    for empty in (False, True):
        model = student_of(old, METHOD, SECOND)
        images, labels = make_images(), make_labels(SECOND)
        share = [(images, labels)] + ([(images[:0], labels[:0])] if empty else [])
        start, _ = PreTuning().start(StepContext(SECOND, model, old, lambda s=share: s), *rows_of(old))
        ends.append(start)
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_old_rows_train_unless_they_are_frozen() -> None:
    model = student_of(taught(METHOD, FIRST), METHOD, SECOND)
    first = {id(p) for p in blocks_of(model)[0].parameters()}
    for text, trains in (("PLOP+NeST", True), ("PLOP+NeST[old_rows=frozen]", False)):
        (group,) = build_method(text).hook("trainable", SECOND)(model, SECOND)
        assert (first <= {id(p) for p in group["params"]}) == trains


@pytest.mark.parametrize("name", ["SSUL+AWT", "CFSSeg+AWT", "SSUL+NeST", "CFSSeg+NeST"])
def test_methods_that_predict_by_other_heads_are_refused_where_they_are_composed(name: str) -> None:
    with pytest.raises(UserError, match=r"writes rows of a 1x1 classifier, and (SSUL|CFSSeg) predicts by other heads"):
        build_method(name)
