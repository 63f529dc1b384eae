"""The evaluation loop against counting pixel by pixel."""

import numpy as np
import pytest
import torch
from torch import Tensor

from contseg.benchmark.train.evaluate import evaluate
from contseg.methods.base import SegOutput, argmax

VOID = 255
CHANNELS = 7


class Images:
    """11 images of two sizes; every label and void occurs."""

    def __init__(self, n_labels: int) -> None:
        rng = np.random.default_rng(0)
        self.labels = []
        for i in range(11):
            drawn = np.resize(np.append(np.arange(n_labels), VOID), ((20, 13), (16, 17))[i % 2])
            self.labels.append(torch.from_numpy(rng.permuted(drawn).astype(np.uint8)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = torch.randint(256, (3, *self.labels[i].shape), generator=torch.Generator().manual_seed(i))
        return image.byte(), self.labels[i]


class Hue(torch.nn.Module):
    """The channel is the red value modulo 7."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> SegOutput:
        red = (images[:, 0] * 0.229 + 0.485).mul(255).round().long()
        logits = torch.nn.functional.one_hot(red % CHANNELS, CHANNELS).movedim(-1, 1).float()
        return SegOutput(logits, logits, logits, ())


@pytest.mark.parametrize("n_labels", [4, 127, 128, 151, 255])  # 151: ADE20K with "other"; 255: all that bytes can hold
def test_every_pixel_is_counted_where_it_belongs(n_labels: int) -> None:
    images = Images(n_labels)
    seen = torch.arange(len(images)) % 3 != 0
    expected = np.zeros((2, n_labels + 1, CHANNELS), dtype=int)
    for i in range(len(images)):
        image, label = images[i]
        for truth, red in zip(label.flatten().tolist(), image[0].flatten().tolist(), strict=True):
            expected[int(not seen[i]), n_labels if truth == VOID else truth, red % CHANNELS] += 1
    matrix = evaluate(
        Hue(), argmax, images, seen, n_labels=n_labels, n_channels=CHANNELS, device=torch.device("cpu"), batch=2
    )
    assert matrix == {"seen": expected[0].tolist(), "unseen": expected[1].tolist()}


def test_batches_are_sent_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacking pinned images gives a batch that is not pinned, so the CPU waits for its copy to the GPU."""
    shapes = []

    def recorded(x: Tensor, device: torch.device) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    monkeypatch.setattr("contseg.benchmark.train.evaluate.sent", recorded)
    seen, cpu = torch.ones(11) > 0, torch.device("cpu")
    evaluate(Hue(), argmax, Images(4), seen, n_labels=4, n_channels=CHANNELS, device=cpu, batch=5)
    assert [s for s in shapes if len(s) > 1] == [
        *((5, 3, 20, 13), (5, 20, 13)),
        *((5, 3, 16, 17), (5, 16, 17)),
        *((1, 3, 20, 13), (1, 20, 13)),
    ]


def test_the_forward_pass_runs_in_the_precision_of_training() -> None:
    passed = []

    class Watched(Hue):
        def forward(self, images: Tensor) -> SegOutput:
            passed.append(torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype)
            return super().forward(images)

    for precision in ("no", "bf16", "double"):
        evaluate(
            Watched(),
            argmax,
            Images(4),
            torch.ones(11) > 0,
            n_labels=4,
            n_channels=CHANNELS,
            device=torch.device("cpu"),
            precision=precision,
            batch=11,
        )
    assert list(dict.fromkeys(passed)) == [torch.float32, torch.bfloat16]
