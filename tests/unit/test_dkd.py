"""DKD: what the classifier's rows are, what the losses see, and the prediction rule."""

import pytest
import torch
import torch.nn.functional as F

from contseg.methods.base import SegOutput
from contseg.methods.dkd import above_half, binary_distillation, logit_parts, multi_bce
from contseg.methods.modules import is_norm
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

METHOD = build_method("DKD")
FIRST, SECOND, THIRD = make_steps(3, 2, 1)


def test_parts_and_bias_are_the_logit() -> None:
    model = taught(METHOD, FIRST, SECOND)
    out = make_batch(model, None, SECOND).out
    bias = torch.cat([b.bias for b in model.classifier.blocks])[1:, None, None]
    whole = out.extra["for"] + out.extra["against"] + bias
    torch.testing.assert_close(whole, out.logits[:, 1:], rtol=1e-12, atol=1e-12)
    assert (out.extra["for"] >= 0).all() and (out.extra["against"] <= 0).all()  # the embedding is not negative
    first = model.classifier.blocks[0]
    auxiliary = F.conv2d(out.embedding, first.weight[:1], first.bias[:1])
    torch.testing.assert_close(out.extra["auxiliary"], auxiliary, rtol=1e-12, atol=1e-12)
    assert not out.logits[:, 0].any()  # of background: a sigmoid of 1/2


def test_auxiliary_row_learns_and_the_features_do_not() -> None:
    model = taught(METHOD, FIRST)
    batch = make_batch(model, None, FIRST)
    loss = METHOD.first["ac"](batch)
    weight = model.classifier.blocks[0].weight
    loss.backward()
    assert weight.grad[0].any() and not weight.grad[1:].any()
    assert all(p.grad is None for p in [*model.encoder.parameters(), *model.aspp.parameters()])


def test_auxiliary_row_feels_its_own_loss_only() -> None:
    old = taught(METHOD, FIRST)
    model = student_of(old, METHOD, SECOND)
    batch = make_batch(model, old, SECOND)
    for name in ("mbce", "kd", "dkd+", "dkd-"):
        (gradient,) = torch.autograd.grad(
            METHOD.terms[name](batch), model.classifier.blocks[0].weight, retain_graph=True
        )
        assert not gradient[0].any(), name


def test_new_rows_start_as_the_auxiliary_one() -> None:
    old = taught(METHOD, FIRST, SECOND)
    model = student_of(old, METHOD, THIRD)
    first, new = model.classifier.blocks[0], model.classifier.blocks[-1]
    assert torch.equal(new.weight, first.weight[:1].expand_as(new.weight))
    assert torch.equal(new.bias, first.bias[:1].expand_as(new.bias))
    out, before = make_batch(model, None, THIRD).out, make_batch(old, None, SECOND).out
    assert torch.equal(out.logits[:, : THIRD.n_old], before.logits)


def test_distilling_a_model_with_itself_has_no_gradient() -> None:
    old = taught(METHOD, FIRST)
    batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)
    loss = sum(METHOD.terms[name](batch) for name in ("kd", "dkd+", "dkd-"))
    sources = (batch.out.logits, batch.out.extra["for"], batch.out.extra["against"])
    for gradient in torch.autograd.grad(loss, sources):
        assert gradient.abs().max() < 1e-17


def test_supervision_against_torch_and_without_void() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, 7, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 6, (2, 5, 7), generator=g)
    one_hot = F.one_hot(labels, 6).movedim(-1, 1)[:, 4:].double()
    weight = torch.tensor(35.0).expand(2, 1, 1)
    oracle = F.binary_cross_entropy_with_logits(logits[:, 4:], one_hot, reduction="none", pos_weight=weight).sum(1)
    torch.testing.assert_close(multi_bce(logits, labels, 4, 35.0), oracle, rtol=1e-12, atol=1e-12)


def test_void_pixels_change_no_supervision() -> None:
    old = taught(METHOD, FIRST)
    batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)
    (gradient,) = torch.autograd.grad(METHOD.terms["mbce"](batch), batch.logits)
    void = (batch.labels == 255)[:, None].expand_as(gradient)
    assert void.any() and not gradient[void].any() and not gradient[:, : SECOND.n_old].any()


def test_distillation_against_torch() -> None:
    g = torch.Generator().manual_seed(0)
    new, old = (torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64) for _ in range(2))
    oracle = F.binary_cross_entropy_with_logits(new, old.sigmoid(), reduction="none").sum(1)
    torch.testing.assert_close(binary_distillation(new, old), oracle, rtol=1e-12, atol=1e-12)


def test_terms_are_sums_over_classes_and_means_over_pixels() -> None:
    """Each through the batch: the classes it reads, at which size, and what it is a mean over."""
    old = taught(METHOD, FIRST)
    batch = make_batch(student_of(old, METHOD, SECOND), old, SECOND)
    z, before, labels, n = batch.logits, batch.old_logits, batch.labels, SECOND.n_old

    def no(x: torch.Tensor) -> torch.Tensor:
        return (1 + x.exp()).log()  # the cost of a negative

    def against(new: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (no(new) - q.sigmoid() * new).sum(1).mean()

    valid = labels != 255
    cost = [torch.where(labels == k, 3 * no(-z[:, k]), no(z[:, k]))[valid].mean() for k in range(n, z.shape[1])]
    parts = [(batch.out.extra[k][:, : n - 1], batch.old.extra[k]) for k in ("for", "against")]
    size = (labels.shape[1], labels.shape[2])
    auxiliary = F.interpolate(batch.out.extra["auxiliary"], size, mode="bilinear")
    expected = {
        "mbce": torch.stack(cost).sum(),
        "kd": against(z[:, 1:n], before[:, 1:n]),
        "dkd+": against(*parts[0]),
        "dkd-": against(*parts[1]),
        "ac": no(auxiliary).mean(),
    }
    method = build_method("DKD[positive=3]")
    assert parts[0][0].shape[-1] < labels.shape[-1] and not valid.all()
    for name, value in expected.items():
        torch.testing.assert_close(method.terms[name](batch), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("logits", "channel"),
    [
        ([9.0, -1.0, -2.0], 0),  # the auxiliary row has no say
        ([9.0, 0.1, -2.0], 1),
        ([-9.0, 0.1, 0.2], 2),
        ([0.0, 0.0, 0.0], 0),  # one half is not above one half
    ],
)
def test_prediction_is_the_best_class_above_one_half(logits: list[float], channel: int) -> None:
    z = torch.tensor(logits).reshape(1, 3, 1, 1)
    assert above_half(SegOutput(z, z, z), (1, 1)).item() == channel


def test_later_steps_freeze_norms_and_decay_new_rows_only() -> None:
    model = taught(METHOD, FIRST, SECOND)
    groups = METHOD.trainable(model, SECOND)
    trained = {id(p): g.get("weight_decay") for g in groups for p in g["params"]}
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters()}
    assert norms and set(trained) == {id(p) for p in model.parameters()} - norms
    new = {id(p) for p in model.classifier.blocks[-1].parameters()}
    assert {i for i, decay in trained.items() if decay is None} == new
    assert sum(len(g["params"]) for g in METHOD.trainable(model, FIRST)) == len(list(model.parameters()))


def test_parts_of_a_known_logit() -> None:
    w = torch.tensor([[2.0, -3.0]])[..., None, None]
    f = torch.tensor([1.0, 10.0]).reshape(1, 2, 1, 1)
    assert [p.item() for p in logit_parts(f, w)] == [2.0, -30.0]
