"""F-DFT: the loss with and without reserved rows, and what gets a gradient."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from contseg.methods.base import CrossEntropy, SegOutput
from contseg.methods.dft import ReservedCrossEntropy, ReservedRows, train_rows_to_come
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


def rows(weight: Tensor, bias: Tensor, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    conv = kind(weight.shape[1], len(weight), 1).to(weight.dtype)
    conv.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    return conv


@operation("dft_star")
def dft_star(fixture: Fixture) -> None:
    blocks, index, reserved = (fixture[f"cfg_{k}"] for k in ("blocks", "step", "preallocated"))
    weight, bias = fixture.tensor("in_weight"), fixture.tensor("in_bias")
    parts = [rows(w, b) for w, b in zip(weight.split(blocks), bias.split(blocks), strict=True)]
    n, first = sum(blocks[: index + 1]), blocks[0]
    classifier = SimpleNamespace(blocks=parts[: index + 1])
    heads = {"reserve": rows(weight[first:], bias[first:], ReservedRows)} if reserved else {}
    for head in heads.values():
        head.used = n - first
    step = make_step(n - blocks[index], blocks[index], index=index) if index else make_step(1, n - 1, index=0)

    features = fixture.tensor("in_features")
    logits = torch.cat([block(features) for block in classifier.blocks], 1)
    extra = {name: head(features) for name, head in heads.items()}
    batch = make_batch(fixture, step, fixture.tensor("in_labels"))
    batch.out = SegOutput(logits, features, features, (), extra)
    loss = (ReservedCrossEntropy() if reserved else CrossEntropy())(batch)
    share = batch.valid.to(loss).mean()  # the release: a mean over all pixels
    fixture.check("paper_loss", loss)
    fixture.check("released_loss", share * loss)

    model = SimpleNamespace(classifier=classifier, heads=heads)
    everything = [{"params": [p for m in (*classifier.blocks, *heads.values()) for p in m.parameters()]}]
    trained = [p for g in (train_rows_to_come(model, step) if index else everything) for p in g["params"]]
    found = dict(zip(map(id, trained), torch.autograd.grad(loss, trained), strict=True))
    for name, size in (("weight", weight.shape), ("bias", bias.shape)):
        gradient = torch.zeros(size, dtype=fixture.dtype)
        start = 0
        for block in classifier.blocks:
            if id(getattr(block, name)) in found:
                gradient[start : start + block.out_channels] = found[id(getattr(block, name))].reshape(-1, *size[1:])
            start += block.out_channels
        for head in heads.values():
            if id(getattr(head, name)) in found:
                gradient[first:] += found[id(getattr(head, name))].reshape(-1, *size[1:])
        fixture.check(f"paper_grad_{name}", gradient)
        fixture.check(f"released_grad_{name}", share * gradient)
