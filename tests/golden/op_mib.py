"""MiB's losses and initialisation, and plain cross entropy beside them."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from contseg.methods.base import CrossEntropy, Term, resize
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation, background_shares
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("unce")
def unce(fixture: Fixture) -> None:
    z, labels = fixture.leaf("in_logits_new"), fixture.tensor("in_labels")
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z)
    ratio = batch.n_valid / batch.n_pixels
    for key, term in (("released", UnbiasedCrossEntropy()), ("released_ce", CrossEntropy())):
        value = term(batch)
        fixture.check(f"{key}_mean_all", value * ratio)
        fixture.check_gradient(f"{key}_grad_mean_all", value * ratio, z)
    value = UnbiasedCrossEntropy()(batch)
    fixture.check("released_mean_valid", value)
    fixture.check("released_sum", value * batch.n_valid)
    check_map(fixture, UnbiasedCrossEntropy(), z, labels)


@operation("unkd")
def unkd(fixture: Fixture) -> None:
    z, labels = fixture.leaf("in_logits_new"), fixture.tensor("in_labels")
    old = fixture.tensor("in_logits_old") * fixture["cfg_alpha"]
    batch = make_batch(fixture, make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"]), labels, z, old)
    value = UnbiasedDistillation()(batch)
    fixture.check("released_mean", value)
    fixture.check_gradient("released_grad_mean", value, z)
    fixture.check("released_sum", value * batch.n_pixels)
    check_map(fixture, UnbiasedDistillation(), z, labels, old)


def check_map(fixture: Fixture, term: Term, z: Tensor, labels: Tensor, old: Tensor | None = None) -> None:
    """Compare the value at every pixel, where the fixture has it."""
    if "released_map" in fixture:
        fixture.check("released_map", pixelwise(fixture, term, z, labels, old))


def pixelwise(fixture: Fixture, term: Term, z: Tensor, labels: Tensor, old: Tensor | None = None) -> Tensor:
    """The term's value at every pixel by itself: (B, H, W)."""
    size = tuple(labels.shape)
    z = resize(z.detach(), size[1:])
    old = None if old is None else resize(old, size[1:])
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])
    pixels = []
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in size)).tolist():
        cut = (slice(b, b + 1), ..., slice(i, i + 1), slice(j, j + 1))
        one = make_batch(fixture, step, labels[cut], z[cut], None if old is None else old[cut])
        pixels.append(term(one))
    return torch.stack(pixels).reshape(size)


@operation("mib_init")
def mib_init(fixture: Fixture) -> None:
    weight, bias = fixture.tensor("in_weight"), fixture.tensor("in_bias")
    blocks = nn.ModuleList()
    for w, b in zip(weight.split(fixture["cfg_classes"]), bias.split(fixture["cfg_classes"]), strict=True):
        block = nn.Conv2d(w.shape[1], len(w), 1, dtype=fixture.dtype)
        block.weight.data.copy_(w[..., None, None])
        block.bias.data.copy_(b)
        blocks.append(block)
    n_new = fixture["cfg_classes"][-1]
    n_old = len(weight) - n_new
    features = fixture.tensor("in_features")

    def logits(n: int | None = None) -> Tensor:
        return torch.cat([block(features) for block in blocks[:n]], 1)

    before = logits(len(blocks) - 1).softmax(1)
    step = make_step(n_old, n_new, index=len(blocks) - 1)
    background_shares(SimpleNamespace(classifier=SimpleNamespace(blocks=blocks)), step)
    for kind in ("released", "paper"):
        fixture.check(f"{kind}_weight", torch.cat([block.weight for block in blocks])[..., 0, 0])
        fixture.check(f"{kind}_bias", torch.cat([block.bias for block in blocks]))
    fixture.check("released_logits", logits())
    fixture.check("paper_prob_background_before", before[:, 0])
    after = logits().softmax(1)
    fixture.check("paper_prob_background_before", after[:, 0] + after[:, n_old:].sum(1))
