"""What methods that change a network need to know of its modules: normalisation layers, seeded initial weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import gcd
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def is_norm(module: nn.Module) -> bool:
    """BatchNorm of any make (with statistics: synchronised, frozen ...) or GroupNorm."""
    return isinstance(module, nn.GroupNorm) or hasattr(module, "running_mean")


def norm_like(model: nn.Module, channels: int) -> nn.Module:
    """A fresh normalisation layer of the kind that ``model`` has, for so many channels. timm's own activate as well."""
    found = next(m for m in model.modules() if is_norm(m) and not hasattr(m, "act"))
    if isinstance(found, nn.GroupNorm):
        return nn.GroupNorm(gcd(found.num_groups, channels), channels, found.eps)
    return type(found)(channels)


def without_norms(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of these modules but for those of normalisation layers."""
    norms = {id(p) for module in modules for m in module.modules() if is_norm(m) for p in m.parameters()}
    return [p for module in modules for p in module.parameters() if id(p) not in norms]


@contextmanager
def drawn_from(seed: int, purpose: str) -> Iterator[None]:
    """Weights made inside are a function of seed and purpose; torch's global generator is left as it was."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)  # no GPU's: it would not be given back
        yield


def beside(module: M, neighbour: nn.Module) -> M:
    """The module on the device and in the precision of its neighbour."""
    return module.to(next(neighbour.parameters()))
