"""UAC: which pixels it reads, and where its gradient goes."""

import pytest
import torch

from contseg.datasets.scenario import VOID
from contseg.methods.adapter import runner_up
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(3, 2)


@pytest.mark.parametrize(
    ("sigmoids", "label", "value"),
    [
        ([0.6, 0.5, 0.1], 0, (1 - 0.6 + 0.5) ** 2),
        ([0.6, 0.5, 0.1], 2, (1 - 0.6 + 0.5) ** 2),
        ([0.6, 0.5, 0.1], 1, 0),  # the label is the best class
        ([0.71, 0.5, 0.1], 0, 0),  # sure
    ],
)
def test_value_and_gradient_of_a_pixel(sigmoids: list[float], label: int, value: float) -> None:
    logits = torch.tensor(sigmoids, dtype=torch.float64).logit().reshape(1, 3, 1, 1).requires_grad_()
    pixel = runner_up(logits, torch.tensor([[[label]]]), 0.7)
    assert pixel.item() == pytest.approx(value)
    (gradient,) = torch.autograd.grad(pixel.sum(), logits)
    assert (gradient.flatten() != 0).tolist() == [False, value > 0, False]


def test_mean_is_over_valid_pixels_and_background_has_no_part() -> None:
    method = build_method("STAR+UAC[sure=1]")
    old = taught(method, FIRST)
    batch = make_batch(student_of(old, method, SECOND), old, SECOND)
    pixels = runner_up(batch.logits[:, 1:], batch.labels, 1)
    value = method.terms["uac"](batch)
    torch.testing.assert_close(value, pixels[batch.labels != VOID].mean(), rtol=1e-12, atol=0)
    assert value > 0
    (gradient,) = torch.autograd.grad(value, batch.logits)
    assert not gradient[:, 0].any() and not gradient.movedim(1, -1)[batch.labels == VOID].any()


def test_step_0_is_that_of_the_method() -> None:
    assert list(build_method("STAR+UAC").first) == list(build_method("STAR").first)
