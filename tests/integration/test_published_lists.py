"""Every published list of images by step is one of ours, and what is not is noticed."""

import numpy as np
import pytest
import torch

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.tools.splits import compare, our_lists, read_lists
from contseg.datasets.tools.verify import verify
from contseg.tests.material import material

# --- every published list ---------------------------------------------------------------------------------------------


class Presence(SegmentationDataset):
    """A data set whose maps hold exactly the labels of a published presence matrix: one pixel of each."""

    def __init__(self, name, class_names, splits):
        super().__init__(name)
        self.class_names = class_names
        self.splits = {s: (tuple(ids), present) for s, (ids, present) in splits.items()}

    def ids(self, split):
        return self.splits[split][0]

    def files(self, image_id, split):
        return None

    def load(self, image_id, split):
        row = self.splits[split][1][self.row(split)[image_id]]
        label = torch.from_numpy(np.flatnonzero(row).astype(np.uint8))[None]
        return torch.zeros((3, *label.shape), dtype=torch.uint8), label

    def row(self, split):
        rows = self.__dict__.setdefault("rows", {})
        if split not in rows:
            rows[split] = {image_id: n for n, image_id in enumerate(self.ids(split))}
        return rows[split]

    def presence(self, split):
        return self.splits[split][1]


def as_table(present, columns):
    table = np.zeros((len(present), 256), bool)
    table[:, columns] = present
    table[:, 0] |= ~table.any(1)  # a map has at least one pixel
    return table


@pytest.fixture(scope="module")
def voc():
    with np.load(material("data", "voc_reference_splits", "voc_labels.npz")) as z:
        names = tuple(str(n) for n in z["class_names"])
        return Presence(
            "voc",
            names,
            {
                s: (z[f"{t}_ids"].tolist(), as_table(z[f"{t}_present"], z["columns"]))
                for s, t in (("train", "train_aug"), ("val", "val"))
            },
        )


@pytest.fixture(scope="module")
def ade():
    with np.load(material("data", "ade_reference_splits", "ade_labels.npz")) as z:
        splits = {}
        for split in ("train", "val"):
            present = np.unpackbits(z[f"{split}_present_packed"], axis=1)[:, :151].astype(bool)
            ids = [f"ADE_{split}_{n:08d}" for n in range(1, len(present) + 1)]
            splits[split] = ids, as_table(present, np.arange(151))
    return Presence("ade", ("background", *(f"class {c}" for c in range(1, 151))), splits)


def test_the_whole_of_voc_verifies(voc):
    report = verify(voc, progress=False)
    assert report.deviations == []
    assert report.scenarios["10-1/disjoint"]["found"] == [3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548]


def test_the_whole_of_ade_verifies(ade):
    report = verify(ade, progress=False)
    assert report.deviations == []
    assert report.splits["train"]["without_class"] == 14
    assert report.scenarios["100-10/partitioned"]["found"] == [13452, 1130, 1200, 1366, 1550, 1498]


def test_xml_labels_in_place_of_the_maps_are_noticed(voc):
    """Presence by XML boxes, as another code base might feed it: no scenario comes out right."""
    with np.load(material("data", "voc_reference_splits", "voc_labels.npz")) as z:
        present = as_table(z["train_aug_present_xml"], np.arange(21))
        present[:, 255] = voc.presence("train")[:, 255]
    xml = Presence("voc", voc.class_names, {"train": (voc.ids("train"), present), "val": voc.splits["val"]})
    report = verify(xml, progress=False)
    what = " | ".join(d.what for d in report.deviations)
    assert "other numbers of train images of 20 classes" in what
    assert "14 of 14 scenarios" in what


def references(name):
    """(source, task as released) -> {"train-0": positions, ...}."""
    with np.load(material("data", f"{name}_reference_splits", "reference_index.npz"), allow_pickle=False) as z:
        lists = {}
        for key in z.files:
            source, _, task, which = key.split("/")
            lists.setdefault((source, task), {})[which] = z[key]
        return lists


TASKS = {"15-5s": "15-1", "50": "50-50"}


def released(name, source, task):
    """The scenario that a released folder is meant to be."""
    base = task.removesuffix("-ov")
    order = "@b" if base.endswith("b") else ""
    base = base.removesuffix("b")
    setup = "overlapped" if task.endswith("-ov") else "disjoint" if name == "voc" else "partitioned"
    return f"{name}/{TASKS.get(base, base)}{order}/{setup}"


@pytest.mark.parametrize("name", ["voc", "ade"])
def test_every_published_list_is_one_of_ours(name, tmp_path, request):
    """MiB's, SDR's and EWF's index files as they are released, read and recognised without being told what they are."""
    dataset = request.getfixturevalue(name)
    seen = 0
    for (source, task), lists in references(name).items():
        folder = tmp_path / source / task
        folder.mkdir(parents=True)
        for which, positions in lists.items():
            np.save(folder / f"{which}.npy", positions)
        if source == "sdr":  # their validation lists stand beside MiB's training lists
            for which, positions in references(name)["mib", task].items():
                np.save(folder / f"{which}.npy", positions)
        theirs = read_lists([folder], dataset, {"train": None, "val": None})
        _, equal, text = compare(dataset, theirs, None)
        assert equal, f"{source}/{task}: {text}"
        assert released(name, source, task) in text
        seen += len(lists)
    assert seen == 40


@pytest.mark.parametrize(
    ("scenario", "steps", "left"),
    [("voc/10-1/disjoint", range(1, 11), "0"), ("voc/2-1/overlapped", range(14), "14-18")],
)
def test_lists_of_some_of_the_steps_are_recognised(voc, scenario, steps, left):
    """As SDR ships 10-10s, without its first step, and EWF 2-1-ov, up to step 13."""
    lists = our_lists(voc, parse_scenario(scenario, 20))["train"]
    theirs = {"train": {t: lists[t] for t in steps}, "val": {}, "test": {}}
    nearest, equal, text = compare(voc, theirs, None)
    assert equal and nearest.name == scenario
    assert f"equal as far as they go, without step {left} ({len(steps)} train lists): run {scenario}" in text


def test_a_list_in_another_order_is_noticed(voc, tmp_path):
    """MiB's files with a list that begins with VOC's own 1 464 images: other images, and it says so."""
    lists = references("voc")["mib", "15-5s-ov"]
    for which, positions in lists.items():
        np.save(tmp_path / f"{which}.npy", positions)
    own = material("data", "voc_reference_splits", "lists", "train.txt").read_text().split()
    order = [*own, *sorted(set(voc.ids("train")) - set(own))]
    (tmp_path / "train_aug.txt").write_text("".join(f"{i}\n" for i in order))
    npy = sorted(tmp_path.glob("*.npy"))
    theirs = read_lists(npy, voc, {"train": tmp_path / "train_aug.txt", "val": None})
    _, equal, text = compare(voc, theirs, None)
    assert not equal
    assert "only theirs" in text
