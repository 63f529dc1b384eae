"""UAC: which pixels it reads, and where its gradient goes. ADC: how prototypes move."""

import pytest
import torch

from contseg.datasets.scenario import VOID
from contseg.methods.adapter import MovedStatistics, runner_up
from contseg.methods.base import StepContext
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_images, make_labels, make_steps, student_of, taught

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


def test_prototypes_move_as_the_features_that_both_models_are_sure_of() -> None:
    """Against a loop over positions; a class without one stays."""
    method = build_method("Adapter[adc=true,sure=0.05]")
    old = taught(method, FIRST)
    model = student_of(old, method, SECOND)
    images, labels = make_images(), make_labels(SECOND)
    with torch.no_grad():
        model.aspp.norm.bias += 0.1 * torch.randn(
            model.aspp.norm.bias.shape, generator=torch.Generator().manual_seed(0)
        )
        outputs = old(images), model(images)
    term = method.terms["statistics"]
    assert isinstance(term, MovedStatistics)
    g = torch.Generator().manual_seed(1)
    start = torch.nn.functional.normalize(torch.randn(3, outputs[0].embedding.shape[1], generator=g).double(), dim=1)
    noise, term.counts = torch.rand(start.shape, generator=g).double(), torch.tensor([50.0, 10, 20, 30]).double()
    term.prototypes, term.noise = start, noise
    term.move(StepContext(SECOND, model, old, lambda: [(images, labels)]))

    height, width = outputs[0].embedding.shape[2:]
    rows, columns = labels.shape[1] // height, labels.shape[2] // width
    sums, found = torch.zeros(2, *start.shape).double(), torch.zeros(3).double()
    for b in range(len(labels)):
        for i in range(height):
            for j in range(width):
                at = b, slice(None), i * rows + rows // 2, j * columns + columns // 2
                called = []
                for out in outputs:
                    z = torch.nn.functional.interpolate(out.logits, labels.shape[1:], mode="bilinear")[at][1:].sigmoid()
                    first, second = z.sort(descending=True).values[:2]
                    called.append(int(z.argmax()) + 1 if first > 0.5 and first - second > 0.05 else 0)
                if labels[b, at[2], at[3]] == 0 and called[0] == called[1] > 0:
                    found[called[0] - 1] += 1
                    for k, out in enumerate(outputs):
                        f = out.embedding[b, :, i, j]
                        sums[k, called[0] - 1] += f / f.norm()
    assert found.any()
    before, after = torch.nn.functional.normalize(sums, dim=2)
    shift = (found / torch.tensor([10.0, 20, 30]).double())[:, None] * (after - before)
    torch.testing.assert_close(term.prototypes, start + shift, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(term.noise, noise + shift.abs(), rtol=1e-9, atol=1e-12)


def test_without_adc_it_is_star_and_uac() -> None:
    assert str(build_method("Adapter")).splitlines()[1:] == str(build_method("STAR+UAC")).splitlines()[1:]
