"""F-SSUL-LABEL, F-SSUL-PSEUDO, F-BCE with its gradient, F-SSUL-PRED."""

from contseg.methods.base import SegOutput
from contseg.methods.ssul import UnknownBCE, pseudo_labels, shifted_labels, unknown_is_background
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("ssul")
def ssul(fixture: Fixture) -> None:
    labels, old = fixture.tensor("in_labels"), fixture.tensor("in_logits_old")
    logits = fixture.leaf("in_logits_new")
    shifted = shifted_labels(labels, fixture.tensor("in_saliency") == 1)
    fixture.check("released_labels_unknown", shifted)
    target = pseudo_labels(shifted, old, fixture["cfg_threshold"])
    fixture.check("released_labels_pseudo", target)
    out = SegOutput(logits[:, 1:], logits, logits, extra={"unknown": logits[:, :1]})
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels)
    batch.out = out
    loss = UnknownBCE(fixture["cfg_threshold"]).mean(batch, target)
    fixture.check("released_loss", loss)
    fixture.check_gradient("released_grad_logits_new", loss, logits)
    fixture.check("released_prediction", unknown_is_background(out, (labels.shape[1], labels.shape[2])))
