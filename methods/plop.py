"""PLOP: learning without forgetting. Douillard et al., CVPR 2021, arXiv 2011.11390.

Local POD distils the statistics of every stage over windows of several sizes. Background pixels get the prediction of
the previous model as their label, where that model is certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from contseg.datasets.scenario import BACKGROUND, VOID
from contseg.methods.base import Batch, CrossEntropy, Method, Reduce, StepContext, Term, alone, full_precision, resize
from contseg.methods.losses import at_once
from contseg.methods.mib import background_shares
from contseg.methods.ranges import Search, Weight
from contseg.methods.registry import register_method

Formulation: TypeAlias = Literal["intended", "released"]
Pass: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]
DIGIT = 15

# --- local POD -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class LocalPod(Term):
    """Distance between the window statistics of the two models (PLOP eq. 5-6, F-POD).

    1/L sum_l lambda_l sqrt((O + N) / N) 1/B sum_b |Phi(old_l^2) - Phi(new_l^2)|_2 over the encoder's stages, the
    embedding before the classifier, and the logits at their own size, whose new channels are added to background.
    The release needs square maps; here the windows have the proportions of the map. Where no class is new, all count as
    new, as released: the factor is 1.
    """

    uses_old = True
    uses_setup = False
    maps: float = 0.01  # lambda of stages and embedding: run.py of PLOP
    logits: float = 0.0005  # lambda of the logits: run.py of PLOP
    scales: tuple[int, ...] = (1, 2, 4)  # windows a side: run.py of PLOP

    def __call__(self, batch: Batch) -> Tensor:
        out, old, step = batch.out, batch.old, batch.step
        pairs = [*zip(old.stages, out.stages, strict=True), (old.embedding, out.embedding)]
        distances = [self.maps * local_pod(a, b, self.scales).sum() for a, b in pairs]
        folded = fold_new_into_background(full_precision(out.logits), step.n_old)
        distances.append(self.logits * local_pod(old.logits, folded, self.scales).sum())
        growth = math.sqrt(step.n_classes / (step.n_new or step.n_classes))
        total = growth / len(distances) * torch.stack(distances).sum()
        return batch.reduce(total) / batch.reduce(total.new_full((), len(batch.labels)))


def fold_new_into_background(logits: Tensor, n_old: int) -> Tensor:
    """(B, C, h, w) -> (B, O, h, w): the logits of new classes are added to that of background."""
    background = logits[:, :1] + logits[:, n_old:].sum(1, keepdim=True)
    return torch.cat([background, logits[:, 1:n_old]], 1)


def local_pod(old: Tensor, new: Tensor, scales: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    r"""Maps (B, D, h, w) -> (B,): |Phi(old^2) - Phi(new^2)|_2. No gradient to ``old``, zero gradient at distance 0.

    Phi of a map: for every scale s, in each of the s x s windows of size floor(h/s) x floor(w/s), the mean of every row
    and of every column. Phi is linear, and the mean of a row does not depend on the height of its window. With the
    averaging matrices P_h (K, h) and P_w (K, w), K = sum s, and d = old^2 - new^2, the difference Phi(old^2) -
    Phi(new^2) has those entries of d P_w^T and of P_h d that are inside a window.
    """
    with torch.autocast(new.device.type, enabled=False):
        distance: Tensor = _LocalPod.apply(old.detach(), new, scales)
    return distance


class _LocalPod(torch.autograd.Function):
    """Tile by tile: only the gradient is as large as the maps."""

    @staticmethod
    def forward(ctx: Any, old: Tensor, new: Tensor, scales: tuple[int, ...]) -> Tensor:
        h, w = new.shape[-2:]
        a, b = old.flatten(0, 1), new.flatten(0, 1)
        dtype = full_precision(b[:0]).dtype
        (ph, inside_h), (pw, inside_w) = (windows(n, scales, dtype, new.device) for n in (h, w))
        rows, columns = b.new_empty(len(b), len(pw), h, dtype=dtype), b.new_empty(len(b), len(ph), w, dtype=dtype)
        for i in _tiles(b):
            x, y = full_precision(a[i]), full_precision(b[i])
            d = (x - y).mul_(x + y)
            torch.bmm(pw.expand(len(d), *pw.shape), d.transpose(1, 2), out=rows[i])
            torch.bmm(ph.expand(len(d), *ph.shape), d, out=columns[i])
        rows *= inside_h
        columns *= inside_w
        norms = (x.view(len(new), -1).norm(dim=1) for x in (rows, columns))
        distance = torch.hypot(*norms)
        ctx.save_for_backward(new, rows, columns, ph, pw, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        new, rows, columns, ph, pw, distance = ctx.saved_tensors
        scale = torch.where(distance > 0, -2 * grad / distance, 0).repeat_interleave(new.shape[1])[:, None, None]
        b = new.flatten(0, 1)
        out, product = torch.empty_like(b), torch.empty_like(b[next(_tiles(b))], dtype=rows.dtype)
        for i in _tiles(b):
            n = len(b[i])
            # rows^T P_w + P_h^T columns, as one product
            left = torch.cat([rows[i] * scale[i], ph.expand(n, *ph.shape)], 1)
            right = torch.cat([pw.expand(n, *pw.shape), columns[i] * scale[i]], 1)
            torch.mul(torch.bmm(left.transpose(1, 2), right, out=product[:n]), b[i], out=out[i])
        return None, out.view_as(new), None


def _tiles(planes: Tensor) -> Iterator[slice]:
    """Cut planes (P, h, w) into pieces."""
    size = at_once(planes.shape[1] * planes.shape[2], planes.device, 2**19)
    for i in range(0, len(planes), size):
        yield slice(i, i + size)


@cache
def windows(n: int, scales: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(K, n) averages over the windows along a side of length n, and (K, n) 1 where a window of that scale is.

    A scale s has s windows of length floor(n/s), from 0 on; K = sum of scales. A window of length 0 averages nothing.
    """
    scale = torch.tensor([s for s in scales for _ in range(s)])[:, None]
    window = torch.tensor([j for s in scales for j in range(s)])[:, None]
    length, position = n // scale, torch.arange(n)
    inside = position < scale * length
    average = (inside & (position // length.clamp(min=1) == window)) / length.clamp(min=1).to(torch.float64)
    return average.to(device, dtype), inside.to(device, dtype)


# --- pseudo-labels -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PseudoLabelCrossEntropy(Term):
    """Cross entropy on labels completed by the previous model (PLOP eq. 7-9, F-PL).

    A background pixel gets the prediction c of the previous model if its entropy is below tau_c, the median of these
    entropies over the step's images. Otherwise it is left out. The weight of an image is nu_b, the share of its
    background pixels that got a label. A mean over all pixels, as in the paper.

    ``formulation="released"``: the release divides the entropy by O log O and again by log(O + N), so only 2 % of the
    range of the 100 bins is used. It adds bin numbers instead of counts. It overwrites the old labels of the sequential
    setup.

    Where no class is new, labels are complete: plain cross entropy, as in the scripts of the release for domains.
    """

    uses_old = True
    uses_setup = False
    weighable = True
    counts_void: ClassVar[bool] = True
    state = ("thresholds",)
    formulation: Formulation = "intended"
    thresholds: Tensor | None = field(default=None, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        if not ctx.step.n_new:
            return
        old_model: Any = ctx.old_model

        def background() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in ctx.loader():
                with torch.no_grad():
                    z = resize(full_precision(old_model(images).logits), (labels.shape[1], labels.shape[2]))
                    chosen = labels == BACKGROUND
                    yield self.uncertainty(z, ctx.step.n_classes)[chosen], z.argmax(1)[chosen]

        find = histogram_medians if self.formulation == "released" else exact_medians
        like = full_precision(next(old_model.parameters()).detach())
        self.thresholds = find(background, ctx.step.n_old, like, ctx.reduce)

    def __call__(self, batch: Batch) -> Tensor:
        if not batch.step.n_new:
            return CrossEntropy()(batch)
        labels, factor = self.complete(batch)
        pixels = F.cross_entropy(batch.logits, labels, ignore_index=VOID, reduction="none")
        if batch.pixel_weight is not None:
            pixels = pixels * batch.pixel_weight(labels, batch.old_logits)
        return batch.reduce((factor * pixels.sum((1, 2))).sum()) / batch.n_pixels

    def complete(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labels (B, H, W) with the previous model's predictions where it is certain, and the factors nu (B,)."""
        assert self.thresholds is not None, "begin_step comes first"
        old, labels = batch.old_logits, batch.labels
        unlabelled = labels < batch.step.n_old if self.formulation == "released" else labels == BACKGROUND
        prediction = old.max(1).indices
        sure = unlabelled & (self.uncertainty(old, batch.step.n_classes) < self.thresholds[prediction])
        kept, asked = (mask.sum((1, 2)).to(old.dtype) for mask in (sure, unlabelled))
        return torch.where(sure, prediction, torch.where(unlabelled, VOID, labels)), kept / (asked + 1e-6)

    def uncertainty(self, old_logits: Tensor, n_classes: int) -> Tensor:
        """(B, O, H, W) -> (B, H, W): entropy of the softmax, 1 if uniform."""
        q, n_old = old_logits.softmax(1), old_logits.shape[1]
        if self.formulation == "intended":
            return torch.special.entr(q).sum(1).abs() / math.log(n_old)
        return -(q * (q + 1e-8).log()).mean(1) / (math.log(n_old) * math.log(n_classes))


def exact_medians(values: Pass, n_classes: int, like: Tensor, reduce: Reduce = alone) -> Tensor:
    """(C,): the median of the values of each class, NaN if it has none; the mean of the middle two if n is even.

    ``values()`` is a pass over chunks of values (P,) in [0, 2) and their classes (P,), the same at every call, with the
    dtype of ``like``. Selection by digits: the bits of such floats sort like integers. Each pass counts the next
    ``DIGIT`` bits of those values that have the bits found so far. Two passes are enough for float32. Memory: the
    counts (2, C, 2^DIGIT), for any number of values. Counts are summed over processes.
    """
    integer, bits = {torch.float32: (torch.int32, 30), torch.float64: (torch.int64, 62)}[like.dtype]
    # for the lower and the upper middle value: the bits found, and its rank among the values with these bits
    found, before = (torch.zeros(2, n_classes, dtype=torch.int64, device=like.device) for _ in range(2))
    n: Tensor | None = None
    for shift in range((bits - 1) // DIGIT * DIGIT, -1, -DIGIT):
        counts = torch.zeros(2, n_classes << DIGIT, dtype=torch.int64, device=like.device)
        for chunk, classes in values():
            key = chunk.contiguous().view(integer).long() >> shift
            for half in (0, 1):
                shares = key >> DIGIT == found[half, classes]
                place = (classes << DIGIT | key & (1 << DIGIT) - 1)[shares]
                counts[half].scatter_add_(0, place, torch.ones_like(place))
        counts = reduce(counts).view(2, n_classes, -1)
        if n is None:
            n = counts[0].sum(1)
            before = torch.stack([(n - 1) // 2, n // 2])
        upto = counts.cumsum(2)
        digit = (upto <= before[..., None]).sum(2, keepdim=True).clamp(max=(1 << DIGIT) - 1)
        before = before - (upto - counts).gather(2, digit)[..., 0]
        found = found << DIGIT | digit[..., 0]
    assert n is not None
    return torch.where(n > 0, found.to(integer).view(like.dtype).mean(0), torch.nan)


def histogram_medians(
    values: Pass, n_classes: int, like: Tensor, reduce: Reduce = alone, *, bins: int = 100, floor: float = 0.001
) -> Tensor:
    """(C,): the "medians" of the release, from a histogram over [0, 1] whose running sum adds bin numbers."""
    counts = torch.zeros(n_classes * bins, dtype=torch.int64, device=like.device)
    for chunk, classes in values():
        place = classes * bins + (chunk * bins).long().clamp(max=bins - 1)
        counts.scatter_add_(0, place, torch.ones_like(place))
    counts = reduce(counts).view(n_classes, bins)
    bin_ = torch.arange(bins, device=like.device)
    running = bin_ * (bin_ - 1) / 2
    half = counts.sum(1, keepdim=True) / 2
    hit = (running <= half) & (half <= running + counts)
    # no hit: the last bin, with the sum over all bins
    missed = ~hit.any(1, keepdim=True)
    at = torch.where(missed, bins - 1, hit.int().argmax(1, keepdim=True))
    passed = torch.where(missed, bins * (bins - 1) / 2, running[at])
    median = (at + (half - passed) / counts.gather(1, at)) / bins
    return torch.where(half > 0, median, 0)[:, 0].to(like.dtype).clamp(min=floor)


@register_method("PLOP", paper="Douillard et al., CVPR 2021, arXiv 2011.11390")
def plop(
    pod: Annotated[Weight, Search(0.001, 0.1)] = 0.01,
    pod_logits: Annotated[Weight, Search(0.00005, 0.005)] = 0.0005,
    formulation: Formulation = "intended",
) -> Method:
    """Local POD distillation, pseudo-labels for background, and MiB's initialisation.

    pod: factor of the encoder's stages and the embedding; 0.01 in the authors' release (ADE20K scripts: 0.001)
    pod_logits: factor of the logits; 0.0005 in the authors' release (ADE20K scripts: 0.00001)
    formulation: released has the thresholds of the authors' release, whose median search is faulty
    """
    terms: dict[str, Term] = {
        "pseudo": PseudoLabelCrossEntropy(formulation),
        "pod": LocalPod(maps=pod, logits=pod_logits),
    }
    return Method("PLOP", terms=terms, init=background_shares, domains=True)
