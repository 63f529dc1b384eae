"""Data sets that are told what they hold: presence and fingerprints without an image."""

from pathlib import Path

import numpy as np

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.index import Index

SPLITS = ("train", "val")


class Told(SegmentationDataset):
    """``present`` (N, 256) bool and ids by split; an image's fingerprint comes from its id, or from ``contents``."""

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        present: dict[str, np.ndarray],
        names: dict[str, tuple[str, ...]] | None = None,
        contents: dict[str, int] | None = None,
    ) -> None:
        super().__init__(name)
        self.class_names, self.present, self.contents = class_names, present, contents or {}
        self.names = names or {s: tuple(f"{s}{i:03d}" for i in range(len(present[s]))) for s in SPLITS}

    def ids(self, split: str) -> tuple[str, ...]:
        return self.names[split]

    def files(self, image_id: str, split: str) -> None:
        return None

    def _read(self, ids: tuple[str, ...], split: str) -> Index:
        prints = np.zeros((len(ids), 16), np.uint8)
        prints[:, :4] = np.arange(len(ids), dtype=np.uint32).view(np.uint8).reshape(-1, 4)
        prints[:, 4] = [self.contents.get(i, 0) for i in ids]
        return Index(self.present[split], np.full((len(ids), 2), 32, np.int32), prints)


def told_voc(labels: Path) -> Told:
    """Pascal VOC as its published labels tell it: ``voc_labels.npz`` of the reference splits."""
    with np.load(labels) as archive:
        table = {s: archive[f"{n}_present"] for s, n in (("train", "train_aug"), ("val", "val"))}
        ids = {s: tuple(archive[f"{n}_ids"].tolist()) for s, n in (("train", "train_aug"), ("val", "val"))}
        columns, names = archive["columns"], tuple(archive["class_names"].tolist())
    present = {s: np.zeros((len(t), 256), bool) for s, t in table.items()}
    for split, t in table.items():
        present[split][:, columns] = t
    return Told("voc", names, present, ids)
