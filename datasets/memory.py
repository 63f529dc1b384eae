"""Memory: which images of earlier steps are stored and shown again, and with which labels.

The choice is a function of the data and of the seed alone, never of weights: which of a step's classes an image shows
is read from the whole label map, through the label table of the step in which the image was training data. So a plan
can name every stored image before anything is trained. It is the same in all processes and after an interruption.

At the start of step t the candidates are the memory of step t - 1 and the images of step t - 1 that are not in it.
Orders are those of SHA-256 hashes, which no version of a library changes.

Sources: F-MEM-ROUND (SSUL, DKD, STAR) and F-MEM-GREEDY (CISS_partitioned) of docs/methods.md. The releases complete the
labels of candidates by the previous model; in those of DKD, STAR and CISS_partitioned its weights are not loaded then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import VOID, Step
from contseg.datasets.view import StepView, Stored

T = TypeVar("T")


class Kept(NamedTuple):
    """An image in memory: the step in which it was training data, and the channel for which it was taken."""

    image_id: str
    step: int
    channel: int


@dataclass(frozen=True)
class Choice:
    """How many images are stored, by which policy ("round" or "greedy"), and the seed of the run."""

    size: int
    policy: str
    seed: int


def next_memory(
    choice: Choice, before: Sequence[Kept], dataset: SegmentationDataset, views: Sequence[StepView], channels: int
) -> tuple[Kept, ...]:
    """The memory at the start of step t = ``len(views)``; ascending ids.

    ``before``: the memory at the start of step t - 1. ``views``: those of the steps before t. ``channels``: those of
    the previous model, background included (O of step t).
    """
    t = len(views)
    step_of = {kept.image_id: kept.step for kept in before}
    fresh = [i for i in views[-1].ids if i not in step_of]
    place = _places(choice.seed, t).__getitem__

    def kept(image_id: str, channel: int) -> Kept:
        return Kept(image_id, step_of.get(image_id, t - 1), channel)

    if choice.policy == "greedy":
        candidates = sorted(fresh, key=place)
        slots: list[list[str]] = [[] for _ in range(channels - 1)]
        for one in before:
            slots[one.channel - 1].append(one.image_id)
        held = shown_classes(dataset, views, candidates, [t - 1] * len(candidates), channels)
        drops = iter(range(len(candidates)))
        greedy(slots, candidates, held, choice.size, lambda n: _draw(choice.seed, t, "drop", next(drops)) % n)
        chosen = [kept(image_id, c + 1) for c, slot in enumerate(slots) for image_id in slot]
    else:
        candidates = sorted([*step_of, *fresh], key=place)
        classes = sorted(range(1, channels), key=lambda c: _draw(choice.seed, t, "class", c))
        steps = [step_of.get(i, t - 1) for i in candidates]
        held = shown_classes(dataset, views, candidates, steps, channels)[:, np.array(classes, int) - 1]
        taken = round_robin(held, choice.size)
        chosen = [kept(candidates[i], classes[c]) for i, c in taken]
    return tuple(sorted(chosen))


def shown_classes(
    dataset: SegmentationDataset, views: Sequence[StepView], ids: Sequence[str], of: Sequence[int], channels: int
) -> np.ndarray:
    """(n, channels - 1) bool: whether channel c + 1 is a label of image i in its own step, ``of[i]``."""
    row = _rows(tuple(dataset.ids("train")))
    rows, steps = np.array([row[i] for i in ids], int), np.array(of, int)
    held = np.zeros((len(ids), channels - 1), bool)
    for t in np.unique(steps):
        own = np.flatnonzero(steps == t)
        to_channel = views[t].table[:, None] == np.arange(1, channels)  # (256, channels - 1)
        labels = np.flatnonzero(to_channel.any(1))
        present = dataset.presence("train")[rows[own][:, None], labels].astype(np.float32)
        held[own] = present @ to_channel[labels].astype(np.float32) > 0  # sums of at most 256 ones
    return held


def round_robin(held: np.ndarray, size: int) -> list[tuple[int, int]]:
    """F-MEM-ROUND: candidates and the class for which each is taken, in the order in which they are taken.

    held (n, K) bool, both in shuffled order. The classes take turns; each takes the first candidate left that shows
    it. A class that finds none is out. Fewer than ``size`` if no class finds one (where the releases never end).
    """
    left, taken, classes = np.ones(len(held), bool), list[tuple[int, int]](), [*range(held.shape[1])]
    while classes and len(taken) < size:
        for c in list(classes):
            mine = np.flatnonzero(left & held[:, c])
            if not len(mine):
                classes.remove(c)
            elif len(taken) < size:
                left[mine[0]] = False
                taken.append((int(mine[0]), c))
    return taken


def greedy(
    slots: list[list[T]], candidates: Sequence[T], held: np.ndarray, size: int, draw: Callable[[int], int]
) -> None:
    """F-MEM-GREEDY, in place: ``slots`` holds what is stored for each class.

    held (n, K) bool, in shuffled order. A candidate goes to the class that it shows of which the fewest are stored, if
    these are fewer than size / K, rounded down, or if memory is not full. If it is full, one of the class with most
    goes, at the position that ``draw(number)`` gives.
    """
    share, full = size // max(len(slots), 1), sum(map(len, slots))
    shown = np.nonzero(held)[1].tolist()  # the classes of all candidates, one after the other
    ends = np.cumsum(held.sum(1)).tolist()
    for candidate, begin, end in zip(candidates, [0, *ends], ends, strict=False):
        classes = shown[begin:end]
        if not classes:
            continue
        slot = min((slots[c] for c in classes), key=len)
        if full < size:
            full += 1
        elif len(slot) < share:
            most = max(slots, key=len)
            most.pop(draw(len(most)))
        else:
            continue
        slot.append(candidate)


def with_memory(
    view: StepView, memory: Sequence[Kept], dataset: SegmentationDataset, tables: Sequence[np.ndarray]
) -> StepView:
    """The view of a step with stored images, each with its label table (256,); the same view if there is none.

    The digest names ids, content of the files, and the tables restricted to labels that occur in the image.
    """
    if not memory:
        return view
    stored = tuple(Stored(kept.image_id, kept.step, table) for kept, table in zip(memory, tables, strict=True))
    row = _rows(tuple(dataset.ids("train")))
    rows = [row[kept.image_id] for kept in memory]
    digest = hashlib.sha256(view.digest.encode())
    for kept, i in zip(stored, rows, strict=True):
        occurs = dataset.presence("train")[i]
        digest.update(f"\0{kept.image_id}\0".encode())
        digest.update(np.where(occurs, kept.table, VOID).astype(np.uint8).tobytes())
        digest.update(dataset.fingerprints("train")[i].tobytes())
    return replace(view, stored=stored, digest=digest.hexdigest())


def stored_table(labels: str, kept: Kept, views: Sequence[StepView], step: Step) -> np.ndarray:
    """(256,) uint8: the label table of a stored image (F-MEM-LABEL); ``views``: up to that of ``step``.

    ``labels``: "own" is the table of the step in which it was training data, "current" that of this step, "all" has
    every class seen, those of this step included.
    """
    if labels == "own":
        return views[kept.step].table
    table = views[step.index].table
    if labels == "all":
        table = table.copy()
        table[list(step.seen_classes)] = np.arange(1, step.n_classes)
    return table


@lru_cache(4)
def _rows(ids: tuple[str, ...]) -> dict[str, int]:
    return {image_id: i for i, image_id in enumerate(ids)}


class _Places(dict[str, int]):
    """An image's place in the order of a seed and a step, which all scenarios and policies share."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed, self.step = seed, step

    def __missing__(self, image_id: str) -> int:
        return self.setdefault(image_id, _draw(self.seed, self.step, "image", image_id))


_places = lru_cache(24)(_Places)


def _draw(seed: int, step: int, *purpose: object) -> int:
    text = "/".join(map(str, ("memory", seed, step, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
