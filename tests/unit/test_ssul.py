"""SSUL: the table of labels, pseudo-labels, the prediction rule, what starts a head and what trains."""

import pytest
import torch
import torch.nn.functional as F

from contseg.methods.base import SegOutput
from contseg.methods.modules import is_norm
from contseg.methods.registry import build_method
from contseg.methods.ssul import UnknownBCE, pseudo_labels, shifted_labels, sigmoid_cross_entropy, unknown_is_background
from contseg.tests.unit.networks import make_batch, make_images, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

METHOD = build_method("SSUL")
FIRST, SECOND, THIRD = make_steps(3, 2, 1)


def test_labels_move_up_by_one() -> None:
    labels = torch.tensor([[[0, 0, 1, 7, 255]]])
    salient = torch.tensor([[[True, False, True, False, True]]])
    assert shifted_labels(labels, salient).tolist() == [[[0, 1, 2, 8, 255]]]


@pytest.mark.parametrize(
    ("label", "probabilities", "result"),
    [
        (0, [0.1, 0.2, 0.8, 0.3], 2),
        (1, [0.1, 0.2, 0.3, 0.9], 3),
        (0, [0.1, 0.2, 0.6, 0.3], 0),  # not sure
        (0, [0.9, 0.2, 0.8, 0.3], 0),  # more surely unknown
        (1, [0.1, 0.9, 0.8, 0.3], 1),  # more surely background
        (4, [0.1, 0.2, 0.8, 0.3], 4),  # the ground truth stays
        (255, [0.1, 0.2, 0.8, 0.3], 255),
    ],
)
def test_pseudo_labels(label: int, probabilities: list[float], result: int) -> None:
    scores = torch.tensor(probabilities).logit().reshape(1, 4, 1, 1)
    assert pseudo_labels(torch.tensor([[[label]]]), scores, 0.7).item() == result


@pytest.mark.parametrize(
    ("unknown", "rest", "channel"),
    [(0.4, [0.3, 0.6, 0.1], 0), (0.2, [0.3, 0.6, 0.1], 1), (0.9, [0.9, 0.99, 0.1], 0), (0.1, [0.1, 0.3, 0.4], 2)],
)
def test_prediction_adds_unknown_to_background(unknown: float, rest: list[float], channel: int) -> None:
    z, u = torch.tensor(rest).logit().reshape(1, 3, 1, 1), torch.tensor(unknown).logit().reshape(1, 1, 1, 1)
    assert unknown_is_background(SegOutput(z, z, z, (), {"unknown": u}), (1, 1)).item() == channel


def test_loss_against_torch() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4), generator=g)
    oracle = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 5).movedim(-1, 1).double(), reduction="none")
    labels[0, 0] = 255
    expected = oracle.sum(1) * (labels != 255)
    torch.testing.assert_close(sigmoid_cross_entropy(logits, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threshold", [0.7, 0.55])
def test_the_term_pixel_by_pixel(threshold: float) -> None:
    """F-SSUL-LABEL, F-SSUL-PSEUDO and F-BCE: a sum over channels, a mean over the pixels that are not void."""
    old = taught(METHOD, FIRST)
    batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)

    def scores(out: SegOutput) -> torch.Tensor:
        return F.interpolate(torch.cat([out.extra["unknown"], out.logits], 1), (16, 24), mode="bilinear").detach()

    z, q = scores(batch.out), scores(batch.old).sigmoid() * 0.3 + 0.45  # between 0.45 and 0.75
    logit = (q / (1 - q)).log()
    batch._old = SegOutput(logit[:, 1:], logit, logit, (), {"unknown": logit[:, :1]})
    total, valid, guessed = 0.0, 0, 0
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in batch.labels.shape)).tolist():
        y = int(batch.labels[b, i, j])
        if y == 255:
            continue
        target, best = (0 if y == 0 else y + 1), int(q[b, :, i, j].argmax())
        if y == 0 and best >= 2 and q[b, best, i, j] >= threshold:
            target, guessed = best, guessed + 1
        p = z[b, :, i, j].sigmoid()
        total -= sum(float((p[c] if c == target else 1 - p[c]).log()) for c in range(len(p)))
        valid += 1
    assert guessed and valid < batch.labels.numel()
    assert UnknownBCE(threshold)(batch).item() == pytest.approx(total / valid, rel=1e-10)


def test_new_head_answers_as_the_unknown_one_and_old_ones_as_before() -> None:
    old = taught(METHOD, FIRST, SECOND)
    model = student_of(old, METHOD, THIRD)
    with torch.no_grad():
        before, after = old(make_images()), model(make_images())
    assert after.logits.shape[1] == THIRD.n_classes
    assert torch.equal(after.logits[:, : THIRD.n_old], before.logits)
    for k in range(THIRD.n_old, THIRD.n_classes):
        torch.testing.assert_close(after.logits[:, k : k + 1], before.extra["unknown"], rtol=1e-12, atol=1e-12)


def test_later_steps_train_three_heads_without_norms() -> None:
    model = taught(METHOD, FIRST, SECOND, THIRD)
    heads, background = METHOD.trainable(model, THIRD)
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters()}

    def names(group: dict) -> set[str]:
        ids = {id(p) for p in group["params"]}
        assert not ids & norms
        return {n for n, p in model.named_parameters() if id(p) in ids}

    rows = ("0.weight", "3.weight", "3.bias")  # 3x3 convolution; 1x1
    assert names(heads) == {f"{h}.{r}" for h in ("classifier.blocks.2", "heads.unknown") for r in rows}
    assert names(background) == {f"classifier.background.{r}" for r in rows}
    assert background["lr_scale"] == pytest.approx(1e-4 * heads["lr_scale"])


def test_background_pixels_are_unknown_and_never_background() -> None:
    model = taught(METHOD, FIRST)
    batch = make_batch(model, None, FIRST)
    batch.labels = torch.zeros_like(batch.labels)
    loss = METHOD.first["bce"](batch)
    unknown, logits = torch.autograd.grad(loss, (batch.out.extra["unknown"], batch.out.logits))
    assert (unknown < 0).all() and (logits > 0).all()


def test_void_has_no_gradient() -> None:
    old = taught(METHOD, FIRST)
    model = student_of(old, METHOD, SECOND)
    batch = make_batch(model, old, SECOND)
    batch.labels = torch.full_like(batch.labels, 255)
    loss = METHOD.terms["bce"](batch)
    assert loss.detach() == 0
    (gradient,) = torch.autograd.grad(loss, batch.out.logits)
    assert gradient.isfinite().all() and not gradient.any()


def test_heads_depend_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = taught(METHOD, FIRST, SECOND).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    b = taught(METHOD, FIRST, SECOND).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
