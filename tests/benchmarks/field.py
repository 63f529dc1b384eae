"""What a whole field leaves on disk: records by the ten thousand, a cache of as many steps, an empty VOC.

The records are those of some thirty methods on Pascal VOC's tasks. What is neither a name nor a matrix is a real
record's (``results/demo``); matrices are drawn from a seed and have the size of VOC's. Files are sealed as the suite
seals them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from itertools import count, cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contseg.benchmark.plan.external import codes
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.store.files import Store, cell_path, digest, write_tensors
from contseg.datasets.index import _key, _store
from contseg.methods.registry import methods
from contseg.tests.material import ROOT
from contseg.tests.told import Told

TASKS = {"19-1": (19, 1), "15-5": (15, 5), "15-1": (15, 1, 1, 1, 1, 1), "10-1": (10, *[1] * 10)}
SETUPS = ("sequential", "disjoint", "overlapped")
COMPOSED = ("MiB+SDR", "MiB+EWF", "MiB+AWT", "MiB+NeST", "PLOP+SDR", "PLOP+UCB", "SSUL+UCB")
LABELS, PIXELS = 21, 12_000_000  # classes with background; labelled pixels of each


def names() -> list[str]:
    """The methods of a large table: all built-in ones but the bound, and some compositions."""
    return [*(entry for entry in methods() if entry != "Joint"), *COMPOSED]


def records(n: int) -> Iterator[dict[str, Any]]:
    """The first ``n`` records of the field, seed by seed, without their seals."""
    cells = (cell for seed in count() for cell in product(TASKS, SETUPS, names(), [seed]))
    return islice((record for cell in cells for record in run(*cell)), n)


def run(task: str, setup: str, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """The records of one run, by step."""
    labels = iter(range(1, LABELS))
    groups = [[next(labels) for _ in range(size)] for size in TASKS[task]]
    keys = [digest([task, setup, method, seed, step]) for step in range(len(groups))]
    g = np.random.default_rng(int(keys[0][:12], 16))
    hit = g.uniform(0.3, 0.8, LABELS)
    external = list(codes(ModelConfig(**real()["config"]["model"]), method))
    for step, key in enumerate(keys):
        channels = [0, *(k for group in groups[: step + 1] for k in group)]
        yield real() | {
            "key": key,
            "step_key": digest(key),
            "run": digest(keys),
            "dataset": "voc",
            "task": task,
            "setup": setup,
            "method": method,
            "external": external,
            "seed": seed,
            "step": step,
            "steps": len(groups),
            "class_names": ["background", *(f"class {k}" for k in range(1, LABELS))],
            "groups": groups,
            "channels": channels,
            "matrix": {part: matrix(g, channels, hit).tolist() for part in ("seen", "unseen")},
        }


@cache
def real() -> dict[str, Any]:
    """A record that a training wrote, without its seal."""
    path = next((ROOT / "results/demo/records").glob("shapes/3-1/overlapped/MiB/*/seed0/step3.json"))
    record: dict[str, Any] = json.loads(path.read_text())
    del record["sha256"]
    return record


def matrix(g: np.random.Generator, channels: list[int], hit: np.ndarray) -> np.ndarray:
    """A row for each label and one for void: a share of a class's pixels is found, the rest is spread."""
    rows = g.multinomial(PIXELS // 2, np.full(len(channels), 1 / len(channels)), size=LABELS + 1)
    for column, label in enumerate(channels):
        rows[label, column] += int(PIXELS * hit[label])
    return rows


def write_records(folder: Path, n: int) -> Path:
    """``n`` records where runs would have written them: the bytes of ``write_sealed``, which waits for the disk."""
    fields = ("dataset", "task", "order", "setup", "method", "run", "seed", "step")
    for record in records(n):
        path = folder / "records" / cell_path(**{name: record[name] for name in fields})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**record, "sha256": digest(record)}, indent=1) + "\n")
    return folder


def write_cache(folder: Path, n: int) -> Store:
    """A cache of ``n`` trained steps with tiny weights; what is told of them is a real record's."""
    store, code = Store(folder), real()["provenance"]["code"]["training"]
    about = {"cost": real()["cost"], "losses": real()["losses"], "code": code}
    about |= {name: real()["config"][name] for name in ("model", "train")}
    for seed, cell in zip(range(n), cycle(product(TASKS, SETUPS, names())), strict=False):
        title = f"voc/{cell[0]}/{cell[1]} step 1 {cell[2]} seed {seed}"
        write_tensors(store.model(digest(seed)), {"weight": torch.zeros(1)}, {"title": title, **about})
    return store


def write_voc(root: Path, told: Told) -> Path:
    """VOC's folder of empty files under the names that ``told`` knows; ``root/presence``: its maps, read before."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / "VOC2012" / folder).mkdir(parents=True)
    for split, name in (("train", "train_aug"), ("val", "val")):
        ids = told.ids(split)
        (root / f"VOC2012/ImageSets/Segmentation/{name}.txt").write_text("".join(f"{i}\n" for i in ids))
        keys = []
        for i in ids:
            pair = root / f"VOC2012/JPEGImages/{i}.jpg", root / f"VOC2012/SegmentationClassAug/{i}.png"
            for file in pair:
                file.touch()
            keys.append(_key(*pair, None))
        where = hashlib.sha256(str(root).encode()).hexdigest()[:8]
        _store(root / f"presence/voc-{split}-{where}.npz", keys, told._index(split))
    return root
