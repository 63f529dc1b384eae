"""Helpers for methods that change a network: normalisation layers, seeded initial weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import gcd
from typing import TypeVar

import torch
from torch import Tensor, nn

from contseg.datasets.errors import UserError

M = TypeVar("M", bound=nn.Module)
F = TypeVar("F", bound=Callable[..., None])


def is_norm(module: nn.Module) -> bool:
    """BatchNorm of any kind with running statistics (synchronised, frozen ...), or GroupNorm."""
    return isinstance(module, nn.GroupNorm) or hasattr(module, "running_mean")


def norm_like(model: nn.Module, channels: int) -> nn.Module:
    """A new normalisation layer of the same kind as in ``model``, for this number of channels.

    Norms of timm that include an activation are skipped.
    """
    found = next(m for m in model.modules() if is_norm(m) and not hasattr(m, "act"))
    if isinstance(found, nn.GroupNorm):
        return nn.GroupNorm(gcd(found.num_groups, channels), channels, found.eps)
    return type(found)(channels)


def own_heads(build: F) -> F:
    """Mark a ``build`` hook whose network does not predict by rows of a 1x1 classifier: no warm-up may write rows."""
    build.own_heads = True  # type: ignore[attr-defined]
    return build


def without_background(build: F) -> F:
    """Mark a ``build`` hook whose network does not use row 0, background's: no row may be made of it."""
    build.no_background = True  # type: ignore[attr-defined]
    return build


def refuse_other_heads(name: str, blocks: nn.ModuleList) -> None:
    """``UserError`` unless a classifier's blocks are rows of a 1x1 convolution, which the add-on ``name`` writes."""
    if not isinstance(getattr(blocks[0], "weight", None), Tensor):
        raise UserError(f"{name} writes the rows of a 1x1 classifier, and this method has other heads")


def without_norms(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of these modules, without those of normalisation layers."""
    norms = {id(p) for module in modules for m in module.modules() if is_norm(m) for p in m.parameters()}
    return [p for module in modules for p in module.parameters() if id(p) not in norms]


@contextmanager
def drawn_from(seed: int, purpose: str) -> Iterator[None]:
    """Weights created inside depend only on seed and purpose. Torch's global generator does not change."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)  # not the GPUs': fork_rng does not restore them
        yield


def beside(module: M, neighbour: nn.Module) -> M:
    """The module, on the device and in the precision of its neighbour."""
    return module.to(next(neighbour.parameters()))
