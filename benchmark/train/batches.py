"""The batches of a training step: each update's global batch, split over processes and micro-batches.

Shapes: ``B`` batch of this process, ``H, W`` crop.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from contseg.benchmark.models.pixels import Pixels
from contseg.benchmark.plan.build import StepNode
from contseg.benchmark.plan.config import Config
from contseg.benchmark.plan.model_config import backbone_of
from contseg.benchmark.train.rng import HalfStored, Order
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.index import usable_cores
from contseg.datasets.step_dataset import StepImages, collate, room
from contseg.datasets.transforms import TrainTransform
from contseg.methods.batch import divided
from contseg.methods.losses import sent

PREFETCH = 4  # batches that a loader process is ahead


class StepBatches:
    """The training images and labels of a step, in batches on the device."""

    def __init__(
        self,
        node: StepNode,
        config: Config,
        dataset: SegmentationDataset,
        accelerator: Accelerator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        train, self.config, self.device, self.dtype = node.train, config, accelerator.device, dtype
        transform = TrainTransform(train.size, train.window_scale, flip=train.flip, jitter=train.jitter)
        keep = 1 / processes_here() if config.run.keep_decoded else 0.0
        self.images = StepImages(dataset, node.view, transform, seed=node.seed, step=node.step.index, keep=keep)
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.size, self.batch, self.parts = train.size, train.batch[0], train.accumulate
        backbone = backbone_of(config.model.backbone)
        self.pixels = Pixels(backbone.mean, backbone.std)
        self.current, self.memory = len(node.view.ids), node.memory
        self.order = self._order(node)
        self.passes = Order(self.current, self.batch, node.seed, node.step.index)  # outside the updates

    def _order(self, node: StepNode) -> Order | HalfStored:
        """What each update sees; with stored images in its slots, or among the images of the step."""
        stored = node.memory.slots(self.batch) if node.memory else 0
        place = node.seed, node.step.index
        if not stored:
            return Order(node.epoch_images, self.batch, *place)
        memory = Order(len(node.view.stored), stored, *place, purpose="memory order")
        return HalfStored(Order(self.current, self.batch - stored, *place), memory, self.parts)

    def updates(self, start: int, total: int) -> Iterator[tuple[Tensor, ...]]:
        """All micro-batches from update ``start`` on: images (B, 3, H, W) normalised, labels (B, H, W) int64.

        With memory also which images are stored (B,) bool, and the labels of these (B, H, W).
        """
        shares = _Shares(self.order, range(start, total), self.parts, self.rank, self.world)
        if self.memory is None:
            yield from self._load(shares)
            return
        for share, (images, labels) in zip(shares, self._load(shares), strict=True):
            stored = sent(torch.tensor([i >= self.current for _, i in share], dtype=torch.bool), self.device)
            yield images, *divided(labels, stored, self.memory.apart)

    def whole_pass(self, number: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all images of the step, with training augmentation and its own random numbers; no stored ones.

        Pass 0 is in the order of the images. The others, 1, 2, ..., are each in an order of their own.

        Every process gets the same number of batches; the last batch also holds the remaining images. If a step has
        fewer images than there are processes, some processes get an empty batch.
        """
        n, epoch = self.current, -1 - number
        order = self.passes.permutation(epoch) if number else range(n)
        starts = [i * self.batch for i in range(max(1, n // self.batch))]
        ends = [*starts[1:], n]
        return self._load(
            [[(epoch, i) for i in order[a:b]][self.rank :: self.world] for a, b in zip(starts, ends, strict=True)]
        )

    def _load(self, batches: Iterable[list[tuple[int, int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        share = self.batch // self.parts // self.world
        workers = loader_processes(self.config.run.workers, self.device, share, self.size)
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            self.images,
            batch_sampler=batches,  # type: ignore[arg-type]  # its indices are (epoch, position)
            collate_fn=self._collate,
            generator=torch.Generator(),  # otherwise it draws its workers' seed from the global generator
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=PREFETCH if workers else None,
        )
        for images, labels in loader:
            images = self.pixels.normalise(images.to(self.device, non_blocking=True)).to(self.dtype)
            if self.device.type == "cuda":
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels.to(self.device, non_blocking=True).long()

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if samples:
            return collate(samples)
        return torch.empty(0, 3, *self.size, dtype=torch.uint8), torch.empty(0, *self.size, dtype=torch.uint8)


def processes_here() -> int:
    """Training processes on this machine: those of this program (torchrun's variable) times a launcher's workers."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * int(os.environ.get("CONTSEG_WORKERS", 1))


def cores_here() -> int:
    """Cores of this training process: of a Slurm job its own, to which Slurm may have bound it; else its share."""
    usable = usable_cores()
    own = int(os.environ.get("CONTSEG_CORES", 0))  # benchmark/train/slurm_job.py
    return min(usable, own) if own else usable // processes_here()


def loader_processes(chosen: int, device: torch.device, batch: int, size: tuple[int, int]) -> int:
    """The number of loader processes; -1 chooses it, for batches of so many images of a size. No number depends on it.

    On a CPU none: decoding beside the network gains nothing there. On a GPU the cores of this process but one, at most
    16, and as many as have room for their batches in half of the shared memory that is free (a container's is small).
    One loader serves a whole step, so its processes live as long; they stay ``PREFETCH`` batches ahead each.
    """
    if chosen >= 0 or device.type == "cpu":
        return max(chosen, 0)
    bytes_ahead = PREFETCH * max(batch, 1) * 4 * size[0] * size[1]
    return max(0, min(16, cores_here() - 1, room() // (2 * processes_here() * bytes_ahead)))


@dataclass(frozen=True)
class _Shares:
    """This process's share of every micro-batch: every P-th image of it."""

    order: Order | HalfStored
    updates: range
    parts: int  # micro-batches of an update
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.updates) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.order.batch // self.parts
        for update in self.updates:
            batch = self.order[update]
            for part in range(self.parts):
                yield batch[part * size : (part + 1) * size][self.rank :: self.world]
