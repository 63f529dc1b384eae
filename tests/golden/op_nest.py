"""F-NEST-IMP, F-NEST-GEN and F-NEST-INIT: where the tuning starts, what it trains, and what it leaves."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from contseg.methods.base import SegOutput, StepContext
from contseg.methods.nest import Composition, PreTuning
from contseg.tests.golden.harness import Fixture, make_step, operation


@operation("nest_pretune")
def nest_pretune(fixture: Fixture) -> None:
    old, bias, bucket = (fixture.tensor(f"in_{name}") for name in ("weight_old_rows", "bias_old", "bucket"))
    mix = bucket.sum(2).softmax(1)
    fixture.check("released_mix", mix)
    scale = torch.tensor(fixture["cfg_weight_new_bg"], dtype=fixture.dtype)
    tuned = Composition(bucket, mix, fixture.tensor("in_new_bias"), fixture.tensor("in_weight_old_bg")[0], scale)
    logits = torch.einsum("bdhw,cd->bchw", fixture.tensor("in_features"), tuned.rows(old))
    fixture.check("released_logits", logits + torch.cat([bias, tuned.bias])[:, None, None])
    background, rows, biases = tuned.aligned(old, bias, "released")
    fixture.check("released_bg_weight", background)
    fixture.check("released_new_weight", rows)
    fixture.check("released_new_bias", biases)
    share = (len(rows) / len(old)) ** 0.5
    fixture.check("released_new_bias", tuned.aligned(old, bias, "intended")[2] / share)


@operation("nest_importance")
def nest_importance(fixture: Fixture) -> None:
    weight, n_old, n_new = fixture.tensor("in_weight"), fixture["cfg_old_classes"], fixture["cfg_new_classes"]
    images = range(sum(f"in_labels_{i}" in fixture for i in range(9)))
    outputs = [tuple(fixture.tensor(f"in_{name}_old_{i}") for name in ("logits", "features")) for i in images]

    class Previous:
        """The output for the image that the loader gave last."""

        classifier = SimpleNamespace(blocks=[nn.Conv2d(weight.shape[1], n_old, 1)])
        at = 0

        def __call__(self, _: Tensor) -> SegOutput:
            logits, features = outputs[self.at]
            return SegOutput(logits, features, features)

    old = Previous()

    def loader():
        for old.at in images:
            labels = fixture.tensor(f"in_labels_{old.at}")
            yield torch.zeros(1, 3, *labels.shape[1:]), labels

    context = StepContext(make_step(n_old, n_new), None, old, loader)
    start, batches = PreTuning().start(context, weight, torch.zeros(n_old, dtype=fixture.dtype))
    assert batches == len(images)
    fixture.check("released_importance", start.importance)
    fixture.check("released_mix", start.mix)
