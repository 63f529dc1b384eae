"""Stored networks and their data, loaded again: shared by predictions, latent views and re-evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contseg.benchmark.models.load import load_step
from contseg.benchmark.score.records import Record, crop_of, read_record, read_records, scenario_in
from contseg.benchmark.store.files import Store
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.domains import images_for
from contseg.datasets.errors import UserError, unknown
from contseg.datasets.registry import open_dataset
from contseg.datasets.transforms import EvalTransform
from contseg.datasets.view import scored_view


@dataclass
class StoredNetworks:
    """The networks in the cache of ``out``, and their data sets.

    ``data``: name -> folder of a data set. ``UserError`` if a network or a data set is missing.
    """

    out: Path
    data: Mapping[str, str]
    _opened: dict[str, SegmentationDataset] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def dataset(self, name: str) -> SegmentationDataset:
        if name not in self._opened:
            self._opened[name] = open_dataset(name, self.data.get(name), Store(self.out).cache / "presence")
        return self._opened[name]

    def network(self, record: Record) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """The network of a record's step, and its prediction: images (B, 3, H, W) -> channels (B, H, W)."""
        return load_step(self.out, step_key(record), record["method"], self.device)

    def telling(self, record: Record, groups: tuple[tuple[int, ...], ...], n: int) -> list[str]:
        """The ids of ``n`` test images of a record that show most."""
        dataset = self.images(record)
        ids = scored_view(dataset, scenario_in(record), record["step"]).ids
        present = dataset.presence("val")[np.isin(dataset.ids("val"), ids)]
        return [ids[i] for i in telling_images(present, groups, n)]

    def images(self, record: Record) -> SegmentationDataset:
        """The data set of a record; by domain, both of its splits as one."""
        return images_for(self.dataset(record["dataset"]), scenario_in(record))

    def image(self, record: Record, image_id: str) -> tuple[Tensor, Tensor]:
        """A test image (3, S, S') and its labels (S, S'), uint8, as the record's evaluation saw them."""
        return EvalTransform(eval_crop(record))(*self.images(record).load(image_id, "val"))

    def batch(self, image: Tensor) -> Tensor:
        """An image as a prediction takes it: (1, 3, H, W), bytes."""
        return image[None].to(self.device)


@dataclass(frozen=True)
class FoundStep:
    """A trained step: the results folder, its key, the method whose prediction rule is meant ("": the first one's),
    and the names of the classes by label, background at 0; empty where no record says them."""

    out: Path
    key: str
    method: str
    names: tuple[str, ...]


def find_step(text: str, out: Path, method: str = "") -> FoundStep:
    """The step that a user names: a record's file, or the first digits of a key in the results folder ``out``.

    ``method``: the one whose prediction rule is meant, where several share the step. Raises ``UserError``.
    """
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return _of_record(path, method)
    if not text or set(text) - set("0123456789abcdef"):
        raise UserError(f"no step {text!r}: give a record's file, or the first digits of a step key (`cache list`)")
    records = read_records(out / "records")[0] if (out / "records").is_dir() else []
    same = [r for r in records if step_key(r).startswith(text)]
    chosen = [r for r in same if not method or r["method"] == method]
    if method and same and not chosen:
        raise unknown("method of this step", method, {r["method"] for r in same})
    return FoundStep(out, text, method, tuple(same[0]["class_names"]) if same else ())


def _of_record(path: Path, method: str) -> FoundStep:
    """The step of one record; its results folder is the one that holds the folder ``records``."""
    folder = next((p.parent for p in path.resolve().parents if p.name == "records"), None)
    if folder is None:
        raise UserError(f"{path} is not below a folder `records`: give a record of a results folder, or a step key")
    if not path.is_file():
        raise UserError(f"there is no record {path}")
    record, why = read_record(path)
    if record is None:
        raise UserError(f"{path} is no record that can be used: {why}")
    if method not in ("", record["method"]):
        return find_step(step_key(record), folder, method)
    return FoundStep(folder, step_key(record), record["method"], tuple(record["class_names"]))


def step_key(record: Record) -> str:
    """The key of the weights that a record scores."""
    return str(record.get("step_key", record["key"]))


def eval_crop(record: Record) -> tuple[int, int] | None:
    """The size of the centre crop of a record's evaluation; ``None`` for full resolution. ``UserError`` if unknown."""
    if record["protocol"]["eval_view"] == "full":
        return None
    crop = crop_of(record)
    if crop is None:
        raise UserError(f"{record['method']}, step {record['step']}: the record does not say its crop")
    return crop


def telling_images(present: np.ndarray, groups: tuple[tuple[int, ...], ...], n: int) -> list[int]:
    """Positions of ``n`` images that show most: first those with old and later classes, then classes not shown yet.

    ``present`` (N, n_labels) bool. The same data give the same images.
    """
    later = [k for group in groups[1:] for k in group]
    both = present[:, list(groups[0])].any(1) & present[:, later].any(1) if later else np.zeros(len(present), bool)
    left = present[:, 1:].copy()
    chosen: list[int] = []
    for _ in range(min(n, len(present))):
        value = 1000 * both + 10 * left.sum(1) + present[:, 1:].sum(1)
        value[chosen] = -1
        best = int(value.argmax())
        chosen.append(best)
        left[:, present[best, 1:]] = False
    return chosen
