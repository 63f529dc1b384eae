"""F-CIL and SDR's port of it."""

from contseg.methods.cil import UnlabelledDistillation
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("cil_kd")
def cil_kd(fixture: Fixture) -> None:
    z, labels, old = fixture.leaf("in_logits_new"), fixture.tensor("in_labels"), fixture.tensor("in_logits_old")
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z, old)
    for key, formulation in (("paper_cil", "intended"), ("released_port", "released")):
        value = UnlabelledDistillation(fixture["cfg_gs"], formulation)(batch)
        fixture.check(key, value)
        fixture.check_gradient(f"{key}_grad", value, z)
