"""F-ADAPTER-UAC: which pixels count, the loss and its gradient."""

import torch

from contseg.methods.adapter import UncertainRunnerUp, runner_up
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("adapter_uac")
def adapter_uac(fixture: Fixture) -> None:
    logits, labels = fixture.leaf("in_logits"), fixture.tensor("in_labels")
    term, step = UncertainRunnerUp(), make_step(2, logits.shape[1] - 1)
    pixels = runner_up(logits, labels, term.sure)
    fixture.check("released_mask", (pixels > 0).long())
    # the release: void counts, as a class that nothing is
    for_void = torch.where(labels == 255, 0, labels)
    batch = make_batch(fixture, step, for_void, torch.cat([torch.zeros_like(logits[:, :1]), logits], 1))
    loss = term(batch)
    fixture.check("released_loss", loss)
    fixture.check_gradient("released_grad", loss, logits)
