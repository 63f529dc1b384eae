"""What a loader reads: label channels, random numbers by (seed, step, epoch, id), images kept in memory."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.step_dataset import StepImages, collate, generator
from contseg.datasets.transforms import EvalTransform, TrainTransform
from contseg.datasets.view import step_view, val_view


class Noise(SegmentationDataset):
    """Twelve images of different sizes, three classes; counts how often one is decoded."""

    class_names = ("background", "a", "b", "c")

    def __init__(self) -> None:
        super().__init__("noise")
        self.loads = 0

    def ids(self, split):
        return tuple(f"{split}{i:02d}" for i in range(12))

    def files(self, image_id, split):
        return None

    def load(self, image_id, split):
        self.loads += 1
        seed = int(image_id[-2:])
        rng = np.random.default_rng(seed)
        size = (20 + seed, 30 - seed)
        image = torch.from_numpy(rng.integers(0, 256, (*size, 3), np.uint8)).permute(2, 0, 1)
        return image, torch.from_numpy(rng.choice([0, 1, 2, 3, 255], size).astype(np.uint8))


@pytest.fixture
def dataset() -> Noise:
    return Noise()


@pytest.fixture
def view(dataset):
    return step_view(dataset, parse_scenario("noise/[2|3,1]/overlapped", 3), 1, void="ignore")


def test_labels_are_channels(dataset, view):
    data = StepImages(dataset, view, EvalTransform())
    for i, image_id in enumerate(view.ids):
        image, label = data[i]
        raw_image, raw = dataset.load(image_id, "train")
        assert torch.equal(image, raw_image)
        expected = [[{3: 2, 1: 3, 255: 255}.get(v, 0) for v in line] for line in raw.tolist()]
        assert label.tolist() == expected
        assert label.dtype == torch.uint8


def test_validation_labels_are_raw(dataset):
    data = StepImages(dataset, val_view(dataset), EvalTransform())
    assert len(data) == 12
    assert torch.equal(data[3][1], dataset.load("val03", "val")[1])


def sample(dataset, view, key, **which):
    return StepImages(dataset, view, TrainTransform((16, 16)), **which)[key][0]


def test_randomness_is_of_seed_step_epoch_and_image(dataset, view):
    base = sample(dataset, view, (2, 5), seed=1, step=3)
    assert torch.equal(base, sample(dataset, view, (2, 5), seed=1, step=3))
    assert torch.equal(sample(dataset, view, (0, 5)), sample(dataset, view, 5))
    for key, which in (((3, 5), (1, 3)), ((2, 5), (2, 3)), ((2, 5), (1, 4)), ((-1, 5), (1, 3))):
        assert not torch.equal(base, sample(dataset, view, key, seed=which[0], step=which[1]))


def test_randomness_is_not_of_the_position(dataset):
    """The same image in two views that list different images."""
    few, all_ = (
        step_view(dataset, parse_scenario("noise/[1|2,3]/overlapped", 3), 1, split=s) for s in ("tune", "train")
    )
    image_id = few.ids[-1]
    places = [v.ids.index(image_id) for v in (few, all_)]
    assert places[0] != places[1]
    a, b = (StepImages(dataset, v, TrainTransform((16, 16)))[p] for v, p in zip((few, all_), places, strict=True))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_generators_are_apart():
    draws = {generator(s, t, e, i).random() for s in (0, 1) for t in (0, 1) for e in (-1, 0, 1) for i in ("a", "b")}
    assert len(draws) == 24
    assert generator(0, 0, 0, "2007_000032").integers(1 << 30) == 1035634529  # the same on every platform


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_loader_processes_change_nothing(dataset, view, workers, keep):
    data = StepImages(dataset, view, TrainTransform((16, 24)), seed=4, keep=keep)
    batches = [[(0, 0), (0, 7), (0, 3)], [(1, 3), (1, 7), (2, 0)], [(2, 2), (2, 1), (3, 4)]]
    expected = [[StepImages(dataset, view, TrainTransform((16, 24)), seed=4)[k] for k in b] for b in batches]
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    for (images, labels), there in zip(loader, expected, strict=True):
        assert images.shape == (3, 3, 16, 24)
        for k, (image, label) in enumerate(there):
            assert torch.equal(images[k], image)
            assert torch.equal(labels[k], label)


def test_kept_images_are_decoded_once(dataset, view):
    data = StepImages(dataset, view, EvalTransform(), keep=True)
    dataset.loads = 0
    first = [data[i] for i in range(len(view.ids))]
    assert dataset.loads == len(view.ids)
    again = [data[i] for i in range(len(view.ids))]
    assert dataset.loads == len(view.ids)
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_what_does_not_fit_is_decoded_each_time(dataset, view, monkeypatch):
    sizes = [dataset.load(i, "train")[1].numel() * 4 for i in view.ids]
    monkeypatch.setattr("contseg.datasets.step_dataset.room", lambda: sum(sizes[:5]))
    data = StepImages(dataset, view, EvalTransform(), keep=True)
    for _ in range(2):
        dataset.loads = 0
        for i in range(len(view.ids)):
            assert torch.equal(data[i][0], dataset.load(view.ids[i], "train")[0])
    assert dataset.loads == 2 * len(view.ids) - 5  # once here for the comparison, once for those that are not kept


def test_transforms_leave_kept_images_alone(dataset, view):
    data = StepImages(dataset, view, TrainTransform((16, 16), flip="hv"), keep=True)
    for _ in range(3):
        for epoch in range(3):
            assert data[epoch, 2][0].shape == (3, 16, 16)
    plain = StepImages(dataset, view, TrainTransform((16, 16), flip="hv"))
    assert torch.equal(data[9, 2][0], plain[9, 2][0])


def test_collate_stacks_channels_last(dataset, view):
    data = StepImages(dataset, view, TrainTransform((16, 24)))
    images, labels = collate([data[i] for i in range(4)])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, torch.stack([data[i][0] for i in range(4)]))
    assert torch.equal(labels, torch.stack([data[i][1] for i in range(4)]))
