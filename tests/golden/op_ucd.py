"""F-UCD: labels, the loss of all pairs and its gradient, in the consistent form."""

import torch

from contseg.methods.base import SegOutput
from contseg.methods.ucd import Points, UncertaintyContrast, pair_labels, pair_weights
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation

RELEASE = "defects L8b-L10 of the release: bilinear class ids, negatives out of scale"


@operation("ucd")
def ucd(fixture: Fixture) -> None:
    n_old = fixture["cfg_old_classes"]
    step = make_step(n_old, fixture["cfg_new_classes"])
    new, old = fixture.leaf("in_features_new"), fixture.tensor("in_features_old")
    logits, labels = fixture.tensor("in_logits_old_small"), fixture.tensor("in_labels")

    paired = pair_labels(labels, logits).flatten()
    anchor = (paired > 0) & (paired != 255)
    old_key = anchor & (paired < n_old)
    q = logits.softmax(1).movedim(1, -1).flatten(0, 2)
    vectors = new.movedim(1, -1).flatten(0, 2)
    anchors, previous = (Points(vectors[at], paired[at], q[at]) for at in (anchor, old_key))
    keys = Points(*map(torch.cat, zip(anchors, previous, strict=True)))
    fixture.check("paper_anchor_labels", anchors.labels)
    fixture.check("paper_key_labels", keys.labels)
    fixture.check("paper_pair_weight", pair_weights(anchors, keys, n_old))

    for key in fixture.arrays:
        if key.startswith("released"):
            fixture.no_counterpart(key, RELEASE)

    batch = make_batch(fixture, step, labels)
    batch.out = SegOutput(batch.out.logits, new, new)
    batch._old = SegOutput(logits, old, old)
    term = UncertaintyContrast(temperature=fixture["cfg_temperature"])
    loss = term(batch)
    fixture.check("paper_loss", loss)
    fixture.check_gradient("paper_grad_features_new", loss, new)
