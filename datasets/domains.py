"""Domain-incremental steps: a step brings images of new domains, such as cities, and no class.

Douillard et al., PLOP, CVPR 2021 (``dataset/cityscapes_domain.py`` of the release; RCIL, NeST and SegACIL use the same
rule). Images are the indices 0..N-1 of the train files, paths ascending, followed by the val files, paths ascending:
all of them are split anew, four fifths for training. There are two setups.

``domain+plop``, as released: **most test images of the last step were trained on** (Cityscapes: 71 % in 11-5, 72 % in
11-1, 78 % in 1-1). They are drawn from all domains so far by a new shuffle, so they are not those that the earlier
steps held out. Step 0 and joint training are not concerned.

``domain``: a fifth of each domain is held out once, which is what the authors describe; no test image is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contseg.datasets.base import SPLITS, SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.index import Index
from contseg.datasets.scenario import RELEASED, Scenario

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class DomainStep:
    """Indices of images: ``train`` of the step's own domains, ``test`` of all domains so far."""

    train: np.ndarray
    test: np.ndarray


def as_released(domain_of: Sequence[str], groups: Sequence[Sequence[str]]) -> list[DomainStep]:
    """The steps of PLOP's code, whose test images were partly trained on. ``domain_of``: the domain of each image."""
    steps = []
    for t, group in enumerate(groups):
        train, _ = _split(domain_of, group)
        _, test = _split(domain_of, [domain for earlier in groups[: t + 1] for domain in earlier])
        steps.append(DomainStep(train, test))
    return steps


def by_domain(domain_of: Sequence[str], groups: Sequence[Sequence[str]]) -> list[DomainStep]:
    """Each domain is split alone, once: no test image is ever trained on. ``domain_of``: the domain of each image."""
    steps: list[DomainStep] = []
    for group in groups:
        trains, tests = zip(*(_split(domain_of, [domain]) for domain in group), strict=True)
        earlier = [steps[-1].test] if steps else []
        steps.append(DomainStep(np.concatenate(trains), np.concatenate([*earlier, *tests])))
    return steps


def _split(domain_of: Sequence[str], domains: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Four fifths and the rest of the images of these domains, in the order of the released shuffle."""
    wanted = set(domains)
    images = [i for i, domain in enumerate(domain_of) if domain in wanted]
    np.random.RandomState(1).shuffle(images)  # a list, as released
    n = int(0.8 * len(images))
    return np.array(images[:n], int), np.array(images[n:], int)


# --- the images of a scenario ---------------------------------------------------------------------------------------


class Pool(SegmentationDataset):
    """Both splits of a data set as one: its train ids, then its val ids, under either name."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        super().__init__(dataset.name, dataset.root, dataset.cache)
        self.dataset, self.class_names = dataset, dataset.class_names
        self.domains, self.has_background = dataset.domains, dataset.has_background
        self.value_to_label = dataset.value_to_label
        self._split_of = {i: split for split in SPLITS for i in dataset.ids(split)}
        self._ids = tuple(i for split in SPLITS for i in dataset.ids(split))
        if len(self._split_of) != len(self._ids):
            twice = next(i for i in dataset.ids("val") if i in set(dataset.ids("train")))
            raise UserError(f"data set {self.name!r}: id {twice!r} is in train and in val, which `domain` splits anew")

    def ids(self, split: str) -> tuple[str, ...]:
        return self._ids

    def domain_of(self, image_id: str) -> str:
        return self.dataset.domain_of(image_id)

    def files(self, image_id: str, split: str) -> tuple[Path, Path] | None:
        return self.dataset.files(image_id, self._split_of[image_id])

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        return self.dataset.load(image_id, self._split_of[image_id])

    def _index(self, split: str) -> Index:
        if not self._indices:
            parts = [self.dataset._index(s) for s in SPLITS]
            joined = (np.concatenate([getattr(p, name) for p in parts]) for name in ("present", "sizes", "prints"))
            self._indices = dict.fromkeys(SPLITS, Index(*joined))
        return self._indices[split]


@lru_cache(maxsize=8)
def _pool(dataset: SegmentationDataset) -> Pool:
    return Pool(dataset)


def images_for(dataset: SegmentationDataset, scenario: Scenario) -> SegmentationDataset:
    """The images that a scenario divides: the data set, or for a scenario by domain both of its splits as one."""
    return _pool(dataset) if scenario.domains and not isinstance(dataset, Pool) else dataset


def domain_step(dataset: SegmentationDataset, scenario: Scenario, index: int) -> DomainStep:
    """The images of step ``index`` of a scenario by domain, as indices into the ids of ``images_for``."""
    return _steps(images_for(dataset, scenario), scenario)[index]


@lru_cache(maxsize=8)
def _steps(pool: SegmentationDataset, scenario: Scenario) -> list[DomainStep]:
    divide = as_released if scenario.setup == RELEASED else by_domain
    return divide([pool.domain_of(i) for i in pool.ids("train")], scenario.domains)
