"""StepView: which images a step of a scenario sees, and which labels.

``N`` images. ``present`` (N, 256) bool says which raw labels occur in an image; a class is present if at least one
pixel has it; background and void are always allowed. For step t with new classes N_t and seen classes S_t:

| setup             | images                                        | label of an old class | of any other class |
|-------------------|-----------------------------------------------|-----------------------|--------------------|
| ``sequential``    | some class of N_t, none outside S_t           | kept                  | (absent)           |
| ``disjoint``      | the same images                               | background            | (absent)           |
| ``overlapped``    | some class of N_t                             | background            | background         |
| ``partitioned``   | every image with a class in exactly one step  | background            | background         |
| ``domain``        | of the step's domains (``domains.py``)        | kept                  | (absent)           |

These rules reproduce exactly the lists that MiB and SDR ship for VOC, and MiB and EWF for ADE20K.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.domains import domain_step, images_for
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import BACKGROUND, VOID, Scenario, Step, literature, parse_scenario

VOID_RULES = ("ignore", "background")
SPLITS = ("train", "tune-train", "tune")
HELD_OUT = 5  # one image in five is held out for tuning


class Stored(NamedTuple):
    """An image of an earlier step that is shown again: ``step`` is that one, ``table`` as in ``StepView``."""

    image_id: str
    step: int
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class StepView:
    """What one step sees: the ids of its images (ascending), their split, and the label table.

    ``table`` (256,) uint8: raw label -> channel, 0 background, 255 void. ``digest`` identifies what is seen:
    ids, content of the files, and the table restricted to labels that occur in these images. ``stored``: images of
    earlier steps in memory (``datasets.memory``), not among the ids.
    """

    ids: tuple[str, ...]
    table: np.ndarray
    digest: str
    split: str = "train"
    stored: tuple[Stored, ...] = ()

    @property
    def also_current(self) -> int:
        """How many stored images are among the step's own too; their labels may differ."""
        return len({s.image_id for s in self.stored}.intersection(self.ids))


def scenario_of(dataset: SegmentationDataset, text: str, seed: int = 0) -> Scenario:
    """``parse_scenario`` with the classes and domains of a data set."""
    return parse_scenario(text, dataset.n_foreground, seed, domains=dataset.domains, background=dataset.has_background)


def step_view(
    dataset: SegmentationDataset, scenario: Scenario, index: int, void: str = "background", split: str = "train"
) -> StepView:
    """The view of step ``index``.

    ``void``: 255 is ignored, or trained as background (MiB, SDR). ``split``: all training images of the step, those
    without the held-out fifth (``tune-train``), or only that fifth (``tune``). ``UserError`` if no image is left.
    """
    if void not in VOID_RULES or split not in SPLITS:
        raise ValueError(f"void {void!r} must be one of {VOID_RULES}, split {split!r} one of {SPLITS}")
    dataset = images_for(dataset, scenario)
    chosen = _chosen(dataset, scenario, index, split)
    return _view(dataset, "train", chosen, label_table(scenario.steps[index], void))


def _chosen(dataset: SegmentationDataset, scenario: Scenario, index: int, split: str) -> np.ndarray:
    """(N,) bool: the training images of a split that step ``index`` sees; ``UserError`` if there is none."""
    chosen = training_images(dataset, scenario, index)
    if split != "train":
        chosen = chosen & (held_out(dataset.ids("train")) == (split == "tune"))
    if not chosen.any():
        part = "" if split == "train" else f" (split {split})"
        raise UserError(
            f"{scenario.name}: step {index} has no training image{part} in setup {scenario.setup!r}; "
            "take another task or setup"
        )
    return chosen


def training_images(dataset: SegmentationDataset, scenario: Scenario, index: int) -> np.ndarray:
    """(N,) bool: all training images of step ``index``, perhaps none. ``dataset``: what ``images_for`` gives."""
    if scenario.lists:
        return listed(dataset, scenario, index)
    if scenario.domains:
        return _mask(domain_step(dataset, scenario, index).train, len(dataset.ids("train")))
    return selection(dataset.presence("train"), scenario, index)


def val_view(dataset: SegmentationDataset) -> StepView:
    """Every validation image with its raw labels."""
    return _view(dataset, "val", np.ones(len(dataset.ids("val")), bool), np.arange(256, dtype=np.uint8))


def scored_view(dataset: SegmentationDataset, scenario: Scenario, index: int, split: str = "val") -> StepView:
    """The images that score step ``index``: every validation image, or the test images of its domains so far.

    ``split="tune"``: held-out training images.
    """
    if split == "tune":
        return tune_view(dataset, scenario, index)
    if not scenario.domains:
        return val_view(dataset)
    pool = images_for(dataset, scenario)
    chosen = _mask(domain_step(pool, scenario, index).test, len(pool.ids("val")))
    return _view(pool, "val", chosen, np.arange(256, dtype=np.uint8))


def tune_view(dataset: SegmentationDataset, scenario: Scenario, index: int) -> StepView:
    """The held-out training images of steps 0..``index``, with their raw labels; used to score a step for tuning."""
    dataset = images_for(dataset, scenario)
    chosen = np.any([_chosen(dataset, scenario, t, "tune") for t in range(index + 1)], axis=0)
    return _view(dataset, "train", chosen, np.arange(256, dtype=np.uint8))


def seen(dataset: SegmentationDataset, step: Step, split: str = "val") -> np.ndarray:
    """(N,) bool: images with at least one foreground class learned so far."""
    return np.asarray(dataset.presence(split)[:, list(step.seen_classes)].any(1))


def listed(dataset: SegmentationDataset, scenario: Scenario, index: int) -> np.ndarray:
    """(N,) bool: the images of step ``index`` in imported lists."""
    ids, wanted = dataset.ids("train"), set(scenario.lists[index])
    foreign = sorted(wanted.difference(ids))
    if foreign:
        raise UserError(
            f"{scenario.name}: {foreign[0]} of step {index} is not a training image of {dataset.name}: take the data "
            "that the lists were made for, or make them anew with `data import-splits`"
        )
    return np.array([i in wanted for i in ids])


def selection(present: np.ndarray, scenario: Scenario, index: int) -> np.ndarray:
    """(N,) bool: the images of step ``index``, from present (N, 256)."""
    step = scenario.steps[index]
    if scenario.rule == "partitioned":
        return partition(present, scenario) == index
    chosen = np.asarray(present[:, list(step.new_classes)].any(1))
    if scenario.rule in ("sequential", "disjoint"):
        allowed = [BACKGROUND, *step.seen_classes, VOID]
        chosen &= ~np.delete(present, allowed, axis=1).any(1)
    return chosen


def label_table(step: Step, void: str) -> np.ndarray:
    """(256,) uint8: raw label -> channel; labels not taught at this step are background."""
    table = np.zeros(256, np.uint8)
    for channel, label in enumerate(step.seen_classes, start=1):
        if label in step.new_classes or step.keeps_labels:
            table[label] = channel
    table[VOID] = VOID if void == "ignore" else BACKGROUND
    if not step.background:
        table[[BACKGROUND, VOID]] = VOID
    return table


def _mask(indices: np.ndarray, n: int) -> np.ndarray:
    """(n,) bool: true at the indices."""
    mask = np.zeros(n, bool)
    mask[indices] = True
    return mask


def held_out(ids: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: the fifth held out for tuning, chosen by a hash of the id alone."""
    first = [hashlib.sha256(i.encode()).digest()[:4] for i in ids]
    return np.array([int.from_bytes(f, "big") % HELD_OUT == 0 for f in first])


def partition(present: np.ndarray, scenario: Scenario) -> np.ndarray:
    """(N,) int: the one step of every image; -1 for an image without a class of the scenario.

    The rule of MiB's ADE20K lists (Cermelli et al., CVPR 2020), derived from them: N_c images hold class c, of which
    a_c have been given to c's step so far. Images are visited in the order of first appearance when going through the
    images of class 1, 2, ...; an image goes to the step of its class with the highest

        120 (1 - a_c / N_c) + sum of N_k over its classes k / N_c

    (the lowest label on ties). Released lists of some tasks are those of a finer one, merged (``orders.toml``).
    """
    finer = _finer(scenario)
    steps = _partition(np.packbits(present, axis=1).tobytes(), finer.groups)
    ends, finer_ends = (np.cumsum([len(g) for g in s.groups]) for s in (scenario, finer))
    return np.where(steps < 0, -1, np.searchsorted(ends, finer_ends)[steps])


def _finer(scenario: Scenario) -> Scenario:
    finer = literature()["partition"].get(f"{scenario.dataset}/{scenario.task}")
    if finer is None:
        return scenario
    classes = sum(scenario.groups, ())
    sizes = [len(g) for g in parse_scenario(f"{scenario.dataset}/{finer}/partitioned", len(classes)).groups]
    ends = np.cumsum(sizes)
    groups = tuple(classes[end - size : end] for size, end in zip(sizes, ends, strict=True))
    return Scenario(scenario.dataset, finer, scenario.setup, groups, scenario.order)


@lru_cache(maxsize=8)
def _partition(packed: bytes, groups: tuple[tuple[int, ...], ...]) -> np.ndarray:
    present = np.unpackbits(np.frombuffer(packed, np.uint8).reshape(-1, 32), axis=1)
    step_of = {label: t for t, group in enumerate(groups) for label in group}
    labels = np.array(sorted(step_of))
    held = present[:, labels].astype(bool)
    count = dict(zip(labels.tolist(), held.sum(0).tolist(), strict=True))
    given = dict.fromkeys(count, 0)
    steps = np.full(len(held), -1)
    first = np.where(held.any(1), held.argmax(1), len(labels))  # an image is first visited at its lowest label
    for i in np.argsort(first, kind="stable")[: int(held.any(1).sum())]:
        classes = labels[held[i]].tolist()
        total = sum(count[c] for c in classes)
        best = max(classes, key=lambda c: 120 * (1 - given[c] / count[c]) + total / count[c])
        steps[i] = step_of[best]
        for c in classes:
            given[c] += step_of[c] == step_of[best]
    return steps


def _view(dataset: SegmentationDataset, split: str, chosen: np.ndarray, table: np.ndarray) -> StepView:
    """In the digest, labels that occur in none of these images count as void."""
    ids = tuple(itertools.compress(dataset.ids(split), chosen))
    occurs = dataset.presence(split)[chosen].any(0)
    digest = hashlib.sha256(np.where(occurs, table, VOID).astype(np.uint8).tobytes())
    digest.update("\0".join(ids).encode())
    digest.update(dataset.fingerprints(split)[chosen].tobytes())
    return StepView(ids, table, digest.hexdigest(), split)
