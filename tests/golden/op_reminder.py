"""F-CSW with its gradient, F-CSW-PROTO."""

import torch

from contseg.methods.base import Batch, SegOutput, StepContext
from contseg.methods.reminder import BatchPrototypes, SimilarityDistillation, class_means, similarity_weights
from contseg.tests.golden.harness import Fixture, make_step, operation

EXTRA = "the release adds 1e-7 to the target"


@operation("reminder_csw")
def reminder_csw(fixture: Fixture) -> None:
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])
    features, labels = fixture.leaf("in_features_new"), fixture.tensor("in_labels")
    logits, old_logits = fixture.leaf("in_logits_new"), fixture.tensor("in_logits_old")
    prototypes = BatchPrototypes()
    prototypes.prototypes = fixture.tensor("in_proto_old")

    means, counts = class_means(features, labels, step.n_old, step.n_classes, lambda x: x)
    fixture.check("released_proto_new", means)
    weights = similarity_weights(means, prototypes.prototypes, fixture["cfg_delta"])
    fixture.check("paper_weights", torch.where(counts[:, None] > 0, weights, torch.nan))

    old_features = torch.zeros_like(features)
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=fixture.dtype)
    old = SegOutput(old_logits, old_features, old_features)
    batch = Batch(images, labels, SegOutput(logits, features, features), old, step)
    loss = SimilarityDistillation(prototypes, fixture["cfg_delta"], fixture["cfg_temperature"])(batch)
    fixture.check("paper_loss", loss)
    fixture.check_gradient("paper_grad_logits_new", loss, logits)
    assert torch.autograd.grad(loss, features, allow_unused=True, retain_graph=True) == (None,)
    fixture.no_counterpart("released_loss", EXTRA)
    fixture.no_counterpart("released_grad_logits_new", EXTRA)


@operation("reminder_proto")
def reminder_proto(fixture: Fixture) -> None:
    n_old, total = fixture["cfg_old_classes"], fixture["cfg_total_classes"]
    n = range(fixture["cfg_n_batches"])
    features = [fixture.tensor(f"in_features_{i}") for i in n]
    labels = [fixture.tensor(f"in_labels_{i}") for i in n]
    step = make_step(n_old, total - n_old) if n_old else make_step(1, total - 1, index=0)
    assert (step.n_old, step.n_classes) == (n_old, total)
    model = _Recorded()
    context = StepContext(step, model, None, lambda: zip(features, labels, strict=True))
    term = BatchPrototypes()
    if n_old:
        term.prototypes = fixture.tensor("in_proto_old")
    term.end_step(context)
    fixture.check("released_prototypes", term.prototypes)

    batches = [class_means(f, y, n_old, total, lambda x: x) for f, y in zip(features, labels, strict=True)]
    fixture.check("released_counts", sum((counts > 0).to(fixture.dtype) for _, counts in batches))
    fixture.no_counterpart("paper_pixel_weighted", "prototypes are means over batches, as released")


class _Recorded(torch.nn.Module):
    """A network whose image is its embedding."""

    def forward(self, features: torch.Tensor) -> SegOutput:
        return SegOutput(features, features, features)
