"""LwF-MC and CIL against loops over pixels."""

import math

import pytest
import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, CrossEntropy, SegOutput
from contseg.methods.cil import LabelledCrossEntropy, UnlabelledDistillation, ported_distillation, scaled_distillation
from contseg.methods.lwf_mc import BinaryCrossEntropy, ReplacedTargets, SigmoidDistillation
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_steps

pytestmark = pytest.mark.numeric

_, STEP = make_steps(2, 2)
O, C = STEP.n_old, STEP.n_classes


def batch(*labels: int, scale: float = 3.0, old: Tensor | None = None) -> Batch:
    """Two images of 4 x 4 with logits at label size; labels are drawn from those given."""
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, C, 4, 4, generator=g, dtype=torch.float64).mul(scale).requires_grad_()
    q = torch.randn(2, O, 4, 4, generator=g, dtype=torch.float64) * scale if old is None else old
    y = torch.tensor(labels)[torch.randint(len(labels), (2, 4, 4), generator=g)]

    def output(logits: Tensor) -> SegOutput:
        return SegOutput(logits, logits, logits)

    return Batch(torch.zeros(2, 3, 4, 4), y, output(z), output(q), STEP)


def pixels(b: Batch) -> list[tuple[Tensor, Tensor, int]]:
    """Logits, old logits, label of each pixel."""
    z, q, y = (
        x.movedim(1, -1).flatten(0, 2) if x.dim() == 4 else x.flatten() for x in (b.logits, b.old_logits, b.labels)
    )
    return [(z[i], q[i], int(y[i])) for i in range(len(y))]


def bce(z: Tensor, target: Tensor | float) -> Tensor:
    return -target * torch.log(torch.sigmoid(z)) - (1 - target) * torch.log(1 - torch.sigmoid(z))


def test_binary_cross_entropy() -> None:
    b = batch(0, 1, 3, 4, VOID)
    total = [sum(bce(z[c], float(c == y)) for c in range(C)) for z, _, y in pixels(b) if y != VOID]
    torch.testing.assert_close(BinaryCrossEntropy()(b), torch.stack(total).mean(), rtol=1e-10, atol=0)


def test_sigmoid_distillation_counts_void_pixels() -> None:
    b = batch(0, 3, VOID)
    total = [sum(bce(z[c], torch.sigmoid(q[c])) for c in range(O)) for z, q, _ in pixels(b)]
    torch.testing.assert_close(SigmoidDistillation()(b), torch.stack(total).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("keep_background", [False, True])
def test_replaced_targets(keep_background: bool) -> None:
    b = batch(0, 3, 4, VOID)
    total = []
    for z, q, y in pixels(b):
        targets = [torch.sigmoid(q[c]) if int(keep_background) <= c < O else float(c == y) for c in range(C)]
        total.append(sum(bce(z[c], t) for c, t in enumerate(targets)))
    torch.testing.assert_close(ReplacedTargets(keep_background)(b), torch.stack(total).mean(), rtol=1e-10, atol=0)


def test_sigmoid_distillation_of_a_model_with_itself_has_no_gradient() -> None:
    b = batch(0, 3)
    same = batch(0, 3, old=b.logits.detach()[:, :O])
    SigmoidDistillation()(same).backward()
    assert same.out.logits.grad is not None
    assert same.out.logits.grad.abs().max() < 1e-15


def test_extreme_logits_stay_finite() -> None:
    b = batch(0, 3, VOID, scale=1e4)
    for term in (
        BinaryCrossEntropy(),
        SigmoidDistillation(),
        ReplacedTargets(),
        UnlabelledDistillation(),
        LabelledCrossEntropy(),
    ):
        value = term(b)
        (gradient,) = torch.autograd.grad(value, b.out.logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_first_step_of_lwf_mc_trains_sigmoids() -> None:
    assert isinstance(build_method("LwF-MC").first["bce"], BinaryCrossEntropy)
    assert isinstance(build_method("LwF-MC[targets=replaced]").terms["bce"], ReplacedTargets)


# --- CIL


def test_distillation_covers_background_and_void_and_weighs_by_entropy_in_bits() -> None:
    b = batch(0, 1, 3, VOID)
    total = []
    for z, old, y in pixels(b):
        if y in (0, VOID):
            q, log_p = old.softmax(0), z.log_softmax(0)
            bits = -sum(float(p) * math.log2(float(p)) for p in q)
            total.append(-(1 + 0.7 * bits) * sum(q[c] * log_p[c] for c in range(O)))
    torch.testing.assert_close(UnlabelledDistillation(0.7)(b), torch.stack(total).mean(), rtol=1e-10, atol=0)


def test_supervision_covers_the_other_pixels() -> None:
    b = batch(0, 1, 3, 4, VOID)
    total = [-z.log_softmax(0)[y] for z, _, y in pixels(b) if y not in (0, VOID)]
    torch.testing.assert_close(LabelledCrossEntropy()(b), torch.stack(total).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("labels", "silent"), [((0, VOID), LabelledCrossEntropy), ((3, 4), UnlabelledDistillation)])
def test_no_pixel_is_no_loss(labels: tuple[int, ...], silent: type) -> None:
    value = silent()(batch(*labels))
    value.backward()
    assert value.item() == 0


def test_the_port_drives_the_student_away() -> None:
    """From the teacher's own prediction, a step down the port's gradient lowers agreement; the loss is at rest."""
    g = torch.Generator().manual_seed(0)
    old = torch.randn(1, O, 4, 4, generator=g, dtype=torch.float64)
    new = torch.cat([old, old.new_full((1, C - O, 4, 4), -20.0)], 1)

    def agreement_after(loss: object) -> float:
        z = new.clone().requires_grad_()
        loss(z, old, 1.0).sum().backward()  # type: ignore[operator]
        moved = (z - 5 * z.grad).detach()
        return float((old.softmax(1) * moved.log_softmax(1)[:, :O]).sum(1).mean())

    still = float((old.softmax(1) * new.log_softmax(1)[:, :O]).sum(1).mean())
    assert agreement_after(ported_distillation) < still - 0.1
    assert agreement_after(scaled_distillation) == pytest.approx(still, abs=1e-6)


def test_released_preset_supervises_every_pixel() -> None:
    terms = build_method("CIL[formulation=released]").terms
    assert isinstance(terms["ce"], CrossEntropy)
    assert terms["kd"].formulation == "released"  # type: ignore[attr-defined]
