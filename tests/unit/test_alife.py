"""ALIFE: its three losses against sums over pixels, and what trains."""

import pytest
import torch

from contseg.datasets.scenario import VOID
from contseg.methods.modules import is_norm
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(3, 2)
METHOD = build_method("ALIFE")


def test_losses_against_sums_over_pixels() -> None:
    old = taught(METHOD, FIRST)
    with torch.no_grad():
        batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)
    sums, counts = dict.fromkeys(METHOD.terms, 0.0), {"ali": 0, "kd": 0}
    for b in range(len(batch.labels)):
        for i in range(batch.labels.shape[1]):
            for j in range(batch.labels.shape[2]):
                y, z, q = int(batch.labels[b, i, j]), batch.logits[b, :, i, j], batch.old_logits[b, :, i, j].softmax(0)
                if y == 0:
                    counts["ali"] += 1
                    sums["ali"] -= float((q * z.log_softmax(0)[:4]).sum())
                else:
                    counts["kd"] += 1
                    sums["kd"] -= float((q * z[:4].log_softmax(0)).mean())
                    sums["ce"] -= 0.0 if y == VOID else float(z.log_softmax(0)[y])
    expected = {"ce": sums["ce"] / batch.labels.numel(), **{n: sums[n] / counts[n] for n in counts}}
    weights = {"ce": 1, "ali": 3, "kd": 1}
    for name, value in METHOD.losses(batch).items():
        assert value.item() == pytest.approx(weights[name] * expected[name], rel=1e-10)


def test_background_pulls_new_logits_down_and_old_ones_to_the_previous_model() -> None:
    old = taught(METHOD, FIRST)
    batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)
    value = METHOD.terms["ali"](batch)
    assert value is not None
    (gradient,) = torch.autograd.grad(value, batch.logits)
    background = (batch.labels == 0)[:, None].expand_as(gradient)
    assert not gradient[~background].any()
    assert (gradient[:, 4:][background[:, 4:]] > 0).all()
    target = torch.cat([batch.old_logits.softmax(1), torch.zeros_like(batch.logits[:, 4:])], 1)
    expected = (batch.logits.softmax(1) - target) * background / (batch.labels == 0).sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)


def test_later_steps_train_no_norm() -> None:
    model = student_of(taught(METHOD, FIRST), METHOD, SECOND)
    (group,) = METHOD.hook("trainable", SECOND)(model, SECOND)
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters()}
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()} - norms
    assert norms <= {id(p) for p in METHOD.hook("trainable", FIRST)(model, FIRST)[0]["params"]}
