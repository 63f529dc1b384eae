"""SDR's prototypes and latent terms in their three formulations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.methods import sdr, sdr_variants
from contseg.methods.base import Batch
from contseg.methods.sdr import Prototypes
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


def holding(prototypes: Tensor) -> Prototypes:
    """These prototypes, all of them seen."""
    term = Prototypes()
    term.prototypes, term.counts = prototypes, torch.ones(len(prototypes), dtype=torch.int64)
    return term


@operation("sdr_proto_update")
def prototypes(fixture: Fixture) -> None:
    setup = "overlapped" if fixture["cfg_overlapped"] else "sequential" if fixture["cfg_sequential"] else "disjoint"
    classes, index = fixture["cfg_num_classes"], fixture["cfg_step"]
    step = make_step(classes - 1 if index else 1, 1 if index else classes - 1, setup, index)
    assert sdr.background_is_trusted(step) != fixture["cfg_skip_background"]
    for key, kind in (("paper", sdr.Prototypes), ("released", sdr_variants.ReleasedPrototypes)):
        term = kind()
        term.prototypes, term.counts = fixture.tensor("in_prototypes_0"), fixture.tensor("in_count_0")
        t = 0
        while f"in_features_{t}" in fixture:
            features, labels = fixture.leaf(f"in_features_{t}"), fixture.tensor(f"in_labels_{t}")
            batch = make_batch(fixture, step, labels, features=features)
            fixture.check(f"in_labels_down_{t}", batch.feature_labels)
            assert term(batch) is None
            t += 1
            if f"{key}_prototypes_{t}" in fixture:
                fixture.check(f"{key}_prototypes_{t}", term.prototypes)
                fixture.check(f"{key}_count_{t}", term.counts)
    fixture.no_counterpart("released_error", "the release fails on a batch of background only; here nothing moves")


@operation("sdr_proto_match")
def matching(fixture: Fixture) -> None:
    features, labels = fixture.leaf("in_features"), fixture.tensor("in_labels")
    held = holding(fixture.tensor("in_prototypes"))
    n_old = fixture["cfg_old_classes"]
    setup = "sequential" if fixture["cfg_sequential"] else "disjoint"
    step = make_step(n_old, len(held.counts) - n_old, setup)
    old = F.one_hot(fixture.tensor("in_old_pred"), n_old).movedim(-1, 1).to(fixture.dtype)
    if "in_logits_old_small" in fixture:
        old = fixture.tensor("in_logits_old_small")
    batch = make_batch(fixture, step, labels, features=features, old_logits=old)
    fixture.check("paper_pseudo_down", sdr.pseudo_labels(batch))
    compare(fixture, "paper_pm", sdr.Matching(held), batch)
    compare(fixture, "released_pm_sumafter", sdr_variants.ReleasedMatching(held), batch)
    fixture.check("printed_pm_sum", sdr_variants.PrintedMatching(held)(batch) * n_old)
    fixture.no_counterpart("released_pm_perpixel", "an option of the release that its preset does not use")


@operation("sdr_att_rep")
def attraction_repulsion(fixture: Fixture) -> None:
    features, labels = fixture.leaf("in_features"), fixture.tensor("in_labels")
    held = holding(fixture.tensor("in_prototypes"))
    classes = fixture["cfg_num_classes"]
    trusted, untrusted = (
        make_batch(fixture, make_step(2, classes - 2, setup), labels, features=features)
        for setup in ("sequential", "overlapped")
    )
    fixture.check("paper_classes", trusted.class_counts.nonzero()[:, 0])
    compare(fixture, "paper_att", sdr.Attraction(held), trusted)
    fixture.check("paper_att_nobg", sdr.Attraction(held)(untrusted))
    compare(fixture, "paper_rep", sdr.Repulsion(), trusted)
    compare(fixture, "released_att", sdr_variants.ReleasedAttraction(held), trusted)
    compare(fixture, "released_rep", sdr_variants.ReleasedRepulsion(), trusted)
    fixture.check("printed_att", sdr_variants.PrintedAttraction(held)(trusted))
    fixture.check("printed_rep", sdr_variants.PrintedRepulsion()(trusted))
    # repulsion does include background's centroid of the batch; the pairs without it by the shared function
    present = trusted.class_counts > 0
    centroids = trusted.class_sums / trusted.class_counts.clamp(min=1)[:, None]
    fixture.check("paper_rep_nobg", sdr.mean_inverse_distance(centroids[1:], present[1:]))
    for key in ("released_att_nobg", "released_nobg_error"):
        fixture.no_counterpart(key, "an option of the release that its preset does not use")


@operation("sdr_sparsity")
def sparsity(fixture: Fixture) -> None:
    features, labels = fixture.leaf("in_features"), fixture.tensor("in_labels")
    down = fixture.tensor("in_labels_down")
    classes = int(down[down != 255].max()) + 1
    step = make_step(2, max(classes - 2, 1))
    batch = make_batch(fixture, step, labels, features=features)
    compare(fixture, "paper_sp", sdr.Sparsity(), batch)
    compare(fixture, "released_sp", sdr_variants.ReleasedSparsity(), batch)
    void_is_a_class = torch.where(labels == 255, step.n_classes, labels)
    batch = make_batch(fixture, make_step(2, step.n_classes - 1), void_is_a_class, features=features)
    fixture.check("paper_sp_255asclass", sdr.Sparsity()(batch))


def compare(fixture: Fixture, key: str, term: sdr.Term, batch: Batch) -> None:
    """Value and gradient with respect to the features."""
    value = term(batch)
    assert value is not None
    fixture.check(key, value)
    fixture.check_gradient(f"{key}_grad", value, batch.out.features)
