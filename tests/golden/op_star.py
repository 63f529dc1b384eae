"""F-STAR-STAT, F-STAR-COUNT, F-STAR-MBCE, F-STAR-PKD, F-STAR-CONT, with their gradients."""

from types import SimpleNamespace

import torch
from torch import Tensor

from contseg.methods.base import SegOutput, StepContext
from contseg.methods.star import ClassStatistics, PrototypeContrast, RegionDistillation, Replay, ReplayedBCE
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


def foreground(where: Tensor, n_old: int, dtype: torch.dtype) -> Tensor:
    """Logits (B, O, H, W) of a model that predicts class 1 there, and background elsewhere."""
    logits = torch.full((len(where), n_old, *where.shape[1:]), -1, dtype=dtype)
    logits[:, 1][where] = 1
    return logits


@operation("star_statistics")
def star_statistics(fixture: Fixture) -> None:
    n_old, n_new = fixture["cfg_old_classes"], fixture["cfg_new_classes"]
    features = [fixture.tensor(k) for k in sorted(fixture.arrays) if k.startswith("in_features_")]
    pairs = [(f, fixture.tensor(f"in_labels_{i}")) for i, f in enumerate(features)]
    term, step = ClassStatistics(), make_step(n_old, n_new, index=int(n_old > 1))
    if n_old > 1:
        old = fixture.tensor("in_old_prototypes")
        term.prototypes, term.noise = old, torch.ones_like(old)
        term.norms, term.counts = old.new_ones(2, n_old - 1), old.new_ones(n_old, dtype=torch.float64)
    classifier = SimpleNamespace(blocks=[SimpleNamespace(in_channels=features[0].shape[1])])

    class Network:
        def __init__(self) -> None:
            self.classifier = classifier

        def parameters(self):
            return iter(features)

        def __call__(self, embedding: Tensor) -> SegOutput:
            return SegOutput(embedding, embedding, embedding)

    term.end_step(StepContext(step, Network(), None, lambda: iter(pairs)))
    fixture.check("released_prototypes", term.prototypes[-n_new:])
    fixture.check("released_norm", term.norms[:, -n_new:])
    fixture.check("paper_noise", term.noise[-n_new:])
    if n_old > 1:
        fixture.no_counterpart("released_noise", "defect L30 of the release: around the prototype of another class")
    else:
        fixture.check("released_noise", term.noise)


@operation("star_replay")
def star_replay(fixture: Fixture) -> None:
    n_old, n_new = fixture["cfg_old_classes"], fixture["cfg_new_classes"]
    setup = "overlapped" if fixture["cfg_overlapped"] else "disjoint"
    step = make_step(n_old, n_new, setup)
    counts = (fixture.tensor(f"in_{k}_counts") for k in ("previous", "predicted"))
    plan = Replay()(*counts, fixture["cfg_iterations"], step)
    fixture.check("released_per_update", plan.per_update.long())
    fixture.check("released_background_ratio", plan.background)
    fixture.check("released_carried_counts", torch.cat([plan.counts, fixture.tensor("in_current_counts")[1:]]))

    logits, drawn, extra = (fixture.leaf(f"in_{k}logits") for k in ("", "synthetic_", "background_"))
    labels, old = fixture.tensor("in_labels"), foreground(fixture.tensor("in_old_foreground") > 0, n_old, fixture.dtype)
    here = ((labels == 0) & (old[:, 1] < 0))[:, 8::16, 8::16]
    small = torch.zeros(len(labels), n_new, *here.shape[1:], dtype=fixture.dtype)
    small = small.movedim(1, -1).index_put((here,), extra[0, :, :, 0].T).movedim(-1, 1)
    small = torch.cat([small.new_zeros(len(small), n_old, *here.shape[1:]), small], 1)

    seen = ClassStatistics()
    seen.background = plan.background
    seen.draw = lambda generator: drawn[0, :, :, 0].T  # features as long as there are rows, and rows that keep them
    term = ReplayedBCE(seen, fixture["cfg_positive"])
    term.rows = SimpleNamespace(weight=torch.eye(n_new, dtype=fixture.dtype)[..., None, None], bias=None)
    # the release: void is a negative, as a kept old label would be
    for name, targets in (("paper", labels), ("released", torch.where(labels == 255, 1, labels))):
        batch = make_batch(fixture, step, targets, logits=small, old_logits=old)
        batch.logits = torch.cat([logits.new_zeros(len(logits), n_old, *logits.shape[2:]), logits], 1)
        loss = term(batch)
        fixture.check(f"{name}_loss", loss)
    for name, leaf in (("logits", logits), ("synthetic", drawn), ("background", extra)):
        fixture.check_gradient(f"released_grad_{name}", loss, leaf)


@operation("star")
def star(fixture: Fixture) -> None:
    n_old = fixture["cfg_old_classes"]
    step, labels = make_step(n_old, fixture["cfg_new_classes"]), fixture.tensor("in_labels")
    new, old = fixture.leaf("in_features_new"), fixture.tensor("in_features_old")
    region = foreground(fixture.tensor("in_region") > 0, n_old, fixture.dtype)
    batch = make_batch(fixture, step, labels, features=new, old_logits=region, old_features=old)
    distillation = RegionDistillation()(batch)
    seen = ClassStatistics()
    seen.prototypes = fixture.tensor("in_prototypes")
    contrast = PrototypeContrast(seen)(batch)
    for name, value in (("pkd", distillation), ("cont", contrast)):
        fixture.check(f"released_{name}", value)
        fixture.check(f"paper_{name}", value)
        fixture.check_gradient(f"released_grad_{name}", value, new)
