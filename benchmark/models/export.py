"""A trained step as a program that runs outside of contseg: images of bytes in, labels out.

``torch.export`` writes it: the network, its normalisation of images, and the prediction rule of the method, whatever
its hooks made of the network. Loading it needs torch alone, and no code of contseg.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.models.segmenter import ASPP, Segmenter
from contseg.benchmark.models.timm_encoder import TimmEncoder
from contseg.datasets.atomic import replacing
from contseg.datasets.errors import UserError
from contseg.methods.base import SegOutput

ABOUT = "about.json"  # the file inside that says what the labels are
EXAMPLE, OTHER = (2, 200, 264), (1, 97, 131)  # batch, height, width: traced, and tried afterwards


class Program(nn.Module):
    """Images (B, 3, H, W) uint8 -> labels of the data set (B, H, W) uint8. Batch and size are free.

    ``channels``: the label of every channel.
    """

    def __init__(
        self, network: Segmenter, predict: Callable[[SegOutput, tuple[int, int]], Tensor], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.network, self.predict = network, predict
        self.dtype = next(network.parameters()).dtype
        for name, three in zip(("mean", "std"), network.pixels, strict=True):
            self.register_buffer(name, torch.tensor(three).view(1, 3, 1, 1) * 255)
        self.register_buffer("labels", torch.tensor(channels, dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        x = ((images.float() - self.get_buffer("mean")) / self.get_buffer("std")).to(self.dtype)
        return self.get_buffer("labels")[self.predict(self.network(x), (images.shape[2], images.shape[3]))]


def export(network: Segmenter, predict: Any, channels: Sequence[int]) -> Any:
    """The ``ExportedProgram`` of a network in evaluation mode on the CPU. The network is changed: export it last.

    Raises ``UserError`` if torch cannot follow the method's code, or follows it to another result.
    """
    for module in network.modules():
        if isinstance(module, ASPP):
            module.window = window_mean  # type: ignore[method-assign,assignment]
        if isinstance(module, TimmEncoder):
            module.fit = partial(enlarged, multiple=module.multiple)  # type: ignore[method-assign]
    program = Program(network, predict, channels).eval()
    free = {"images": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own workings
            made = torch.export.export(program, (_drawn(*EXAMPLE),), dynamic_shapes=free, strict=False)
            other = _drawn(*OTHER)
            differ = (made.module()(other) != program(other)).float().mean().item()
    except Exception as error:  # torch has a class for every way in which code cannot be followed
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"torch.export cannot follow this step: {reason}") from error
    if differ > 1e-3:  # of the pixels; nearly equal logits may be rounded to either side
        raise UserError(f"torch.export gives other labels at {differ:.1%} of the pixels: this step cannot be exported")
    return made


def save(program: Any, path: Path, about: dict[str, Any]) -> None:
    """Write a program with what is to be known of it, atomically."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(file.getvalue())


def window_mean(x: Tensor, side: int) -> Tensor:
    """``segmenter.sliding_mean`` for a size that is not known yet: a product with the windows' shares on each axis."""
    for axis in (2, 3):
        n: Any = x.shape[axis]
        width: Any = torch.sym_min(side, n)
        at = torch.arange(n, device=x.device)
        start = (at - (width - 1) // 2).clamp(min=0)
        start = torch.minimum(start, torch.ones_like(at) * (n - width))
        inside = (at[None] >= start[:, None]) & (at[None] < start[:, None] + width)
        share = inside.to(x.dtype) / width
        x = share @ x if axis == 2 else x @ share.T
    return x


def enlarged(images: Tensor, multiple: int) -> Tensor:
    """``TimmEncoder.fit`` without the question whether it is needed: equal sizes are left as they are, bit by bit."""
    height, width = (-(-n // multiple) * multiple for n in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def _drawn(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)
