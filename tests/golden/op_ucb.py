"""F-UCB: class frequencies, factors and weights over consecutive batches."""

import torch

from contseg.methods.ucb import UncertaintyBalance, class_factors
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("ucb_weights")
def ucb_weights(fixture: Fixture) -> None:
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])

    def fresh() -> UncertaintyBalance:
        term = UncertaintyBalance(fixture["cfg_threshold"], bool(fixture["cfg_minmax"]))
        term.frequencies = torch.zeros(step.n_classes, dtype=fixture.dtype)
        term.images = torch.zeros((), dtype=fixture.dtype)
        return term

    as_background, without, i = fresh(), fresh(), 0
    while f"in_labels_{i}" in fixture:
        labels, scores = fixture.tensor(f"in_labels_{i}"), fixture.tensor(f"in_logits_old_{i}")
        if fixture["cfg_shifted"]:
            labels = torch.where(labels == 255, 255, (labels - 1).clamp(min=0))
        batch = make_batch(fixture, step, labels)
        fixture.check(f"paper_valid_weight_{i}", without.weigh(batch, labels, scores))
        labels = torch.where(labels == 255, 0, labels)  # as released: void is background
        fixture.check(f"paper_weight_{i}", as_background.weigh(batch, labels, scores))
        fixture.check(f"paper_m_{i}", as_background.frequencies)
        fixture.check(f"paper_class_{i}", class_factors(as_background.frequencies, step.n_old))
        fixture.check(f"paper_entropy_{i}", as_background.sureness(batch, labels, scores))
        for name in ("weight", "m", "class"):
            fixture.no_counterpart(f"released_{name}_{i}", "defect L60 of the release: a histogram without limits")
        i += 1
