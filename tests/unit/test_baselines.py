"""Frozen backbone, linear probe, nearest prototype: what trains, and what is predicted."""

import pytest
import torch

from contseg.datasets.scenario import VOID
from contseg.methods.base import Method, SegOutput, StepContext, shrink_labels
from contseg.methods.baselines import ClassMeans, NearestMean
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_images, make_labels, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

STEPS = make_steps(2, 1)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("FT", {"encoder", "aspp", "classifier"}),
        ("FrozenBackbone", {"aspp", "classifier"}),
        ("LinearProbe", {"classifier"}),
        ("NearestPrototype", set()),
    ],
)
def test_what_trains_after_step_0(name: str, parts: set[str]) -> None:
    method = build_method(name)
    for t, expected in enumerate(({"encoder", "aspp", "classifier"}, parts)):
        model = taught(method, *STEPS[: t + 1])
        groups = method.hook("trainable", STEPS[t])(model, STEPS[t])
        trained = {id(p) for g in groups for p in g["params"]}
        names = {n for n, p in model.named_parameters() if id(p) in trained}
        assert names == {n for n, _ in model.named_parameters() if n.partition(".")[0] in expected}


def ended(method: Method) -> tuple[ClassMeans, list[SegOutput], list[torch.Tensor]]:
    """The term after two steps; outputs and labels of both."""
    term = method.terms["means"]
    assert isinstance(term, ClassMeans)
    outputs, labels = [], []
    old = taught(method, STEPS[0])
    for step, model in zip(STEPS, (old, student_of(old, method, STEPS[1])), strict=True):
        images, maps = make_images(), make_labels(step)
        term.end_step(StepContext(step, model, None, lambda i=images, m=maps: [(i, m), (i.flip(0), m)]))
        with torch.no_grad():
            outputs.append(model(images))
        labels.append(maps)
    return term, outputs, labels


def test_means_are_mean_directions_of_new_classes() -> None:
    term, outputs, labels = ended(build_method("NearestPrototype"))
    assert term.means is not None
    assert len(term.means) == STEPS[1].n_classes
    for t, (out, y) in enumerate(zip(outputs, labels, strict=True)):
        small = shrink_labels(y, tuple(out.embedding.shape[2:])).flatten()
        directions = torch.nn.functional.normalize(out.embedding, dim=1).movedim(1, -1)
        for c in range(STEPS[t].n_old, STEPS[t].n_classes):
            # the loader's second batch has the images in another order under the same labels
            both = [d.flatten(0, 2)[small == c] for d in (directions, directions.flip(0))]
            mean = torch.cat(both).sum(0)
            torch.testing.assert_close(term.means[c], mean / mean.norm(), rtol=1e-8, atol=1e-8)


def test_prediction_is_the_nearest_direction() -> None:
    term = ClassMeans()
    term.means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    embedding = torch.tensor([[5.0, 1.0], [0.1, 0.2], [-1.0, -3.0]]).T[None, :, None]  # (1, 2, 1, 3)
    out = SegOutput(torch.zeros(1, 3, 1, 3), embedding, embedding)
    assert NearestMean(term)(out, (1, 3)).tolist() == [[[0, 1, 0]]]  # never the class without a mean
    assert NearestMean(term)(out, (4, 6)).shape == (1, 4, 6)


def test_background_keeps_the_mean_of_step_0_and_void_has_none() -> None:
    method = build_method("NearestPrototype")
    term, _, labels = ended(method)
    assert term.means is not None
    assert (labels[0] == VOID).any()
    torch.testing.assert_close(term.means.norm(dim=1), torch.ones(STEPS[1].n_classes, dtype=torch.float64))
    before = term.means[: STEPS[0].n_classes]
    images, maps = make_images(), torch.zeros_like(labels[1])  # a later step that is all background
    _, _, third = make_steps(2, 1, 1)
    model = student_of(student_of(taught(method, STEPS[0]), method, STEPS[1]), method, third)
    term.end_step(StepContext(third, model, None, lambda: [(images, maps)]))
    assert torch.equal(term.means[: STEPS[0].n_classes], before)
    assert not term.means[-1].any()
