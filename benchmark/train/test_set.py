"""The images that score a step: the test set or, for tuning, a held-out fifth of the training images seen so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contseg.benchmark.plan.build import Plan
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import Scenario, Step
from contseg.datasets.step_dataset import StepImages
from contseg.datasets.transforms import EvalTransform, Size
from contseg.datasets.view import StepView, seen, tune_view, val_view


def test_set(plan: Plan, scenario: Scenario, index: int) -> tuple[StepImages, Tensor]:
    """The images that score step ``index`` of a run. Runs that share a training may have different held-out images."""
    config, dataset = plan.config, plan.datasets[scenario.dataset]
    crop = config.eval.crop or config.train.crop
    view = val_view(dataset) if config.eval.split == "val" else tune_view(dataset, scenario, index)
    size = (crop[0], crop[-1]) if plan.protocol.eval_view == "crop" else None
    return images_of(dataset, view, scenario.steps[index], size)


def images_of(dataset: SegmentationDataset, view: StepView, step: Step, size: Size | None) -> tuple[StepImages, Tensor]:
    """A view's images as they are scored, with raw labels; and (N,) bool: which of them hold a class seen so far.

    ``size`` is that of the centre crop; ``None`` is full resolution.
    """
    known = seen(dataset, step, view.split)[np.isin(dataset.ids(view.split), view.ids)]
    return StepImages(dataset, view, EvalTransform(size)), torch.from_numpy(known)
