"""Loss terms, forward and backward, against loops over classes: 4 images, 2048 channels, 512x512 labels.

The references go about it as released code does: every term on its own, a mask as large as the features for every
class. They compute the intended formulas, so that both sides give the same numbers (asserted). Memory is the peak over
inputs and gradient.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.datasets.scenario import VOID, Step
from contseg.methods.base import Batch, SegOutput
from contseg.methods.registry import build_method
from contseg.tests.benchmarks.ratios import Against, peak

pytest.importorskip("pytest_benchmark")

B, D, C, O = 4, 2048, 21, 16
STEP = Step(1, "sequential", tuple(range(1, O)), tuple(range(O, C)))
LATENT = ("prototypes", "matching", "attraction", "repulsion", "sparsity")
Data = dict[str, Tensor]


@pytest.fixture(scope="module")
def data() -> Data:
    """Every class occurs; label regions of 32 pixels, a void border now and then."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.arange(B * 16 * 16).remainder(C).view(B, 16, 16)
    labels = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[:, ::37] = VOID
    return {
        "labels": labels,
        "features": torch.randn(B, D, 32, 32, generator=g).relu_().requires_grad_(),
        "logits": torch.randn(B, C, 512, 512, generator=g).requires_grad_(),
        "old": torch.randn(B, O, 512, 512, generator=g),
    }


def batch(data: Data) -> Batch:
    out = SegOutput(data["logits"], data["features"], data["features"])
    return Batch(data["labels"], data["labels"], out, SegOutput(data["old"], data["features"], data["features"]), STEP)


def suite(method: str, *names: str) -> Callable[[Data], list[Tensor]]:
    def losses(data: Data) -> list[Tensor]:
        found, here = build_method(method).terms, batch(data)
        return [v for v in (found[name](here) for name in names) if v is not None]

    return losses


def rows_of(features: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """The features (N_c, D) of every present class, by a mask over all numbers."""
    last = features.movedim(1, -1)
    present = [c for c in labels.unique().tolist() if c != VOID]
    return {c: last[(labels == c)[..., None].expand_as(last)].view(-1, D) for c in present}


def plain_latent(data: Data) -> list[Tensor]:
    f, y = data["features"], batch(data).feature_labels
    prototypes = {c: r.mean(0).detach() for c, r in rows_of(f.detach(), y).items()}
    gaps = [(r.mean(0) - prototypes[c]).square().mean() for c, r in rows_of(f, y).items() if 0 < c < O]
    pulls = [(r - prototypes[c]).square().mean() for c, r in rows_of(f, y).items()]
    means = [r.mean(0) for r in rows_of(f, y).values()]
    inverse = [1 / (a - b).norm() for i, a in enumerate(means) for b in means[:i]]
    normal = torch.cat([r / r.max() for r in rows_of(f, y).values()])
    sparsity = (normal.exp().sum(1) / normal.sum(1)).mean()
    return [torch.stack(gaps).mean(), torch.stack(pulls).mean(), torch.stack(inverse).mean(), sparsity]


def plain_unbiased(data: Data) -> list[Tensor]:
    z, y = data["logits"], data["labels"]
    total = z.logsumexp(1, keepdim=True)
    background = z[:, :O].logsumexp(1, keepdim=True) - total
    log_p = torch.cat([background, torch.zeros_like(z[:, 1:O]), z[:, O:] - total], 1)
    own = (z - total).gather(1, y.masked_fill(y == VOID, 0)[:, None])[:, 0]
    new = log_p.gather(1, y.masked_fill(y == VOID, 0)[:, None])[:, 0]
    ce = -torch.where((y > 0) & (y < O), own, new)[y != VOID].mean()
    with_new = torch.cat([z[:, :1], z[:, O:]], 1).logsumexp(1, keepdim=True)
    kd = F.cross_entropy(torch.cat([with_new, z[:, 1:O]], 1), data["old"].softmax(1)) / O
    return [ce, kd]


def plain_distillation(data: Data) -> list[Tensor]:
    student, teacher = data["logits"][:, :O].log_softmax(1), data["old"].softmax(1)
    return [-(student * teacher).mean(1).mean()]


PAIRS = {
    "SDR block": (suite("FT+SDR", *LATENT), plain_latent, ("features", "labels"), "20"),
    "unbiased CE + KD": (suite("MiB", "unce", "unkd"), plain_unbiased, ("logits", "old", "labels"), "4"),
    "KD": (suite("LwF", "kd"), plain_distillation, ("logits", "old"), ""),
}


@pytest.mark.parametrize("name", PAIRS)
def test_forward_and_backward(against: Against, data: Data, name: str) -> None:
    ours, reference, inputs, target = PAIRS[name]
    leaf = data[inputs[0]]

    def run(losses: Callable[[Data], list[Tensor]]) -> Tensor:
        leaf.grad = None
        total = torch.stack(losses(data)).sum()
        total.backward()
        return total.detach()

    size = sum(data[key].nbytes for key in inputs)
    memory = (size + peak(lambda: run(ours))) / (size + leaf.nbytes)
    remark = f"memory {memory:.2f} of 1.5"
    value = against(name, lambda: run(ours), lambda: run(reference), target, remark=remark)
    torch.testing.assert_close(value, torch.stack(reference(data)).sum().detach(), rtol=1e-4, atol=1e-6)
