"""UCB: factors by hand, weights against a loop over pixels, which losses take them, and what cannot carry it."""

import math

import pytest
import torch

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import VOID
from contseg.methods.base import StepContext
from contseg.methods.registry import build_method
from contseg.methods.ucb import UncertaintyBalance, class_factors
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(3, 1)


@pytest.mark.parametrize(
    ("frequencies", "n_old", "factors"),
    [
        ([0.4, 0.3, 0.2, 0.1], 3, [1, 0.2 / 0.3, 0.2 / 0.2, math.sqrt(3)]),  # 2 is above the limit
        ([0.4, 0.6, 0.0, 0.0], 3, [1, 1, math.sqrt(3), math.sqrt(3)]),
        ([1.0, 0.0, 0.0, 0.0], 3, [1, math.sqrt(3), math.sqrt(3), math.sqrt(3)]),
        ([0.1, 0.8, 0.1], 1, [1, math.sqrt(0.5), math.sqrt(0.5)]),  # more new classes than old ones: the upper limit
        ([0.0, 0.0, 0.0], 2, [1, math.sqrt(2), math.sqrt(2)]),
    ],
)
def test_class_factors(frequencies: list[float], n_old: int, factors: list[float]) -> None:
    found = class_factors(torch.tensor(frequencies, dtype=torch.float64), n_old)
    assert found.tolist() == pytest.approx(factors)


def begun(name: str) -> tuple[UncertaintyBalance, torch.nn.Module, torch.nn.Module]:
    method = build_method(name)
    old = taught(method, FIRST)
    model = student_of(old, method, SECOND)
    term = method.terms["ucb"]
    assert isinstance(term, UncertaintyBalance)
    term.begin_step(StepContext(SECOND, model, old, lambda: []))
    return term, old, model


@pytest.mark.parametrize("stretch", [True, False])
def test_weights_against_a_loop_over_pixels(stretch: bool) -> None:
    term, old, model = begun(f"PLOP+UCB[threshold=0.6,stretch={str(stretch).lower()}]")
    batch = make_batch(model, old, SECOND)
    z, targets = batch.old_logits, torch.where(batch.labels == 0, batch.old_logits.argmax(1), batch.labels)
    q = z.softmax(1)
    entropy = -(q * (q + 1e-8).log()).sum(1) / math.log(z.shape[1])
    low, high = (float(entropy.min()), float(entropy.max())) if stretch else (0.0, 1.0)
    valid = targets[targets != VOID]
    v = class_factors(torch.bincount(valid, minlength=SECOND.n_classes) / len(valid), SECOND.n_old)
    weights = torch.zeros_like(entropy)
    for place in (targets != VOID).nonzero():
        here, y = tuple(place.tolist()), int(targets[tuple(place)])
        h = 0.0 if y >= SECOND.n_old else (float(entropy[here]) - low) / (high - low)
        weights[here] = float(v[y]) * (math.exp(1 - h / 0.6) if h < 0.6 else 0.0)
    weights /= weights[targets != VOID].mean()
    assert (targets == VOID).any() and (targets >= SECOND.n_old).any() and weights.any()
    found = term.weigh(batch, targets, z)
    torch.testing.assert_close(found, weights, rtol=1e-6, atol=1e-7)
    assert not found.requires_grad


def test_frequencies_are_a_mean_over_images_and_begin_anew_with_a_step() -> None:
    term, old, model = begun("PLOP+UCB")
    batch = make_batch(model, old, SECOND)
    zeros, ones = torch.zeros(1, 16, 24, dtype=torch.int64), torch.ones(3, 16, 24, dtype=torch.int64)
    for targets in (zeros, ones):
        term.update(batch, targets)
    assert term.frequencies is not None and term.frequencies.tolist() == [0.25, 0.75, 0, 0, 0]
    term.begin_step(StepContext(SECOND, model, old, lambda: []))
    assert not term.frequencies.any()


@pytest.mark.parametrize("targets", [0, VOID])
def test_background_or_void_alone_is_finite(targets: int) -> None:
    term, old, model = begun("PLOP+UCB")
    batch = make_batch(model, old, SECOND)
    weights = term.weigh(batch, torch.full_like(batch.labels, targets), torch.zeros_like(batch.old_logits))
    assert weights.isfinite().all() and weights.any() == (targets == 0)


@pytest.mark.parametrize(("base", "name"), [("PLOP", "pseudo"), ("SSUL", "bce")])
def test_each_pixel_of_the_base_is_multiplied_by_its_weight(base: str, name: str) -> None:
    """Weights of a constant leave the loss, a mask leaves what it keeps."""
    method = build_method(base)
    old = taught(method, FIRST)
    batch = make_batch(student_of(old, method, SECOND), old, SECOND)
    if base == "PLOP":
        method.terms[name].thresholds = torch.full((SECOND.n_old,), 0.8, dtype=torch.float64)
    plain = method.terms[name](batch)
    seen = []

    def half(targets: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append((targets, scores))
        return torch.full(targets.shape, 0.5, dtype=torch.float64)

    batch.pixel_weight = half
    torch.testing.assert_close(method.terms[name](batch), plain / 2, rtol=1e-12, atol=0)
    ((targets, scores),) = seen
    assert set(targets.unique().tolist()) <= {*range(SECOND.n_classes), VOID}
    assert scores.shape[1] == SECOND.n_old + (base == "SSUL") and scores.shape[2:] == targets.shape[1:]
    assert torch.equal(targets == SECOND.n_old, batch.labels == SECOND.n_old)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FT+UCB", "FT has no such loss, PLOP and SSUL have"),
        ("MiB+SDR+UCB", "MiB+SDR has no such loss"),
        ("PLOP+UCB+UCB", "has weights already"),
    ],
)
def test_what_cannot_carry_it_is_one_line(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_method(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)
