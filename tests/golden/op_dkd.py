"""F-MBCE, F-BKD, F-DKD, F-AC and the prediction, with the gradients of their weighted sum."""

from types import SimpleNamespace

import torch
from torch import Tensor

from contseg.methods.base import Batch, SegOutput
from contseg.methods.dkd import above_half, decompose, dkd, mean, multi_bce
from contseg.tests.golden.harness import Fixture, make_step, operation


def output(features: Tensor, weight: Tensor, bias: Tensor, aux_weight: Tensor, aux_bias: Tensor) -> SegOutput:
    block = SimpleNamespace(weight=torch.cat([aux_weight, weight])[..., None, None], bias=torch.cat([aux_bias, bias]))
    logits = torch.nn.functional.conv2d(features, block.weight, block.bias)
    model = SimpleNamespace(classifier=SimpleNamespace(blocks=[block]))
    return decompose(model, (), SegOutput(logits, features, features))


@operation("dkd")
def dkd_losses(fixture: Fixture) -> None:
    leaves = {k: fixture.leaf(f"in_{k}") for k in ("features_new", "weight", "bias", "aux_weight", "aux_bias")}
    out = output(*leaves.values())
    aux = fixture.tensor("in_aux_weight"), fixture.tensor("in_aux_bias")
    old = output(*(fixture.tensor(f"in_{k}") for k in ("features_old", "weight_old", "bias_old")), *aux)
    labels = fixture.tensor("in_labels")
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=fixture.dtype)
    batch = Batch(images, labels, out, old, step)

    method = dkd(positive=fixture["cfg_pos_weight"])
    values = {name: term(batch) for name, term in method.terms.items()}
    names = {"kd": "kd", "dkd_pos": "dkd+", "dkd_neg": "dkd-", "ac": "ac"}
    for key, name in names.items():
        fixture.check(f"released_{key}", values[name])
    fixture.check("paper_mbce", values["mbce"])
    total = torch.stack(list(method.losses(batch).values())).sum()
    fixture.check("paper_total", total)

    # the release: void is a negative, and in the mean
    released = mean(multi_bce(batch.logits, labels, step.n_old, fixture["cfg_pos_weight"]), batch.reduce)
    fixture.check("released_mbce", released)
    released_total = total - values["mbce"] + released
    fixture.check("released_total", released_total)
    for key, leaf in leaves.items():
        fixture.check_gradient(f"paper_grad_{key}", total, leaf)
        fixture.check_gradient(f"released_grad_{key}", released_total, leaf)
    fixture.check("released_prediction", above_half(out, (labels.shape[1], labels.shape[2])))
