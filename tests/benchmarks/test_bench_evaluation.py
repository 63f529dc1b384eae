"""An evaluation pass over images of two sizes, against the network's forward alone on the same batches."""

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from contseg.benchmark.models.pixels import Pixels
from contseg.benchmark.models.segmenter import build_model
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.train.evaluate import evaluate
from contseg.methods.base import argmax
from contseg.tests.benchmarks.ratios import Against

pytest.importorskip("pytest_benchmark")

CLASSES, BATCH = 21, 4


class Images:
    """Four lying and four standing ones, each size a batch."""

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        sizes = [(height, width)] * BATCH + [(width, height)] * BATCH
        self.pairs = [
            (
                torch.from_numpy(rng.integers(0, 256, (3, *s), dtype=np.uint8)),
                torch.from_numpy(rng.integers(0, CLASSES, s, dtype=np.uint8)),
            )
            for s in sizes
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.pairs[i]


@pytest.mark.parametrize("backbone", ["resnet18", pytest.param("resnet101", marks=pytest.mark.gpu)])
def test_pass_over_full_images(against: Against, backbone: str) -> None:
    """Target: 1.1 times the forward passes."""
    gpu = backbone == "resnet101"
    if gpu and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=not gpu)
    images = Images(375, 500) if gpu else Images(192, 256)
    model = build_model(ModelConfig(backbone, weights="none"), [CLASSES]).eval().to(accelerator.device)
    seen = torch.ones(len(images), dtype=torch.bool)
    batches = [torch.stack([images[i + j][0] for j in range(BATCH)]) for i in (0, BATCH)]
    inputs = [Pixels().normalise(b.to(accelerator.device)) for b in batches]

    @torch.inference_mode()
    def forward() -> None:
        for batch in inputs:
            model(batch)
        _wait(accelerator)

    def suite() -> Any:
        return evaluate(
            model,
            argmax,
            images,
            seen,
            n_labels=CLASSES,
            n_channels=CLASSES,
            device=accelerator.device,
            batch=BATCH,
        )

    what = f"evaluation / forward, {backbone}"
    matrix = against(what, suite, forward, "1.10", faster=False, rounds=4, per=len(images))
    assert np.sum(matrix["seen"]) == sum(label.numel() for _, label in images.pairs)


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
