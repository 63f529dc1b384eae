"""Score a network on the test images: the full confusion matrix, every image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmark.confusion import confusion
from benchmark.load import normalise
from benchmark.processes import several
from datasets.scenario import VOID


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Any],
    predict: Callable[..., Tensor],
    pictures: Any,
    seen: Tensor,
    n_labels: int,
    n_channels: int,
    accelerator: Accelerator,
    batch: int = 8,
    workers: int = 0,
    title: str = "evaluation",
) -> dict[str, list[list[int]]]:
    """``{"seen": ..., "unseen": ...}``, each ``n_labels + 1`` rows (the last is void) of ``n_channels`` counts.

    ``pictures`` gives (image (3, H, W) uint8, raw labels (H, W) uint8) by position; ``seen`` (N,) bool parts the test
    images with at least one seen class from the others. Each process takes every P-th picture; batches hold pictures of
    one size, and no prediction leaves the device.
    """
    device = accelerator.device
    own = range(accelerator.process_index, len(pictures), accelerator.num_processes)
    counts = torch.zeros(2, n_labels + 1, n_channels, dtype=torch.int64, device=device)
    loader: Iterable[tuple[int, Tensor, Tensor]] = DataLoader(
        _Numbered(pictures, own), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )
    bar = tqdm(loader, total=len(own), desc=title, leave=False, disable=not accelerator.is_main_process)
    for positions, images, labels in _equal_sizes(bar, batch):
        images = normalise(images.to(device, non_blocking=True)).to(_dtype(model))
        if device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        labels = labels.to(device, non_blocking=True)
        with accelerator.autocast():
            out = model(images)
        prediction = predict(out, (labels.shape[-2], labels.shape[-1]))
        group = seen[positions].to(device, non_blocking=True)
        # the two groups of pictures are two blocks of rows: labels of the second are shifted past the first's
        rows = torch.where(labels == VOID, n_labels, labels.long()) + (~group).long()[:, None, None] * (n_labels + 1)
        counts += confusion(rows, prediction, 2 * (n_labels + 1), n_channels).view_as(counts)
    if several():
        dist.all_reduce(counts)
    return {"seen": counts[0].tolist(), "unseen": counts[1].tolist()}


class _Numbered(Dataset[tuple[int, Tensor, Tensor]]):
    """The pictures of this process with their positions."""

    def __init__(self, pictures: Any, positions: range) -> None:
        self.pictures, self.positions = pictures, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        image, label = self.pictures[self.positions[i]]
        return self.positions[i], image, label


def _equal_sizes(
    pictures: Iterable[tuple[int, Tensor, Tensor]], batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of pictures of one size, in order of arrival; what is left over comes at the end."""
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = {}
    for item in pictures:
        group = waiting.setdefault(tuple(item[1].shape), [])
        group.append(item)
        if len(group) == batch:
            yield _stack(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield _stack(group)


def _stack(group: list[tuple[int, Tensor, Tensor]]) -> tuple[list[int], Tensor, Tensor]:
    return [g[0] for g in group], torch.stack([g[1] for g in group]), torch.stack([g[2] for g in group])


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = next(model.parameters()).dtype
    return dtype
