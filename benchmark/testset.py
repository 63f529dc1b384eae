"""Which pictures score a step: the test set, or for tuning the held-out fifth of the training pictures seen so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmark.plan import Plan, StepNode
from datasets.pictures_of_step import StepPictures
from datasets.transforms import EvalTransform
from datasets.view import StepView, seen, step_view, val_view


def test_set(plan: Plan, node: StepNode) -> tuple[StepPictures, Tensor]:
    """The pictures that score a step, with raw labels, and which of them hold a seen class (N,) bool."""
    config, dataset = plan.config, plan.datasets[node.scenario.dataset]
    crop = config.eval.crop or config.train.crop
    transform = EvalTransform((crop[0], crop[-1]) if plan.protocol.eval_view == "crop" else None)
    if config.eval.split == "val":
        return StepPictures(dataset, val_view(dataset), transform), torch.from_numpy(seen(dataset, node.step))
    ids: set[str] = set()
    for t in range(node.index + 1):
        ids.update(step_view(dataset, node.scenario, t, plan.protocol.void_in_training, "tune").ids)
    every = dataset.ids("train")
    chosen = np.array([i in ids for i in every])
    view = StepView(tuple(i for i in every if i in ids), np.arange(256, dtype=np.uint8), "", "train")
    return StepPictures(dataset, view, transform), torch.from_numpy(seen(dataset, node.step, "train")[chosen])
