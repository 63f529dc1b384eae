"""The small problem on which the authors' trainers were run, and the suite's own run of it, update by update.

48 drawn images of 64x64, batch 4, float64, three steps (background + 3, + 2, + 1 classes), and a network with
D = 2048, since SDR's release has that number in its code. Everything else is the suite's: runner, trainer, terms.
"""

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.models import load
from contseg.benchmark.models.segmenter import IncrementalClassifier, Segmenter
from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import Config, TrainConfig
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.plan.run_config import RunConfig
from contseg.benchmark.store.files import Store
from contseg.benchmark.train import runner, step_runner, trainer
from contseg.datasets.base import SegmentationDataset
from contseg.methods.mib import UnbiasedCrossEntropy

D, E = 2048, 32
TASK = "[1,2,3|4,5|6]"


# --- the problem ----------------------------------------------------------------------------------------------------


def block(i: int, o: int, size: int = 3, stride: int = 2) -> nn.Sequential:
    """Convolution and batch normalisation; the weights are drawn from torch's generator."""
    conv = nn.Conv2d(i, o, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


class Encoder(nn.Module):
    """Images (B, 3, 64, 64) -> features (B, D, 8, 8) and four stages before their activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = block(3, 12), block(12, 16), block(16, 24), block(24, D, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        stages = [x]
        for layer in (self.a, self.b, self.c, self.d):
            stages.append(layer(stages[-1] if len(stages) == 1 else F.relu(stages[-1])))
        return F.relu(stages[-1]), tuple(stages[1:])


class Head(nn.Module):
    """Features (B, D, h, w) -> embedding (B, E, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(D, E, 1, bias=False), nn.BatchNorm2d(E)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def network(config: ModelConfig, groups: list[int], seed: int = 0) -> Segmenter:
    """In place of ``models.segmenter.build_model``: encoder and head always begin with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder, head = Encoder(), Head()
        for m in (*encoder.modules(), *head.modules()):
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return Segmenter(encoder, head, IncrementalClassifier(E, groups, seed))


class Mosaics(SegmentationDataset):
    """Tiles of 4x4 pixels, a colour for each label, and noise: 16 images have labels 1..3, 16 also 4, 5, 16 also 6."""

    class_names = ("background", "a", "b", "c", "d", "e", "f")

    def __init__(self) -> None:
        super().__init__("mosaics")
        rng = np.random.default_rng(5)
        colours = rng.integers(0, 120, (256, 3))
        self.pairs = {f"train_{i:03d}": _mosaic(rng, colours, min(i // 16, 2)) for i in range(48)}
        self.pairs |= {f"val_{i:03d}": _mosaic(rng, colours, 2) for i in range(4)}

    def ids(self, split: str) -> tuple[str, ...]:
        return tuple(name for name in self.pairs if name.startswith(split))

    def files(self, image_id: str, split: str) -> None:
        return None

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        image, label = self.pairs[image_id]
        return image.clone(), label.clone()


def _mosaic(rng: np.random.Generator, colours: np.ndarray, kind: int) -> tuple[Tensor, Tensor]:
    """Image (3, 64, 64) and label map (64, 64), uint8. The order of the draws is part of the problem."""
    tiles = rng.choice([0, 0, 0, 1, 2, 3] + [4, 5] * (kind >= 1) + [6, 6] * (kind >= 2), (16, 16))
    tiles[0, 0], tiles[5, 5] = 0, rng.integers(1, 4)
    if kind >= 1:
        tiles[9, 9], tiles[3, 3] = rng.integers(4, 6, 2)
    if kind >= 2:
        tiles[11, 4] = 6
    label = np.kron(tiles, np.ones((4, 4))).astype(np.uint8)
    image = (rng.integers(0, 136, (64, 64, 3)) + colours[label]).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)


# --- the suite's run of it ------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """One step: every update's weighted losses and rate, and the network's state at the end."""

    losses: list[dict[str, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    end: dict[str, Tensor] = field(default_factory=dict)


def replay(run: str, names: Collection[str], folder: Path) -> dict[str, list[Trained]]:
    """Train these methods as a stored run was; the steps of each by its name.

    ``run``: setup, ``--epochs a,b,c``, ``--lr a,b,c``, and ``--fold``: in the sequential setup kept old labels are
    folded into background, as the releases do and MiB here does not.
    """
    words = argparse.ArgumentParser()
    words.add_argument("setup")
    words.add_argument("--epochs", default="3,3,3")
    words.add_argument("--lr", default="0.01,0.001,0.001")
    words.add_argument("--fold", action="store_true")
    asked = words.parse_args(run.split())
    epochs, rates = (tuple(float(x) for x in numbers.split(",")) for numbers in (asked.epochs, asked.lr))
    config = Config(
        scenarios=(f"mosaics/{TASK}/{asked.setup}",),
        methods=tuple(names),
        seeds=(0,),
        protocol="sdr",
        model=ModelConfig("tiny", norm="batch"),
        train=TrainConfig(epochs=epochs, lr=rates, batch=(4,), crop=(64,), scale=(), flip="none", precision="double"),
        run=RunConfig(),
    )
    data, log = Mosaics(), dict[str, Trained]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "build_model", network)
        patch.setattr(step_runner, "StepTrainer", _recorder(log))
        if asked.fold:
            patch.setattr(UnbiasedCrossEntropy, "keeps_old", False)
        plan = make_plan(config, lambda name: data)
        outcome = runner.Runner(
            plan, Store(folder), runner.make_accelerator(config, folder), say=lambda line: None
        ).run()
    assert not outcome.failed, outcome.failed
    return {r.method: [log[cell.node.key] for cell in r.cells] for r in plan.runs}


def _recorder(log: dict[str, Trained]) -> type[trainer.StepTrainer]:
    """The step trainer, which writes down every update."""

    class Recorded(trainer.StepTrainer):
        def __init__(self, node: Any, *arguments: Any, **named: Any) -> None:
            self.trained = log[node.key] = Trained()
            super().__init__(node, *arguments, **named)

        def _update(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
            self.trained.rates.append(self.optimizer.param_groups[0]["lr"])
            losses = super()._update(batches)
            self.trained.losses.append({name: float(value) for name, value in losses.items()})
            return losses

        def run(self) -> dict[str, Any]:
            cost = super().run()
            self.trained.end = {name: value.clone() for name, value in self.model.state_dict().items()}
            return cost

    return Recorded
