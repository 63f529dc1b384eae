"""Loss terms, forward and backward, against the plain way of writing them: 4 images, 2048 channels, 512x512 labels.

The references loop over classes with masks, as released code does, but compute the intended formulas: both sides of
a pair give the same numbers (asserted). ``extra_info`` holds the peak of memory beyond the inputs, over inputs and
gradient. Two threads, as the targets are stated; set ``OMP_NUM_THREADS`` for another number.
"""

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.scenario import VOID, Step
from methods.base import Batch, SegOutput
from methods.registry import build_method

pytest.importorskip("pytest_benchmark")

B, D, C, O = 4, 2048, 21, 16
STEP = Step(1, "sequential", tuple(range(1, O)), tuple(range(O, C)))
LATENT = ("prototypes", "matching", "attraction", "repulsion", "sparsity")


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
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


def batch(data: dict[str, Tensor]) -> Batch:
    out = SegOutput(data["logits"], data["features"], data["features"])
    return Batch(data["labels"], data["labels"], out, SegOutput(data["old"], data["features"], data["features"]), STEP)


def suite_latent(data: dict[str, Tensor]) -> list[Tensor]:
    found = build_method("FT+SDR").terms
    here = batch(data)
    values = [found[name](here) for name in LATENT]
    return [v for v in values if v is not None]


def suite_unbiased(data: dict[str, Tensor]) -> list[Tensor]:
    found = build_method("MiB").terms
    here = batch(data)
    return [found[name](here) for name in ("unce", "unkd")]


def plain_latent(data: dict[str, Tensor]) -> list[Tensor]:
    f, y = data["features"], batch(data).feature_labels
    present = [c for c in y.unique().tolist() if c != VOID]
    rows = {c: f.movedim(1, -1)[y == c] for c in present}
    means = {c: rows[c].mean(0) for c in present}
    prototypes = {c: m.detach() for c, m in means.items()}
    matching = torch.stack([(means[c] - prototypes[c]).square().mean() for c in present if 0 < c < O]).mean()
    attraction = torch.stack([(rows[c] - prototypes[c]).square().mean() for c in present]).mean()
    inverse = [1 / (means[a] - means[b]).norm() for i, a in enumerate(present) for b in present[:i]]
    normal = {c: r / r.max() for c, r in rows.items()}
    sparsity = torch.cat([n.exp().sum(1) / n.sum(1) for n in normal.values()]).mean()
    return [matching, attraction, torch.stack(inverse).mean(), sparsity]


def plain_unbiased(data: dict[str, Tensor]) -> list[Tensor]:
    z, y = data["logits"], data["labels"]
    total = z.logsumexp(1, keepdim=True)
    own = (z - total).gather(1, y.masked_fill(y == VOID, 0)[:, None])[:, 0]
    background = (z[:, :O].logsumexp(1, keepdim=True) - total)[:, 0]
    ce = -torch.where(y == 0, background, own)[y != VOID].mean()
    with_new = torch.cat([z[:, :1], z[:, O:]], 1).logsumexp(1, keepdim=True)
    kd = F.cross_entropy(torch.cat([with_new, z[:, 1:O]], 1), data["old"].softmax(1)) / O
    return [ce, kd]


PAIRS = {
    "SDR block": (suite_latent, plain_latent, ("features",)),
    "unbiased CE + KD": (suite_unbiased, plain_unbiased, ("logits", "old")),
}


@pytest.mark.parametrize("side", ["suite", "plain"])
@pytest.mark.parametrize("name", PAIRS)
def test_forward_and_backward(benchmark: Callable, data: dict[str, Tensor], name: str, side: str) -> None:
    *both, inputs = PAIRS[name]
    losses, reference = (both[0], both[1]) if side == "suite" else (both[1], both[0])
    leaf = data[inputs[0]]

    def run() -> Tensor:
        leaf.grad = None
        total = torch.stack(losses(data)).sum()
        total.backward()
        return total.detach()

    benchmark.group = name
    value = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    torch.testing.assert_close(value, torch.stack(reference(data)).sum().detach(), rtol=1e-4, atol=1e-6)
    size = sum(data[key].nbytes for key in inputs) + leaf.nbytes
    benchmark.extra_info["peak over inputs and gradient"] = (size - leaf.nbytes + peak(run)) / size


def peak(run: Callable[[], object]) -> int:
    """Bytes that are held beyond what was there before, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
