"""DFT*: after step 0 only the rows of new classes learn. Zhang et al., "Revisiting Continual Semantic Segmentation with
Pre-trained Vision Models", 2025, arXiv 2508.04267.

Step 0 is fine-tuning. Later the encoder, ASPP and all old rows stay as they are, background's row included; the new
rows learn by plain cross entropy, without distillation, from rows as torch draws them. Nothing else is needed against
forgetting, since an old score never changes; but background's score does not fall at pixels of new classes either.

Reserved rows: the release builds the rows of all later classes at step 0. They take part in the softmax of every step,
and learn to say no until their own step comes (F-DFT). ``reserve`` is their number: how many classes are still to come,
which a learner does not know. ``reserve=0`` has none of them; the release's history calls that form FixBC.

Source: F-DFT of docs/methods.md, from ``RevisitingCSS@4610e3b``; the printed equations were not read. Differs from the
release in the mean, which is over valid pixels (there: over all), and in predictions, which are classes already seen
(there a pixel may be given a class of the future before the last step). The release keeps normalisation in evaluation
mode at step 0 as well: ``model.norm=frozen``. It tunes the later learning rate task by task, within 0.0005 to 0.02 on
VOC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Scenario, Step
from contseg.methods.base import Batch, CrossEntropy, Method, Term, full_precision, later, resize
from contseg.methods.fit import PARTS, freezes
from contseg.methods.losses import cross_entropy_sum
from contseg.methods.modules import beside, drawn_from
from contseg.methods.ranges import Number
from contseg.methods.registry import register_method

# --- reserved rows -------------------------------------------------------------------------------------------------


class ReservedRows(nn.Conv2d):
    """Embedding (B, E, h, w) -> logits (B, rows not used yet, h, w) of classes still to come.

    Weight and bias keep their size for all steps; the first ``used`` rows already belong to blocks of the classifier.
    """

    used = 0

    def forward(self, embedding: Tensor) -> Tensor:
        if self.used == self.out_channels:
            return embedding.new_zeros(len(embedding), 0, *embedding.shape[2:])
        return F.conv2d(embedding, self.weight[self.used :], self.bias[self.used :])  # type: ignore[index]


@dataclass(frozen=True)
class EnoughRows:
    """The scenario as asked for. ``UserError`` if it has more classes after step 0 than rows are reserved."""

    external: ClassVar[tuple[str, ...]] = ("n_classes",)
    same_steps: ClassVar[bool] = True
    reserve: int

    def __call__(self, scenario: Scenario) -> Scenario:
        coming = sum(step.n_new for step in scenario.steps[1:])
        if coming > self.reserve:
            raise UserError(
                f"DFTStar[reserve={self.reserve}]: {scenario.name} has {coming} classes after step 0; "
                f"write reserve={coming}, or 0 for no reserved rows"
            )
        return scenario


@dataclass(frozen=True)
class Reserve:
    """Add the reserved rows at step 0; later, note how many of them the classifier's blocks have taken."""

    reserve: int

    def __call__(self, model: Any, step: Step) -> None:
        first, *taken = model.classifier.blocks
        if step.index == 0:
            with drawn_from(model.classifier.seed, "DFT* reserved rows"):
                rows = ReservedRows(first.in_channels, self.reserve, 1)
            model.heads["reserve"] = beside(rows, model)
        model.heads["reserve"].used = sum(block.out_channels for block in taken)


def start_from_reserve(model: Any, step: Step) -> None:
    """The new rows are the next reserved ones, as they were trained so far."""
    rows, new = model.heads["reserve"], model.classifier.blocks[-1]
    own = slice(rows.used - new.out_channels, rows.used)
    with torch.no_grad():
        new.weight.copy_(rows.weight[own])
        new.bias.copy_(rows.bias[own])


@later
@freezes(*PARTS)
def train_rows_to_come(model: Any, step: Step) -> list[dict[str, Any]]:
    """The newest block, and the reserved rows if some are left."""
    modules = [model.classifier.blocks[-1]]
    if "reserve" in model.heads and model.heads["reserve"].used < model.heads["reserve"].out_channels:
        modules.append(model.heads["reserve"])
    return [{"params": [p for m in modules for p in m.parameters()]}]


# --- the loss ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ReservedCrossEntropy(Term):
    """F-DFT: mean cross entropy over the valid pixels, where reserved rows take part in the softmax."""

    uses_setup = False

    def __call__(self, batch: Batch) -> Tensor:
        rows = torch.cat([full_precision(batch.out.logits), full_precision(batch.out.extra["reserve"])], 1)
        logits = resize(rows, (batch.labels.shape[-2], batch.labels.shape[-1]))
        total = cross_entropy_sum(logits, batch.labels)
        return batch.reduce(total) / batch.reduce(batch.valid.sum().to(total.dtype)).clamp(min=1)


@register_method("DFTStar", paper="Zhang et al., 2025, arXiv 2508.04267")
def dft_star(reserve: Number = 0) -> Method:
    """After step 0 only new rows learn, by cross entropy: encoder, ASPP and all old rows are frozen.

    reserve: rows built at step 0 for classes still to come; the release has one for each, on VOC 15-1 that is 5
    """
    if not reserve:
        return Method("DFTStar", terms={"ce": CrossEntropy()}, trainable=train_rows_to_come)
    loss = ReservedCrossEntropy()
    return Method(
        "DFTStar",
        terms={"ce": loss},
        first={"ce": loss},
        scenario=EnoughRows(reserve),
        build=Reserve(reserve),
        init=start_from_reserve,
        trainable=train_rows_to_come,
    )
