"""Score a network on the test images: the full confusion matrix, every image counted exactly once.

This is the only evaluation loop: ``run``, ``report --verify`` and ``report --re-evaluate`` all use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contseg.benchmark.models.load import half
from contseg.benchmark.models.pixels import pixels_of
from contseg.benchmark.train.confusion import count_pairs, void_last
from contseg.benchmark.train.distributed import check_stop, several
from contseg.datasets.progress import progress
from contseg.methods.code import place
from contseg.methods.faults import MethodError
from contseg.methods.losses import sent


class Domains(NamedTuple):
    """The domain of each test image: names, and (N,) int64 the number of its name."""

    names: tuple[str, ...]
    of: Tensor


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Any],
    predict: Callable[..., Tensor],
    images: Any,
    seen: Tensor,
    *,
    n_labels: int,
    n_channels: int,
    device: torch.device,
    precision: str = "no",
    batch: int = 8,
    workers: int = 0,
    title: str = "evaluation",
    stop: Callable[[], bool] = lambda: False,
    domains: Domains | None = None,
) -> dict[str, Any]:
    """``{"seen": ..., "unseen": ...}``, each ``n_labels + 1`` rows (the last is void) of ``n_channels`` counts.

    ``predict(out, (H, W))`` gives channels (B, H, W). ``images`` gives (image (3, H, W) uint8, raw labels (H, W)
    uint8) by position; ``seen`` (N,) bool marks the test images that hold at least one seen class. The forward pass
    runs in ``precision``, that of training. Each process takes every P-th image. A batch holds images of one size, and
    no prediction leaves the device. With ``domains`` every image counts as seen, and ``"domains"`` has a matrix for
    each name; ``"seen"`` is their sum. Raises ``InterruptedStepError`` in all processes if ``stop()`` is true in one.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)
    own = range(rank, len(images), processes)
    # a block of rows, each with its void row, for images with and without a seen class, or for each domain
    part, parts = ((~seen).long(), 2) if domains is None else (domains.of, len(domains.names))
    counts = torch.zeros(parts, n_labels + 1, n_channels, dtype=torch.int64, device=device)
    loader: Iterable[tuple[int, Tensor, Tensor]] = DataLoader(
        _Numbered(images, own), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )  # pinned, an image that waits for others of its size is out of the workers' shared memory
    extremes: list[Tensor] = []  # smallest and largest class of every batch, read once at the end
    bar = progress(loader, title, unit="image", total=len(own), leave=False, disable=rank > 0)
    for positions, pixels, labels in _equal_sizes(bar, batch):
        if stop():
            break  # the other processes finish their share
        x = pixels_of(model).normalise(sent(pixels, device)).to(_dtype(model))
        if device.type == "cuda":
            x = x.contiguous(memory_format=torch.channels_last)
        labels = sent(labels, device)
        with half(device, precision):
            out = model(x)
        prediction = predict(out, (labels.shape[-2], labels.shape[-1]))
        if fault := _no_class_map(prediction, labels):
            raise MethodError(f"predict gives {fault} ({place(predict)})")
        prediction = prediction.long()
        extremes.append(torch.stack(prediction.aminmax()))
        prediction = prediction.clamp(0, n_channels - 1)
        block = sent(part[positions], device)
        rows = void_last(labels, n_labels) + block[:, None, None] * (n_labels + 1)
        counts += count_pairs(rows, prediction, parts * (n_labels + 1), n_channels).view_as(counts)
    check_stop(stop)
    _check_range(extremes, n_channels, predict)
    if several():
        dist.all_reduce(counts)
    if domains is None:
        return {"seen": counts[0].tolist(), "unseen": counts[1].tolist()}
    total, by_name = counts.sum(0), dict(zip(domains.names, counts.tolist(), strict=True))
    return {"seen": total.tolist(), "unseen": torch.zeros_like(total).tolist(), "domains": by_name}


def _no_class_map(prediction: Any, labels: Tensor) -> str:
    """What is wrong with a prediction for these labels; "" if nothing is. It would be miscounted, or not counted."""
    if not isinstance(prediction, Tensor):
        return f"a {type(prediction).__name__}: give the class map"
    if prediction.shape == labels.shape and not prediction.is_floating_point():
        return ""
    made = f"{str(prediction.dtype).removeprefix('torch.')} {tuple(prediction.shape)}"
    return f"{made}: a class map is int64 {tuple(labels.shape)}, of the size that it is given"


def _check_range(extremes: Iterable[Tensor], n_channels: int, predict: Callable[..., Tensor]) -> None:
    """``MethodError`` for a class that there is not."""
    for low, high in torch.stack([*extremes]).tolist() if extremes else ():
        if low < 0 or high >= n_channels:
            outside = low if low < 0 else high
            raise MethodError(f"predict gives class {outside}: there are 0 to {n_channels - 1} ({place(predict)})")


class _Numbered(Dataset[tuple[int, Tensor, Tensor]]):
    """This process's images, with their positions in the test set."""

    def __init__(self, images: Any, positions: range) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        image, label = self.images[self.positions[i]]
        return self.positions[i], image, label


def _equal_sizes(
    images: Iterable[tuple[int, Tensor, Tensor]], batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of images of one size, in order of arrival; incomplete batches come at the end."""
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = {}
    for item in images:
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
