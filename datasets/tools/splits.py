"""Lists of images by step, exchanged with other code bases. Images are named by id, never by position.

Three kinds: ``train`` (the images of the step), ``val`` (validation images with a class new in it) and ``test``
(with any class learned so far, or of the domains so far; ``test_on_val`` in MiB's and SDR's files). What is read:

* MiB, SDR, PLOP, RCIL, EWF: ``train-0.npy``, positions in a list of ids (``train_aug.txt``), which must be given;
* DKD: ``overlap_15-1_train_00.npy``, an array of lines ``/JPEGImages/x.jpg /SegmentationClassAug/x.png`` or of ids;
* text files with such a line or an id a line; the JSON that ``export`` writes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from contseg.datasets.atomic import replacing
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.domains import domain_step
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import id_of, read_lines
from contseg.datasets.images import read_bytes
from contseg.datasets.scenario import Scenario, known_orders, known_tasks, parse_scenario
from contseg.datasets.view import seen, training_images

KINDS = {"train": "train", "val": "val", "test": "val"}
"""Kind of list -> its split."""

Lists = dict[str, dict[int, tuple[str, ...]]]
"""Kind -> step -> ids, ascending."""


def our_lists(dataset: SegmentationDataset, scenario: Scenario) -> Lists:
    """The lists of a scenario, by its rule; a step may be empty. Steps by domain have no ``val`` lists.

    ``dataset``: what ``images_for`` gives.
    """
    return {
        kind: {
            t: tuple(compress(dataset.ids(split), _chosen(dataset, scenario, kind, t)))
            for t in range(len(scenario.groups))
            if kind != "val" or not scenario.domains
        }
        for kind, split in KINDS.items()
    }


def _chosen(dataset: SegmentationDataset, scenario: Scenario, kind: str, index: int) -> np.ndarray:
    """(N,) bool: which images of the kind's split are in a list."""
    step = scenario.steps[index]
    if kind == "val":
        return np.asarray(dataset.presence("val")[:, list(step.new_classes)].any(1))
    if kind == "test" and scenario.domains:
        return np.isin(np.arange(len(dataset.ids("val"))), domain_step(dataset, scenario, index).test)
    return seen(dataset, step) if kind == "test" else training_images(dataset, scenario, index)


def export(dataset: SegmentationDataset, scenario: Scenario, folder: Path) -> Lists:
    """Write the lists: ``splits.json``; ids in ``train-0.txt``; positions in ``train-0.npy``, which point into
    ``train.txt`` and ``val.txt``. ``test`` lists get MiB's name ``test_on_val``."""
    lists = our_lists(dataset, scenario)
    ours = {f"{'test_on_val' if kind == 'test' else kind}-{step}" for kind in KINDS for step in lists[kind]}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".npy", ".txt") and NAME.search(path.stem) and path.stem not in ours:
            raise UserError(f"{folder} holds {path.name}, a list of another scenario: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        _write_lines(folder / f"{split}.txt", dataset.ids(split))
    for kind, split in KINDS.items():
        position = {image_id: n for n, image_id in enumerate(dataset.ids(split))}
        for step, ids in lists[kind].items():
            name = f"{'test_on_val' if kind == 'test' else kind}-{step}"
            _write_lines(folder / f"{name}.txt", ids)
            np.save(folder / f"{name}.npy", np.array([position[i] for i in ids], np.int64))
    write_scenario(folder / "splits.json", scenario, lists)
    return lists


def write_scenario(path: Path, scenario: Scenario, lists: Lists) -> None:
    """Ids by step with the classes of each, as JSON: what ``parse_scenario`` reads after a ``+``."""
    missing = sorted(set(range(len(scenario.groups))) - set(lists["train"]))
    if missing:
        raise UserError(f"there is no training list of step {missing[0]} of {scenario.name}: {path} is not written")
    content = {
        "format": 1,
        "scenario": scenario.name,
        "groups": scenario.groups,
        **{kind: [by_step[t] for t in sorted(by_step)] for kind, by_step in lists.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", "utf-8")


def _write_lines(path: Path, lines: tuple[str, ...]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


# --- reading other lists --------------------------------------------------------------------------------------------

NAME = re.compile(r"(train|test_on_val|val|test)[-_]?(\d+)$")
Content = list[str] | np.ndarray
"""The lines of one list, or the positions."""


def read_lists(paths: list[Path], dataset: SegmentationDataset, indexed: dict[str, Path | None]) -> Lists:
    """The lists in these files and folders, as ids of ``dataset``.

    ``indexed``: split -> the file that positions refer to; by default the ids in ascending order, as in the
    ``train_aug.txt`` of MiB and its successors.
    """
    known = {split: set(dataset.ids(split)) for split in indexed}
    order = {s: _ids(read_lines(path), known[s]) if path else list(dataset.ids(s)) for s, path in indexed.items()}
    lists: Lists = {kind: {} for kind in KINDS}
    for path, kind, step, content in _contents(paths):
        split = KINDS[kind]
        ids = _named(content, order[split], known[split], path)
        foreign = next((i for i in ids if i not in known[split]), None)
        if foreign is not None:
            raise UserError(f"{path}: {foreign!r} is not a {split} image of {dataset.name}")
        new = tuple(sorted(set(ids)))
        if lists[kind].setdefault(step, new) != new:
            raise UserError(
                f"{path} is a second {kind} list of step {step}, and another: give one scenario's files only"
            )
    if not lists["train"]:
        raise UserError(f"no training list in {paths[0]}: looked for names like train-0.npy and ..._train_00.txt")
    return lists


def _named(content: Content, order: list[str], known: set[str], path: Path) -> list[str]:
    """The ids of a list, which holds ids or positions in ``order``."""
    if not isinstance(content, np.ndarray):
        ids = _ids(content, known)
        if not all(i.isdigit() for i in ids) or known.issuperset(ids):
            return ids
        content = np.array([int(i) for i in ids])
    if content.size and not 0 <= content.min() <= content.max() < len(order):
        raise UserError(f"{path} points to entry {content.max()} (from 0) of a list of {len(order)} ids: not this list")
    return [order[i] for i in content]


def _ids(lines: list[str], known: set[str]) -> list[str]:
    """``/JPEGImages/x.jpg /SegmentationClassAug/x.png``, ``x.jpg`` or ``x`` -> ``x``; a known id stays as it is."""
    return [id_of(line, known) for line in lines]


def _contents(paths: list[Path]) -> Iterator[tuple[Path, str, int, Content]]:
    """Every list: where it stands, its kind, its step, its lines or positions."""
    for given in paths:
        if not given.exists():
            raise UserError(f"there is no {given}")
        if given.suffix == ".json":
            yield from _from_json(given)
            continue
        files = [p for p in sorted(given.iterdir()) if p.suffix in (".npy", ".txt")] if given.is_dir() else [given]
        for path in files:
            match = NAME.search(path.stem)
            if match:
                kind = "test" if match[1].startswith("test") else match[1]
                yield path, kind, int(match[2]), _read_array(path) if path.suffix == ".npy" else read_lines(path)
            elif not given.is_dir():
                raise UserError(f"{path}: which list is it? Its name should end like train-0 or test_on_val-0")


def _from_json(path: Path) -> Iterator[tuple[Path, str, int, Content]]:
    try:
        content = json.loads(read_bytes(path))
        for kind in KINDS:
            for step, ids in enumerate(content.get(kind, [])):
                yield path, kind, step, [str(i) for i in ids]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a file of `data export-splits` ({type(error).__name__}: {error})") from error


def _read_array(path: Path) -> Content:
    try:
        array = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False).ravel()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if array.dtype.kind == "U":
        return [str(line) for line in array]
    if array.dtype.kind not in "iu" and array.size:
        raise UserError(f"{path} holds {array.dtype} values: neither positions nor names")
    return array.astype(np.int64)


# --- comparison with our lists --------------------------------------------------------------------------------------


def compare(dataset: SegmentationDataset, theirs: Lists, wanted: Scenario | None) -> tuple[Scenario, bool, str]:
    """Our scenario with the nearest training lists, whether all given lists are equal, and a text about it.

    If lists of some steps are missing, the others are compared. ``wanted``: a scenario with the classes of the lists;
    every setup of it is tried. By default all scenarios of the papers are tried.
    """
    steps = sorted(theirs["train"])
    masks = {t: np.isin(dataset.ids("train"), ids) for t, ids in theirs["train"].items()}
    candidates = _candidates(dataset, theirs, wanted)
    whole = [c for c in candidates if len(c.groups) == 1 + steps[-1]]
    known: dict[Any, int] = {}

    def apart(c: Scenario) -> int:
        """Number of images that are in only one of two lists."""
        alike = _alike(c)
        if alike not in known:
            known[alike] = int(sum((_chosen(dataset, c, "train", t) ^ masks[t]).sum() for t in steps))
        return known[alike]

    same = [c for c in whole if not apart(c)] or [c for c in candidates if not apart(c)]
    nearest = same[0] if same else min(whole or candidates, key=apart)
    left = sorted(set(range(len(nearest.groups))) - set(steps))
    given = f" (step {_ranges(steps)})" if left else ""
    lines = [f"their training lists{given} are those of {_names(same)}" if same else f"nearest of ours: {nearest.name}"]
    equal = bool(same)
    ours = our_lists(dataset, nearest)
    for kind in KINDS:
        for step in sorted(theirs[kind]):
            a, b = set(theirs[kind][step]), set(ours[kind].get(step, ()))
            equal &= a == b
            if a != b:
                only = f"only theirs {_few(a - b)}, only ours {_few(b - a)}"
                lines.append(f"  {kind} step {step}: {len(a)} theirs, {len(b)} ours; {only}")
    counts = ", ".join(f"{len(theirs[kind])} {kind}" for kind in KINDS if theirs[kind])
    verdict = f"equal as far as they go, without step {_ranges(left)}" if left else "all equal"
    lines.append(f"{verdict} ({counts} lists): run {nearest.name}" if equal else f"not all equal ({counts} lists)")
    return nearest, equal, "\n".join(lines)


def _alike(scenario: Scenario) -> Any:
    """What determines the lists. The order of classes within a step does not; sequential and disjoint are alike."""
    if scenario.setup == "partitioned":  # goes through the classes one by one
        return scenario
    setup = "disjoint" if scenario.setup == "sequential" else scenario.setup
    return setup, tuple(frozenset(group) for group in scenario.groups)


def _names(scenarios: list[Scenario]) -> str:
    """The names of equal scenarios; of equal class orders the first, and the number of the others."""
    shown = [c for c in scenarios if c.order == scenarios[0].order]
    orders = {c.order for c in scenarios} - {scenarios[0].order}
    more = f" (and of {len(orders)} other class orders with the same steps)" if orders else ""
    return " and ".join(c.name for c in shown) + more


def _ranges(steps: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    starts = [t for t in steps if t - 1 not in steps]
    ends = [t for t in steps if t + 1 not in steps]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _candidates(dataset: SegmentationDataset, theirs: Lists, wanted: Scenario | None) -> list[Scenario]:
    """Scenarios with at least the steps of the lists; those without a class order first."""
    steps = 1 + max(theirs["train"])
    if wanted:
        tasks = [f"{wanted.dataset}/{wanted.task}" + (f"@{wanted.order}" if wanted.order else "")]
    else:
        orders = ["", *(f"@{o}" for o in known_orders(dataset.name))]
        tasks = [f"{dataset.name}/{task}{order}" for order in orders for task in known_tasks(dataset.name)]
    found = []
    for task in tasks:
        for setup in ("overlapped", "disjoint", "sequential", "partitioned"):
            if setup == "partitioned" and not wanted and dataset.name != "ade":
                continue  # released for ADE20K only, and slow to compute
            try:
                found.append(parse_scenario(f"{task}/{setup}", dataset.n_foreground))
            except UserError:  # an order of another task
                continue
    found = [c for c in found if len(c.groups) >= steps]
    if not found:
        what = f"{wanted.name} does not have" if wanted else f"no scenario known for {dataset.name} has"
        raise UserError(f"{what} {steps} steps, as their lists have: say with --scenario whose classes they are")
    return found


def _few(ids: set[str]) -> str:
    named = f" ({', '.join(sorted(ids)[:3])}{', ...' if len(ids) > 3 else ''})" if ids else ""
    return f"{len(ids)}{named}"
