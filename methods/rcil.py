"""RCIL: representation compensation (Zhang et al., CVPR 2022, arXiv 2203.05402), on top of MiB.

Every spatial convolution of a residual block and every map of the ASPP, each with its norm, exists twice. The two
outputs are mixed at random in training, and averaged in evaluation. At a new step the average is folded into the first
branch, which is frozen; the second branch learns. Pooled maps of all stages are distilled.

Source: F-RC, F-RC-MERGE and F-PCKD of docs/methods.md, from ``RCIL@b9aad58``. As released, the second branch continues
with its weights (``start="kept"``), so at the start of a step the network is not equal to the teacher: it is a quarter
first branch and three quarters second branch. ``start="merged"`` sets the second branch to the merged one too; then the
student equals the teacher. As released, stage maps are read after their activation (PLOP reads them before).
Differs from the release: plain norms (gamma, not |gamma| + epsilon); the folded branch is a convolution with bias and
without norm, so its epsilon cannot change when it is loaded; basic blocks, which the release does not have, have two
pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, CrossEntropy, Method, StepContext, Term, full_precision
from contseg.methods.losses import sent
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation, background_shares
from contseg.methods.modules import drawn_from, is_norm
from contseg.methods.plop import fold_new_into_background
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method

# --- the network ---------------------------------------------------------------------------------------------------


def mix(first: Tensor, second: Tensor, draw: Tensor) -> Tensor:
    """The first branch, the second, or their mean, for each channel (F-RC).

    first, second (B, C, h, w); draw (C,), uniform in [0, 1): below 0.33, below 0.66, above.
    """
    share = torch.where(draw < 0.33, 1.0, torch.where(draw < 0.66, 0.0, 0.5)).to(first.dtype)[:, None, None]
    return share * first + (1 - share) * second


def folded(branch: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the single convolution that is equal to the branch in evaluation.

    ``branch``: a convolution without bias and its norm, or a convolution with bias.
    """
    if isinstance(branch, nn.Conv2d):
        assert branch.bias is not None
        return branch.weight, branch.bias
    conv, norm = branch
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Branches(nn.Module):
    """Two parallel convolutions with norm, (B, C_in, h, w) -> (B, C, h, w) before activation.

    After the first merge ``first`` is a convolution with bias. ``draw`` (C,) holds the random numbers of the next
    training pass.
    """

    draw: Tensor
    first: Any
    second: Any

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(conv, norm)
        self.second = nn.Sequential(copy.deepcopy(conv), copy.deepcopy(norm))
        self.register_buffer("draw", torch.full((conv.out_channels,), 1.0, device=conv.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return mix(first, second, self.draw) if self.training else (first + second) / 2

    @torch.no_grad()
    def merge(self, start: str) -> None:
        """Fold the mean of both branches into the first (F-RC-MERGE); the second is kept, or made equal to it."""
        weight, bias = ((a + b) / 2 for a, b in zip(folded(self.first), folded(self.second), strict=True))
        merged = copy.deepcopy(self.second[0])
        merged.weight.copy_(weight)
        merged.bias = nn.Parameter(bias.clone())
        self.first = merged
        if start == "merged":
            conv, norm = self.second
            unfold_(conv, norm, weight, bias)


def unfold_(conv: nn.Conv2d, norm: Any, weight: Tensor, bias: Tensor) -> None:
    """Make ``conv`` and ``norm`` equal, in evaluation, to a convolution with this weight and bias.

    The norm keeps its gain, offset and variance, so that outputs in training mode keep their scale too.
    """
    gain = norm.weight
    gain.copy_(torch.where(gain.abs() < 1e-3, 1e-3, gain))  # a dead channel is revived
    scale = gain / (norm.running_var + norm.eps).sqrt()
    conv.weight.copy_(weight / scale[:, None, None, None])
    norm.running_mean.copy_((norm.bias - bias) / scale)


def spatial_pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Parent and names of every convolution larger than 1x1 and the norm after it, except the one that reads images."""
    for parent in module.modules():
        children = list(parent.named_children())
        for (name, conv), (next_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1 and conv.in_channels != 3 and is_norm(norm):
                yield parent, name, next_name


@dataclass(frozen=True)
class ParallelBranches:
    """At step 0, double the convolutions; later, merge the branches, so that the second one can learn again.

    At step 0 both branches have the pretrained weights. The ASPP has none: its branches are initialised separately.
    """

    start: Literal["kept", "merged"]

    def __call__(self, model: Any, step: Step) -> None:
        if step.index > 0:
            for branches in branches_of(model):
                branches.merge(self.start)
            return
        if any(isinstance(m, nn.GroupNorm) for m in model.modules()):
            raise UserError("RCIL folds norms into convolutions, GroupNorm cannot be folded: set another model.norm")
        if any(isinstance(m, nn.LayerNorm) or (is_norm(m) and hasattr(m, "act")) for m in model.encoder.modules()):
            raise UserError(
                "RCIL folds a BatchNorm without activation into the convolution before it; this encoder has LayerNorm "
                "or norms that activate: choose a ResNet, such as model.backbone=resnet101 or timm:resnet50"
            )
        for parent, conv, norm in list(spatial_pairs(model.encoder)):
            double(parent, conv, norm)
        for number, pair in enumerate(model.aspp.maps):
            branches = double(pair, "0", "1")
            with drawn_from(model.classifier.seed, f"RCIL, second branch of map {number}"), torch.no_grad():
                weight = branches.second[0].weight
                weight.copy_(torch.randn(weight.shape) * weight.std())


def double(parent: nn.Module, conv: str, norm: str) -> Branches:
    """Replace a convolution by ``Branches``, and its norm by the identity."""
    branches = Branches(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, conv, branches)
    setattr(parent, norm, nn.Identity())
    return branches


def branches_of(model: Any) -> list[Branches]:
    """All ``Branches``, in the order of the network."""
    return [m for m in model.modules() if isinstance(m, Branches)]


def freeze_merged(model: Any, step: Step) -> list[dict[str, Any]]:
    """Everything trains, except the merged branches at later steps."""
    frozen = {id(p) for b in branches_of(model) for p in b.first.parameters()} if step.index > 0 else set()
    return [{"params": [p for p in model.parameters() if id(p) not in frozen]}]


@dataclass(eq=False)
class BranchDraws(Term):
    """Random choice of branches for the next pass (F-RC). No loss. The choice is the same in every process."""

    uses_setup = False
    state = ("generator",)

    generator: Tensor | None = field(default=None, init=False)
    _branches: list[Branches] = field(default_factory=list, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        """The first draw of the step."""
        self._branches = branches_of(ctx.model)
        with drawn_from(ctx.seed, f"RCIL, draws of step {ctx.step.index}"):
            self.generator = torch.get_rng_state()
        self._draw()

    def __call__(self, batch: Batch) -> None:
        """After a pass, choose for the next one."""
        self._draw()

    def _draw(self) -> None:
        assert self.generator is not None  # set by begin_step
        generator = torch.Generator()
        generator.set_state(self.generator.cpu())
        sizes = [len(b.draw) for b in self._branches]
        draws = torch.rand(sum(sizes), generator=generator)
        self.generator = generator.get_state()
        places = [b.draw for b in self._branches]
        torch._foreach_copy_(places, sent(draws, places[0].device).split(sizes))  # one copy for all branches


# --- the distillation ----------------------------------------------------------------------------------------------

WINDOWS = (4, 8, 12, 16, 20, 24)


def spatial_norms(difference: Tensor) -> Tensor:
    """(B,): mean over window sizes of the norm of the pooled map (B, D, h, w); padding counts (F-PCKD, L_sp).

    Pooled maps are computed again for the gradient. Otherwise six of them would be stored for every map.
    """
    norms = [checkpoint(_pooled_norm, difference, k, use_reentrant=False, preserve_rng_state=False) for k in WINDOWS]
    return torch.stack(norms).mean(0)


def _pooled_norm(difference: Tensor, k: int) -> Tensor:
    """(B,): norm of the k x k averages, stride 1, of the map padded by k / 2 zeros on each side."""
    columns = F.avg_pool2d(difference, (k, 1), stride=1, padding=(k // 2, 0))
    return torch.linalg.vector_norm(F.avg_pool2d(columns, (1, k), stride=1, padding=(0, k // 2)), dim=(1, 2, 3))


def channel_norms(difference: Tensor) -> Tensor:
    """(B,): norm of the means over three neighbouring channels; padding counts (F-PCKD, L_ch)."""
    x = F.pad(difference, (0, 0, 0, 0, 1, 1))
    means: Tensor = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3
    return torch.linalg.vector_norm(means, dim=(1, 2, 3))


def pooled_cube(
    old: Sequence[Tensor], new: Sequence[Tensor], n_old: int, n_new: int, *, factor: float, last: float
) -> tuple[Tensor, Tensor]:
    """L_sp and L_ch, one value for each image, (B,) (F-PCKD).

    ``old`` and ``new``: maps (B, D_l, h_l, w_l). The last ones are logits; their new channels are added to background.
    """
    new = [*new[:-1], fold_new_into_background(new[-1], n_old)]
    differences = [a.detach() ** 2 - b**2 for a, b in zip(old, new, strict=True)]

    def average(norms: list[Tensor]) -> Tensor:
        factors = [factor] * (len(norms) - 1) + [last]
        weighted = torch.stack([f * n for f, n in zip(factors, norms, strict=True)])
        return sqrt((n_old + n_new) / n_new) * weighted.mean(0)

    return average([spatial_norms(d) for d in differences]), average([channel_norms(d) for d in differences[:-1]])


@dataclass(eq=False)
class PooledCube(Term):
    """F-PCKD of the four stages, the embedding and the logits; mean over images.

    ``last``: weight of the last map of each list, the logits pooled in space and the embedding pooled over channels.
    """

    uses_old = True
    uses_setup = False

    factor: float = 0.01
    last: float = 0.0005

    def __call__(self, batch: Batch) -> Tensor:
        old, new = ([full_precision(a) for a in maps(out)] for out in (batch.old, batch.out))
        spatial, channel = pooled_cube(old, new, batch.step.n_old, batch.step.n_new, factor=self.factor, last=self.last)
        total = (spatial + channel).sum()
        return batch.reduce(total) / batch.reduce(total.new_full((), len(spatial)))


def maps(out: Any) -> list[Tensor]:
    """The distilled maps: stages after activation, embedding, logits at the network's resolution."""
    return [*(F.relu(stage) for stage in out.stages), out.embedding, out.logits]


@register_method("RCIL", paper="Zhang et al., CVPR 2022, arXiv 2203.05402")
def rcil(
    kd: Annotated[Weight, Search(10, 1000)] = 100.0,
    factor: Annotated[Weight, Search(0.001, 0.1)] = 0.01,
    last: Annotated[Weight, Search(0.00005, 0.005)] = 0.0005,
    start: Literal["kept", "merged"] = "kept",
) -> Method:
    """MiB with two parallel branches, merged after each step, and pooled cube distillation.

    kd: weight of the unbiased distillation; 100 as released (argparser.py:49-59)
    factor: of each map's pooled difference; 0.01 for VOC, 5e-6 for ADE as released (train.py:20-130)
    last: the same for the last map of each list; 0.0005 for VOC, 5e-7 for ADE as released (train.py:20-130)
    start: of the second branch at a new step; as released it is kept, merged makes the student equal the teacher
    """
    draws = BranchDraws()
    terms: dict[str, Term] = {
        "draws": draws,
        "unce": UnbiasedCrossEntropy(),
        "unkd": UnbiasedDistillation(weight=kd),
        "pckd": PooledCube(factor, last),
    }
    return Method(
        "RCIL",
        terms=terms,
        first={"draws": draws, "ce": CrossEntropy()},
        init=background_shares,
        build=ParallelBranches(start),
        trainable=freeze_merged,
    )
