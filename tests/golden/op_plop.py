"""PLOP: local POD and entropy pseudo-labels."""

from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch import Tensor

from contseg.methods.base import Batch, SegOutput, StepContext
from contseg.methods.plop import LocalPod, PseudoLabelCrossEntropy, windows
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


@operation("plop_local_pod")
def local_pod(fixture: Fixture) -> None:
    layers = range(fixture["cfg_n_layers"])
    new = [fixture.leaf(f"in_new_{k}") for k in layers]
    old = [fixture.tensor(f"in_old_{k}") for k in layers]
    logits, old_logits = fixture.leaf("in_logits_new"), fixture.tensor("in_logits_old")
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])

    def pod(term: LocalPod) -> Tensor:
        out, before = (
            SegOutput(z, maps[-1], maps[-1], tuple(maps[:-1])) for z, maps in ((logits, new), (old_logits, old))
        )
        labels = torch.zeros(len(logits), 4, 4, dtype=torch.int64)
        return term(Batch(labels[:, None].expand(-1, 3, -1, -1), labels, out, before, step))

    value = pod(LocalPod())
    fixture.check("released_pod", value)
    for k in layers:
        fixture.check_gradient(f"released_grad_new_{k}", value, new[k])
    fixture.check_gradient("released_grad_logits_new", value, logits)

    # a term for each map: the others given equal to the old ones, which is a distance of zero
    def alone(k: int) -> Tensor:
        nonlocal new, logits
        kept, kept_logits = new, logits
        zeros = torch.zeros_like(logits[:, step.n_old :])
        new = [x if j == k else y for j, (x, y) in enumerate(zip(kept, old, strict=True))]
        logits = logits if k == len(old) else torch.cat([old_logits, zeros], 1)
        term = pod(LocalPod())
        new, logits = kept, kept_logits
        return term

    fixture.check("paper_terms", torch.stack([alone(k) for k in range(len(old) + 1)]))
    if "released_embedding_old0" in fixture:
        fixture.check("released_embedding_old0", embedding(old[0]))


def embedding(x: Tensor) -> Tensor:
    """The entries of Phi(x), window by window as the release orders them: means of rows, then of columns."""
    n = x.shape[-1]
    average, inside = windows(n, (1, 2, 4), x.dtype, x.device)
    rows, columns = x @ average.T * inside.T, (average @ x) * inside
    parts, k = [], 0
    for scale in (1, 2, 4):
        side = n // scale
        for i in range(scale):
            for j in range(scale):
                parts.append(rows[:, :, i * side : (i + 1) * side, k + j].flatten(1))
                parts.append(columns[:, :, k + i, j * side : (j + 1) * side].flatten(1))
        k += scale
    return torch.cat(parts, 1)


class Replay(torch.nn.Module):
    """A previous model that answers the number of a batch with its stored logits."""

    def __init__(self, logits: list[Tensor]) -> None:
        super().__init__()
        self.logits = torch.nn.ParameterList(logits)

    def forward(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[number])


@operation("plop_pseudo")
def pseudo_labels(fixture: Fixture) -> None:
    numbers = range(fixture["cfg_n_batches"])
    old = [fixture.tensor(f"in_logits_old_{k}") for k in numbers]
    labels = [fixture.tensor(f"in_labels_{k}") for k in numbers]
    step = make_step(fixture["cfg_old_classes"], fixture["cfg_new_classes"])

    def loader() -> Iterable[tuple[int, Tensor]]:
        return zip(numbers, labels, strict=True)

    for key, term in (
        ("paper", PseudoLabelCrossEntropy()),
        ("released", PseudoLabelCrossEntropy("released")),
    ):
        term.begin_step(StepContext(step, None, Replay(old), loader))
        thresholds = term.thresholds
        if key == "paper":
            fixture.check("paper_median", thresholds)
        else:
            floor = thresholds.new_full((step.n_new,), fixture["cfg_base_threshold"])
            fixture.check("released_thresholds", torch.cat([thresholds, floor]))
            fixture.check("released_max_entropy", torch.tensor(step.n_classes, dtype=fixture.dtype).log())
        for k in numbers:
            z = fixture.leaf(f"in_logits_new_{k}")
            batch = make_batch(fixture, step, labels[k], z, old[k])
            if key == "paper" and not fixture.resolves(fixture[f"paper_margin_{k}"]):
                for what in ("labels", "factor", "loss", "loss_grad", "margin"):
                    fixture.excuse(f"paper_{what}_{k}", "an entropy that is as good as its threshold")
                continue
            completed, factor = term.complete(batch)
            fixture.check(f"{key}_labels_{k}", completed.to(torch.uint8))
            fixture.check(f"{key}_factor_{k}", factor)
            value = term(batch)
            fixture.check(f"{key}_loss_{k}", value)
            fixture.check_gradient(f"{key}_loss_grad_{k}", value, z)
            if key == "paper" and fixture.dtype == torch.float32:
                fixture.excuse(f"paper_margin_{k}", "a difference of near equals")
            elif key == "paper":
                background = labels[k] == 0
                margin = term.uncertainty(batch.old_logits, step.n_classes) - thresholds[batch.old_logits.argmax(1)]
                fixture.check(f"paper_margin_{k}", margin[background].abs().min())
