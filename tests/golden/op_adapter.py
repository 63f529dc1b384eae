"""F-ADAPTER-UAC: which pixels count, the loss and its gradient. F-ADAPTER-ADC: prototypes and noise after the move."""

import torch
from torch import Tensor

from contseg.methods.adapter import MovedStatistics, UncertainRunnerUp, runner_up, sure_prediction
from contseg.methods.base import SegOutput, StepContext
from contseg.methods.star import centre_labels
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


@operation("adapter_shift")
def adapter_shift(fixture: Fixture) -> None:
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])
    term = MovedStatistics()
    term.prototypes, term.noise = fixture.tensor("in_prototypes"), fixture.tensor("in_noise")
    term.counts = torch.cat([torch.ones(1), fixture.tensor("in_counts")]).double()

    def output(which: str, i: int) -> SegOutput:
        features, logits = fixture.tensor(f"in_features_{which}_{i}"), fixture.tensor(f"in_logits_{which}_{i}")
        # at label size already; background's row is not used
        return SegOutput(torch.cat([torch.zeros_like(logits[:, :1]), logits], 1), features, features)

    batches = sum(key.startswith("in_labels_") for key in fixture.arrays)
    pairs = [(i, fixture.tensor(f"in_labels_{i}")) for i in range(batches)]
    models = [lambda i, which=which: output(which, i) for which in ("new", "old")]
    term.move(StepContext(step, *models, lambda: iter(pairs)))
    fixture.check("released_prototypes", term.prototypes)
    fixture.check("released_noise", term.noise)

    def counted(i: int, labels: Tensor) -> Tensor:
        before, after = (sure_prediction(m(i), (labels.shape[1], labels.shape[2]), 0.7) for m in models[::-1])
        agreed = torch.where((labels == 0) & (before == after), before, 0)
        return torch.bincount(
            centre_labels(agreed, output("old", i).embedding.shape[2:]).flatten(), minlength=step.n_old
        )

    fixture.check("released_counted", sum(counted(*pair) for pair in pairs)[1:].to(fixture.dtype))
