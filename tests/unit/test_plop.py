"""PLOP: local POD against a loop over windows, exact medians, pseudo-labels."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from contseg.datasets.scenario import VOID, Step
from contseg.methods.base import Batch, SegOutput, StepContext
from contseg.methods.plop import LocalPod, PseudoLabelCrossEntropy, exact_medians, fold_new_into_background, local_pod
from contseg.tests.unit.networks import make_steps

pytestmark = pytest.mark.numeric

_, STEP = make_steps(2, 2)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_pod(old: Tensor, new: Tensor, scales: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    """Window by window, rows and columns."""
    h, w = new.shape[-2:]
    parts = []
    for s in scales:
        for i in range(s):
            for j in range(s):
                window = (..., slice(i * (h // s), (i + 1) * (h // s)), slice(j * (w // s), (j + 1) * (w // s)))
                a, b = old[window] ** 2, new[window] ** 2
                if b.numel():
                    parts += [(a.mean(-1) - b.mean(-1)).flatten(1), (a.mean(-2) - b.mean(-2)).flatten(1)]
    return torch.cat(parts, 1).norm(dim=1)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 9), (4, 16), (7, 13), (3, 5), (1, 1), (2, 40)])
def test_pod_equals_a_loop_over_windows(h: int, w: int) -> None:
    old, new = randn(2, 3, h, w), randn(2, 3, h, w, seed=1).requires_grad_()
    weights = randn(2, seed=2)
    fast, slow = local_pod(old, new), slow_pod(old, new)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad((v * weights).sum(), new)[0] for v in (fast, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_pod_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = randn(2, 5, 8, 9), randn(2, 5, 8, 9, seed=1).requires_grad_()
    whole = local_pod(old, new)
    gradient = torch.autograd.grad(whole.sum(), new)[0]
    monkeypatch.setattr(
        "contseg.methods.plop._tiles", lambda planes: (slice(i, i + 3) for i in range(0, len(planes), 3))
    )
    pieces = local_pod(old, new)
    torch.testing.assert_close(pieces, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(pieces.sum(), new)[0], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pod_of_equal_maps_is_zero_with_zero_gradient(dtype: torch.dtype) -> None:
    old = randn(2, 3, 8, 8, dtype=torch.float64).to(dtype)
    new = old.clone().requires_grad_()
    distance = local_pod(old, new)
    distance.sum().backward()
    assert not distance.any()
    assert not new.grad.any()


def test_pod_keeps_its_precision_in_mixed_precision() -> None:
    old, new = randn(1, 4, 16, 16).float(), randn(1, 4, 16, 16, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = local_pod(old, new)
    assert torch.equal(mixed, local_pod(old, new))
    torch.testing.assert_close(local_pod(old.bfloat16(), new.bfloat16()), mixed, rtol=0.02, atol=0)


def outputs(scale: float = 1.0) -> tuple[SegOutput, SegOutput]:
    """Of a model with C = 5 channels and of one with O = 3."""

    def make(classes: int, seed: int) -> SegOutput:
        z, f, e, s = (
            randn(4, n, 6, 9, seed=seed + k).mul(scale).requires_grad_() for k, n in enumerate((classes, 6, 5, 4))
        )
        return SegOutput(z, f, e, (s, f))

    return make(STEP.n_classes, 10), make(STEP.n_old, 20)


def batch_of(out: SegOutput, old: SegOutput, step: Step = STEP, rows: slice = slice(None)) -> Batch:
    g = torch.Generator().manual_seed(4)
    choices = torch.tensor([0, 0, 0, 3, 4, VOID])
    labels = choices[torch.randint(6, (4, 12, 18), generator=g)]
    cut = [
        SegOutput(o.logits[rows], o.features[rows], o.embedding[rows], tuple(s[rows] for s in o.stages))
        for o in (out, old)
    ]
    return Batch(torch.zeros(4, 3, 12, 18)[rows], labels[rows], *cut, step)


def test_pod_term_is_the_weighted_mean_over_maps_and_images() -> None:
    out, old = outputs()
    expected = sum(0.01 * slow_pod(b, a).mean() for a, b in zip(out.stages, old.stages, strict=True))
    expected += 0.01 * slow_pod(old.embedding, out.embedding).mean()
    folded = out.logits[:, :3].clone()
    folded[:, 0] += out.logits[:, 3] + out.logits[:, 4]
    expected += 0.0005 * slow_pod(old.logits, folded).mean()
    expected *= math.sqrt(5 / 2) / 4
    torch.testing.assert_close(LocalPod()(batch_of(out, old)), expected, rtol=1e-12, atol=0)


def test_new_logits_join_background() -> None:
    z = randn(2, 5, 3, 3)
    folded = fold_new_into_background(z, 3)
    torch.testing.assert_close(folded[:, 0], z[:, 0] + z[:, 3] + z[:, 4])
    assert torch.equal(folded[:, 1:], z[:, 1:3])


# --- medians


def numpy_medians(values: np.ndarray, classes: np.ndarray, n: int) -> np.ndarray:
    chosen = [values[classes == c] for c in range(n)]
    return np.array([np.median(v) if len(v) else np.nan for v in chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000, 1001])
def test_medians_are_exact(n: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(n)
    values = torch.rand(n, generator=g, dtype=dtype)
    values[n // 2 :] = values[n // 2 :].round(decimals=1)  # many equal ones, 0 and 1 among them
    classes = torch.randint(3, (n,), generator=g)
    passes = []

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        passes.append(1)
        return zip(values.split(max(n // 3, 1)), classes.split(max(n // 3, 1)), strict=True)

    found = exact_medians(chunks, 4, torch.zeros((), dtype=dtype))
    np.testing.assert_array_equal(
        found.numpy(), numpy_medians(values.numpy(), classes.numpy(), 4).astype(found.numpy().dtype)
    )
    assert len(passes) == {torch.float32: 2, torch.float64: 5}[dtype]


def test_medians_of_extreme_values() -> None:
    values = torch.tensor([0.0, 1e-45, 1e-30, 1.0, 1.0000001, 1.5])
    found = exact_medians(lambda: [(values, torch.zeros(6, dtype=torch.int64))], 1, torch.zeros(()))
    assert found.item() == (torch.tensor([1e-30, 1.0]).mean()).item()


# --- pseudo-labels


class Teacher(torch.nn.Linear):
    """A previous model that answers with logits given beforehand."""

    def __init__(self, old: SegOutput) -> None:
        super().__init__(1, 1, dtype=torch.float64)
        self.answer = old

    def forward(self, images: Tensor) -> SegOutput:
        return self.answer


def begun(old: SegOutput, labels: Tensor, formulation: str = "intended") -> PseudoLabelCrossEntropy:
    term = PseudoLabelCrossEntropy(formulation)
    term.begin_step(StepContext(STEP, None, Teacher(old), lambda: [(torch.zeros(4, 3, 12, 18), labels)]))
    return term


def test_half_of_the_background_of_each_class_is_kept() -> None:
    out, old = outputs()
    batch = batch_of(out, old)
    labels, factor = begun(old, batch.labels).complete(batch)
    background = batch.labels == 0
    prediction = batch.old_logits.argmax(1)
    for c in range(STEP.n_old):
        asked = background & (prediction == c)
        kept = asked & (labels == c)
        assert kept.sum() == asked.sum() // 2
        assert (labels[asked & ~kept] == VOID).all()
    assert torch.equal(labels[~background], batch.labels[~background])
    share = ((labels != VOID) & background).sum((1, 2)) / background.sum((1, 2))
    torch.testing.assert_close(factor, share.double(), rtol=1e-7, atol=1e-7)


def test_loss_is_the_weighted_cross_entropy_over_all_pixels() -> None:
    out, old = outputs()
    batch = batch_of(out, old)
    term = begun(old, batch.labels)
    labels, factor = term.complete(batch)
    log_p = batch.logits.log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        if labels[b, i, j] != VOID:
            total -= factor[b] * log_p[b, labels[b, i, j], i, j]
    torch.testing.assert_close(term(batch), total / labels.numel(), rtol=1e-12, atol=0)


def test_kept_old_labels_are_overwritten_by_the_release_alone() -> None:
    out, old = outputs()
    batch = batch_of(out, old)
    batch.labels[:, :3] = 1
    for formulation, kept in (("intended", True), ("released", False)):
        labels, _ = begun(old, batch.labels, formulation).complete(batch)
        assert torch.equal(labels[:, :3], batch.labels[:, :3]) == kept


def test_a_class_that_was_never_predicted_is_never_a_pseudo_label() -> None:
    out, old = outputs()
    seen = SegOutput(old.logits - torch.tensor([0.0, 0.0, 100.0]).view(3, 1, 1), *old[1:])
    term = begun(seen, batch_of(out, old).labels)
    assert term.thresholds[2].isnan()
    sure_of_it = SegOutput(old.logits + torch.tensor([0.0, 0.0, 100.0]).view(3, 1, 1), *old[1:])
    batch = batch_of(out, sure_of_it)
    labels, factor = term.complete(batch)
    assert (labels[batch.labels == 0] == VOID).all()
    assert not factor.any()
    assert term(batch).item() == 0


def test_order_of_images_does_not_matter() -> None:
    out, old = outputs()
    turned = [
        SegOutput(o.logits.flip(0), o.features.flip(0), o.embedding.flip(0), tuple(s.flip(0) for s in o.stages))
        for o in (out, old)
    ]
    batch, other = batch_of(out, old), batch_of(*turned)
    other.labels = batch.labels.flip(0)
    term = begun(old, batch.labels)
    torch.testing.assert_close(term(batch), term(other), rtol=1e-13, atol=0)
    torch.testing.assert_close(LocalPod()(batch), LocalPod()(other), rtol=1e-13, atol=0)
