"""The images that score a step: the test set or, for tuning, a held-out fifth of the training images seen so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from contseg.benchmark.plan.build import Plan
from contseg.benchmark.train.evaluate import Domains
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.domains import images_for
from contseg.datasets.scenario import Scenario
from contseg.datasets.step_dataset import StepImages
from contseg.datasets.transforms import EvalTransform, Size
from contseg.datasets.view import scored_view, seen


def test_set(plan: Plan, scenario: Scenario, index: int) -> tuple[StepImages, Tensor, Domains | None]:
    """The images that score step ``index`` of a run. Runs that share a training may have different held-out images."""
    config = plan.config
    crop = config.eval.crop or config.train.crop
    size = (crop[0], crop[-1]) if plan.protocol.eval_view == "crop" else None
    return images_of(plan.datasets[scenario.dataset], scenario, index, size, config.eval.split)


def images_of(
    dataset: SegmentationDataset, scenario: Scenario, index: int, size: Size | None, split: str = "val"
) -> tuple[StepImages, Tensor, Domains | None]:
    """The images that score a step, with raw labels; (N,) bool: which of them hold a class seen so far; their domains.

    ``size`` is that of the centre crop; ``None`` is full resolution. ``split``: "val", or "tune" for held-out images.
    """
    dataset = images_for(dataset, scenario)
    view = scored_view(dataset, scenario, index, split)
    known = seen(dataset, scenario.steps[index], view.split)[np.isin(dataset.ids(view.split), view.ids)]
    domains = None
    if scenario.domains:
        names = sum(scenario.domains[: index + 1], ())
        domains = Domains(names, torch.tensor([names.index(dataset.domain_of(i)) for i in view.ids]))
    return StepImages(dataset, view, EvalTransform(size)), torch.from_numpy(known), domains
