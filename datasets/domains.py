"""Cityscapes by city: which images a step of a domain-incremental task trains on, and which test it.

A step brings new cities instead of new classes. Douillard et al., PLOP, CVPR 2021 (``dataset/cityscapes_domain.py`` of
the release; RCIL, NeST and SegACIL use the same rule). Images are the indices 0..N-1 of the train files, paths
ascending, followed by the val files, paths ascending: all of them are split anew, four fifths for training.

As released, **most test images of the last step were trained on** (71 % in 11-5, 72 % in 11-1, 78 % in 1-1): they are
drawn from all cities so far by a new shuffle, so they are not those that the earlier steps held out. Step 0 and joint
training are not concerned. ``by_city`` holds out a fifth of each city once, which is what the authors describe.

This is the rule alone: no scenario of ``contseg run`` uses it yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contseg.datasets.scenario import parse_scenario

# the order in which they are learned; images in both splits of the download
CITIES = {
    "aachen": 174, "bremen": 316, "darmstadt": 85, "erfurt": 109, "hanover": 196, "krefeld": 99, "strasbourg": 365,
    "tubingen": 144, "weimar": 142, "bochum": 96, "cologne": 154, "dusseldorf": 221, "hamburg": 248, "jena": 119,
    "monchengladbach": 94, "stuttgart": 196, "ulm": 95, "zurich": 122, "frankfurt": 267, "lindau": 59, "munster": 174,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DomainStep:
    """Indices of images: ``train`` of the step's own cities, ``test`` of all cities so far."""

    train: np.ndarray
    test: np.ndarray


def city_groups(task: str) -> tuple[tuple[str, ...], ...]:
    """The cities of every step of ``11-5``, ``11-1``, ``1-1`` or ``offline``, in the order of ``CITIES``.

    >>> [len(cities) for cities in city_groups("11-5")]
    [11, 5, 5]
    """
    names = tuple(CITIES)
    groups = parse_scenario(f"cityscapes/{task}/overlapped", len(names)).groups
    return tuple(tuple(names[label - 1] for label in group) for group in groups)


def as_released(city_of: Sequence[str], groups: Sequence[Sequence[str]]) -> list[DomainStep]:
    """The steps of PLOP's code, whose test images were partly trained on. ``city_of``: the city of each image."""
    steps = []
    for t, group in enumerate(groups):
        train, _ = _split(city_of, group)
        _, test = _split(city_of, [city for earlier in groups[: t + 1] for city in earlier])
        steps.append(DomainStep(train, test))
    return steps


def by_city(city_of: Sequence[str], groups: Sequence[Sequence[str]]) -> list[DomainStep]:
    """Each city is split alone, once: no test image is ever trained on. ``city_of``: the city of each image."""
    steps: list[DomainStep] = []
    for group in groups:
        trains, tests = zip(*(_split(city_of, [city]) for city in group), strict=True)
        earlier = [steps[-1].test] if steps else []
        steps.append(DomainStep(np.concatenate(trains), np.concatenate([*earlier, *tests])))
    return steps


def trained_on(steps: Sequence[DomainStep]) -> int:
    """How many test images of the last step some step trained on."""
    return int(np.isin(steps[-1].test, np.concatenate([step.train for step in steps])).sum())


def _split(city_of: Sequence[str], cities: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Four fifths and the rest of the images of these cities, in the order of the released shuffle."""
    wanted = set(cities)
    images = [i for i, city in enumerate(city_of) if city in wanted]
    np.random.RandomState(1).shuffle(images)  # a list, as released
    n = int(0.8 * len(images))
    return np.array(images[:n], int), np.array(images[n:], int)
