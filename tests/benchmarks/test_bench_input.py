"""Training samples of 512x512 from photographs at their original size, one core, all in this process.

Against torchvision's v2 transforms on uint8 tensors with one table look-up, against released code's way (Pillow, labels
mapped pixel by pixel in Python), and against decoding alone: the floor. All draw windows by the same law.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from contseg.datasets.registry import open_dataset
from contseg.datasets.step_dataset import StepImages, collate
from contseg.datasets.transforms import TrainTransform, random_window
from contseg.datasets.view import StepView
from contseg.tests.benchmarks.ratios import Against
from contseg.tests.material import material

pytest.importorskip("pytest_benchmark")

N, SIZE, SCALE = 12, 512, (0.5, 2.0)
TABLE = np.where(np.arange(256) < 16, np.arange(256), 0).astype(np.uint8)
Sample = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> StepImages:
    data = open_dataset("voc", material("data", "voc_fullres_sample"), tmp_path_factory.mktemp("cache"))
    view = StepView(data.ids("train")[:N], TABLE, "")
    return StepImages(data, view, TrainTransform((SIZE, SIZE), SCALE))


@pytest.fixture(scope="module")
def files(ours: StepImages) -> list[tuple[Path, Path]]:
    found = (ours.dataset.files(i, "train") for i in ours.view.ids)
    return [pair for pair in found if pair is not None]


def torchvision_pipeline() -> Callable[[Path, Path], Sample]:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps = v2.Compose([v2.RandomResizedCrop(SIZE, SCALE, antialias=True), v2.RandomHorizontalFlip()])
    table = torch.from_numpy(TABLE)

    def load(photograph: Path, label: Path) -> Sample:
        mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(label)))
        image = tv_tensors.Image(v2.functional.pil_to_tensor(Image.open(photograph).convert("RGB")))
        image, mask = steps(image, mask)
        return image, table[mask[0].long()]

    return load


def released_pipeline() -> Callable[[Path, Path], Sample]:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tvf

    channels, rng = {c: int(t) for c, t in enumerate(TABLE)}, np.random.default_rng(0)

    def load(photograph: Path, label: Path) -> Sample:
        image, mask = Image.open(photograph).convert("RGB"), Image.open(label)
        window = random_window(image.size[::-1], SCALE, (3 / 4, 4 / 3), rng)
        image = tvf.resized_crop(image, *window, [SIZE, SIZE], InterpolationMode.BILINEAR)
        mask = tvf.resized_crop(mask, *window, [SIZE, SIZE], InterpolationMode.NEAREST)
        if rng.random() < 0.5:
            image, mask = tvf.hflip(image), tvf.hflip(mask)
        pixels = tvf.to_dtype(tvf.pil_to_tensor(image), torch.float32, scale=True)
        pixels = tvf.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return pixels, tvf.pil_to_tensor(mask)[0].apply_(channels.__getitem__)

    return load


def decoding_alone(ours: StepImages) -> Callable[[], Any]:
    return lambda: [ours.dataset.load(i, "train") for i in ours.view.ids]


@pytest.mark.parametrize(
    ("name", "target"), [("torchvision v2", "2"), ("released relabelling", "16"), ("decoding alone", "")]
)
def test_samples_of_one_core(
    against: Against, ours: StepImages, files: list[tuple[Path, Path]], name: str, target: str
) -> None:
    torch.set_num_threads(1)
    epochs = itertools.count()

    def suite() -> Sample:
        epoch = next(epochs)
        return collate([ours[epoch, i] for i in range(N)])

    if name == "decoding alone":
        reference = decoding_alone(ours)
    else:
        load = torchvision_pipeline() if name == "torchvision v2" else released_pipeline()

        def reference() -> Any:
            return collate([load(*pair) for pair in files])

    images, labels = against(f"input / {name}", suite, reference, target, per=N, unit="samples/s")
    assert images.shape == (N, 3, SIZE, SIZE) and labels.shape == (N, SIZE, SIZE)
    assert set(labels.unique().tolist()) <= set(range(16))


def test_samples_kept_decoded(against: Against, ours: StepImages) -> None:
    """With images kept in shared memory only window, resizing and look-up remain."""
    torch.set_num_threads(1)
    kept = StepImages(ours.dataset, ours.view, ours.transform, keep=True)

    def samples(data: StepImages) -> Sample:
        return collate([data[i] for i in range(N)])

    images, _ = against(
        "input kept / decoded", lambda: samples(kept), lambda: samples(ours), "", per=N, unit="samples/s"
    )
    assert torch.equal(images, samples(ours)[0])
