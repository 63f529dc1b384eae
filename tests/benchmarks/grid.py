"""A grid whose second steps can be trained update by update, for timing.

Images lie ready in memory, at the size of training: what is timed is the suite, not the reading of files, unless files
are given.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contseg.benchmark.plan.build import Plan, StepNode, make_plan
from contseg.benchmark.plan.config import Config, ModelConfig, TrainConfig
from contseg.benchmark.plan.run_config import RunConfig
from contseg.benchmark.store.files import Store
from contseg.benchmark.train.runner import Runner, make_accelerator
from contseg.benchmark.train.trainer import StepTrainer
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.scenario import VOID
from contseg.methods.registry import build_method
from contseg.tests.told import Told

CLASSES = 12  # with background, which may not lack


class Resident(Told):
    """Images of noise; blocks of labels in which every class occurs."""

    def __init__(self, n: int, height: int, width: int, classes: int = CLASSES) -> None:
        present = np.zeros((n, 256), bool)
        present[:, :classes] = True
        names = tuple(f"class {c}" for c in range(classes))
        super().__init__("resident", names, {"train": present, "val": present[:4]})
        g = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (n, height, width, 3), generator=g, dtype=torch.uint8).permute(0, 3, 1, 2)
        block = torch.arange((height // 8) * (width // 8)).remainder(classes).view(height // 8, width // 8)
        self.label = block.repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)

    def load(self, image_id: str, split: str) -> tuple[Tensor, Tensor]:
        return self.images[self.ids(split).index(image_id)], self.label


class Grid:
    """Some methods whose step 0 (of one update) is trained; ``trainer`` begins step 1 of one of them."""

    def __init__(
        self,
        out: Path,
        methods: tuple[str, ...],
        backbone: str = "resnet18",
        size: tuple[int, int] = (96, 128),
        batch: int = 8,
        precision: str = "no",
        compile_: bool = False,
        files: SegmentationDataset | None = None,
    ) -> None:
        """``files``: Pascal VOC, read while training and scaled at random; without it images lie ready."""
        scale = (0.5, 2.0) if files else ()
        train = TrainConfig(
            updates=(1, 1000), lr=(0.01, 0.001), batch=(batch,), crop=size, scale=scale, precision=precision
        )  # type: ignore[arg-type]
        config = Config(
            scenarios=("voc/15-5/overlapped" if files else "resident/6-5/overlapped",),
            methods=methods,
            model=ModelConfig(backbone=backbone, weights="none", norm="batch"),
            train=train,
            run=RunConfig(compile=compile_),
        )
        data = files or Resident(2 * batch, *size)
        self.store = Store(out)
        self.plan: Plan = make_plan(config, lambda _: data)
        self.runner = Runner(self.plan, self.store, make_accelerator(config, self.store.out), lambda _: None)
        first = [n for n in self.plan.nodes.values() if n.index == 0]
        outcome = self.runner.run([n.key for n in first])
        assert not outcome.failed, outcome.failed

    def node(self, method: str) -> StepNode:
        return next(n for n in self.plan.nodes.values() if n.index == 1 and n.method == method)

    def trainer(self, method: str) -> StepTrainer:
        node = self.node(method)
        return self.runner.steps.trainer(node, build_method(node.method))


def train(trainer: StepTrainer, updates: int) -> None:
    """So many updates by the trainer's own loop, with all that it does between them."""
    trainer.total = trainer.progress.update + updates
    trainer._loop()


def bare(trainer: StepTrainer, updates: int, distils: bool) -> Callable[[], None]:
    """The same modules and optimiser on one batch that stays on the device."""
    images, labels = next(trainer.step_batches.updates(0, 1))

    def run() -> None:
        for _ in range(updates):
            if distils:
                with torch.no_grad():
                    trainer.old(images)
            logits: Tensor = trainer.prepared(images).logits.float()
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            F.cross_entropy(logits, labels, ignore_index=VOID).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    return run
