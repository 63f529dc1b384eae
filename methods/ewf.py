"""EWF: endpoints weight fusion (Xiao et al., CVPR 2023, arXiv 2305.06071).

After each step the network is averaged with the previous one. The weight depends only on the numbers of classes. There
is no loss. An add-on for any method (``MiB+EWF``, ``PLOP+EWF``) but PI and RW, which read how far the updates moved the
weights. Source: F-EWF of docs/methods.md, equal to the released code (``EWF_official@560382d``, ``run.py:511-545``,
``train.py:334``). Its option ``threshold_choice``, which is not in the paper, is left out.

Note for MiB's initialisation: it lowers the background bias by log(N + 1). The bias is then frozen and fused, so at the
end it is only alpha log(N + 1) lower, while the new rows were trained against the full shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from contseg.datasets.scenario import Step
from contseg.methods.base import Method, StepContext, later
from contseg.methods.registry import register_addon


def fusion_weight(n_old: int, n_new: int) -> float:
    """The new state's share, alpha = sqrt(N / (O + N)); O counts the background (F-EWF)."""
    return sqrt(n_new / (n_old + n_new))


@torch.no_grad()
def fuse_(state: Mapping[str, Tensor], old_state: Mapping[str, Tensor], alpha: float) -> None:
    """theta <- (1 - alpha) theta_old + alpha theta, in place, for every floating tensor of the previous state (F-EWF).

    These include running statistics and old classifier rows. The tensors of new classes do not change.
    """
    for name, old in old_state.items():
        if old.is_floating_point():
            state[name].lerp_(old.to(state[name]), 1 - alpha)


@later
def fuse_with_previous(ctx: StepContext) -> None:
    """Fuse the trained network with the previous one, which is already a fused network."""
    assert ctx.old_model is not None
    fuse_(ctx.model.state_dict(), ctx.old_model.state_dict(), fusion_weight(ctx.step.n_old, ctx.step.n_new))


fuse_with_previous.moves_weights = True  # type: ignore[attr-defined]


@later
def freeze_old_rows(model: Any, step: Step) -> list[dict[str, Any]]:
    """Everything trains except the classifier rows of earlier steps, including the background row."""
    frozen = {id(p) for block in list(model.classifier.blocks)[: step.index] for p in block.parameters()}
    return [{"params": [p for p in model.parameters() if id(p) not in frozen]}]


@register_addon("EWF", paper="Xiao et al., CVPR 2023, arXiv 2305.06071")
def ewf() -> Method:
    """Endpoints weight fusion: average with the previous network after every step."""
    return Method("EWF", terms={}, first={}, trainable=freeze_old_rows, end_step=(fuse_with_previous,))
