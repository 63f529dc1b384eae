"""LwF's and ILT's distillation."""

from contseg.methods.ilt import FeatureDistillation
from contseg.methods.lwf import Distillation
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation
from contseg.tests.golden.op_mib import check_map


@operation("kd")
def kd(fixture: Fixture) -> None:
    z, labels = fixture.leaf("in_logits_new"), fixture.tensor("in_labels")
    old = fixture.tensor("in_logits_old") * fixture["cfg_alpha"]
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z, old)
    value = Distillation()(batch)
    fixture.check("released_mean", value)
    fixture.check_gradient("released_grad_mean", value, z)
    fixture.check("released_sum", value * batch.n_pixels)
    check_map(fixture, Distillation(), z, labels, old)


@operation("ilt_feat")
def ilt_feat(fixture: Fixture) -> None:
    features, labels = fixture.leaf("in_features"), fixture.tensor("in_labels")
    old = fixture.tensor("in_features_old")
    step = make_step(fixture["cfg_old_classes"], 1)
    batch = make_batch(fixture, step, labels, features=features, old_features=old)
    value = FeatureDistillation()(batch)
    fixture.check("released_plain", value)
    fixture.check_gradient("released_plain_grad", value, features)
    option = "an option of the SDR repository that no method uses"
    for key in ("released_masked", "released_masked_grad", "released_cosine"):
        fixture.no_counterpart(key, option)
