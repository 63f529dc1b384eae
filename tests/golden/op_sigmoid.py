"""LwF-MC's sigmoid losses."""

from contseg.methods.lwf_mc import BinaryCrossEntropy, ReplacedTargets, SigmoidDistillation
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation
from contseg.tests.golden.op_mib import check_map


@operation("bce_ignore")
def bce_ignore(fixture: Fixture) -> None:
    z, labels = fixture.leaf("in_logits_new"), fixture.tensor("in_labels")
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z)
    value = BinaryCrossEntropy()(batch)
    fixture.check("released_mean_valid", value)
    fixture.check("released_sum", value * batch.n_valid)
    mean_all = value * batch.n_valid / batch.n_pixels
    fixture.check("released_mean_all", mean_all)
    fixture.check_gradient("released_grad_mean_all", mean_all, z)
    check_map(fixture, BinaryCrossEntropy(), z, labels)


@operation("lwf_mc")
def lwf_mc(fixture: Fixture) -> None:
    z, labels, old = fixture.leaf("in_logits_new"), fixture.tensor("in_labels"), fixture.tensor("in_logits_old")
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z, old)
    bce = BinaryCrossEntropy()(batch) * batch.n_valid / batch.n_pixels
    distillation = fixture["cfg_icarl_importance"] * SigmoidDistillation()(batch)
    fixture.check("released_bce_mean_all", bce)
    fixture.check("released_icarl_term", distillation)
    fixture.check("released_total", bce + distillation)
    fixture.check_gradient("released_grad_total", bce + distillation, z)
    fixture.check("released_disjoint", ReplacedTargets()(batch))
    kept = ReplacedTargets(keep_background=True)(batch)
    fixture.check("released_disjoint_bkg", kept)
    fixture.check_gradient("released_grad_disjoint_bkg", kept, z)
