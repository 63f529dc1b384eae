"""CFSSeg: one regression on all that was ever seen, in any order; pseudo-labels; what trains."""

import pytest
import torch
import torch.nn.functional as F

from contseg.datasets.scenario import VOID
from contseg.methods.base import SegOutput, StepContext
from contseg.methods.cfsseg import AnalyticClassifier, LargestSigmoid
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_images, make_labels, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

METHOD = build_method("CFSSeg")
FIRST, SECOND, THIRD = make_steps(2, 1, 1)


def ended(*orders: slice, setup: str = "sequential", threshold: float | None = None) -> AnalyticClassifier:
    """The classifier after two steps whose images come in these orders."""
    term = AnalyticClassifier(32, 2.0, threshold)
    old = taught(METHOD, FIRST)
    steps = make_steps(2, 1, setup=setup)
    for step, model, order in zip(steps, (old, student_of(old, METHOD, SECOND)), orders, strict=True):
        pairs = list(zip(make_images(4).split(1), make_labels(step, 4).split(1), strict=True))[order]
        term.end_step(StepContext(step, model, None, lambda pairs=pairs: iter(pairs)))
    return term


def test_weights_are_the_ridge_regression_on_all_valid_positions() -> None:
    term = ended(slice(None), slice(None))
    assert term.projection is not None and term.weights is not None
    old = taught(METHOD, FIRST)
    rows, ones = [], []
    for step in (FIRST, SECOND):
        model = old if step is FIRST else student_of(old, METHOD, SECOND)
        with torch.no_grad():
            f = model(make_images(4)).embedding
        labels = F.interpolate(make_labels(step, 4)[:, None].double(), f.shape[2:])[:, 0].long()
        assert (labels == VOID).any()
        rows.append((f.movedim(1, -1)[labels != VOID] @ term.projection.T).clamp(min=0))
        ones.append(F.one_hot(labels[labels != VOID], SECOND.n_classes).double())
    x, y = torch.cat(rows), torch.cat(ones)
    expected = torch.linalg.inv(x.T @ x + 2.0 * torch.eye(32)) @ x.T @ y
    torch.testing.assert_close(term.weights, expected, rtol=1e-8, atol=1e-10)


def test_the_order_of_batches_and_images_changes_nothing() -> None:
    one, other = ended(slice(None), slice(None)), ended(slice(None, None, -1), slice(None, None, -1))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-9, atol=1e-12)


def test_a_class_without_a_position_has_score_0_and_void_alone_changes_nothing() -> None:
    term = ended(slice(None), slice(None))
    before, old = term.weights, taught(METHOD, FIRST, SECOND)
    images = make_images()
    void = torch.full_like(make_labels(THIRD), VOID)
    term.end_step(StepContext(THIRD, student_of(old, METHOD, THIRD), None, lambda: [(images, void)]))
    assert term.weights is not None
    torch.testing.assert_close(term.weights[:, :-1], before, rtol=1e-9, atol=1e-12)
    assert not term.weights[:, -1].any()


def test_sure_background_becomes_the_class_of_the_classifier() -> None:
    term = AnalyticClassifier(3)
    term.projection = torch.eye(3, dtype=torch.float64)
    term.weights = torch.eye(3, dtype=torch.float64)
    embedding = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.8], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]).T[None, :, None]
    labels = torch.tensor([[[0, 0, 0, 2]]])
    assert term.relabel(embedding, labels, 0.7).tolist() == [[[1, 0, 0, 2]]]  # sigmoid(0.8) < 0.7 < sigmoid(0.9)
    out = SegOutput(embedding, embedding, embedding)
    assert LargestSigmoid(term)(out, (1, 4)).tolist() == [[[1, 2, 0, 1]]]


@pytest.mark.parametrize(("setup", "differs"), [("overlapped", True), ("disjoint", True), ("sequential", False)])
def test_pseudo_labels_are_for_setups_without_old_labels(setup: str, differs: bool) -> None:
    plain, pseudo = (ended(slice(None), slice(None), setup=setup, threshold=t) for t in (None, 0.55))
    assert plain.weights is not None and pseudo.weights is not None
    assert torch.allclose(plain.weights, pseudo.weights) != differs


def test_only_step_0_trains_and_its_head_is_deeper() -> None:
    first, second = taught(METHOD, FIRST), taught(METHOD, FIRST, SECOND)
    assert sum(len(g["params"]) for g in METHOD.trainable(first, FIRST)) == len(list(first.parameters()))
    assert METHOD.trainable(second, SECOND) == []
    assert len(first.aspp) == 4 == len(second.aspp)
    batch = make_batch(first, None, FIRST)
    assert (batch.out.embedding >= 0).all() and batch.out.embedding.shape[1] == first.aspp[1].out_channels
