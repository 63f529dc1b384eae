"""What several processes do together: sums, means, small objects, and stopping.

A sum's backward sums too, so that DDP's averaging gives the gradient of the one global batch.

Each of P processes forms the same global loss from reduced sums. Its gradient with respect to a reduced sum is the
same everywhere; summed over processes it is P times that; DDP divides by P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def several() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class AllProcesses:
    """``Reduce`` over all processes; where there is one it gives back what it got."""

    def __call__(self, x: Tensor) -> Tensor:
        if not several():
            return x
        total: Tensor = _Sum.apply(x)
        return total

    def max(self, x: Tensor) -> Tensor:
        if not several():
            return x.detach()
        highest = x.detach().clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return highest


over_processes = AllProcesses()


@torch.no_grad()
def average(x: Tensor) -> None:
    """Put the mean over processes in the place of ``x``."""
    if several():
        dist.all_reduce(x)
        x /= dist.get_world_size()


def gather(value: Any) -> list[Any]:
    """One small object of each process, in order of rank; of this process alone where there is one."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Whether the flag is set anywhere; the same answer everywhere."""
    return any(gather(flag)) if several() else flag


class InterruptedStepError(Exception):
    """SIGTERM or SIGINT was heeded: what is done is kept, what was under way goes on from its last checkpoint."""


def heed(stop: Callable[[], bool]) -> None:
    """Raise ``InterruptedStepError`` in every process if one of them was told to stop. Called by all."""
    if any_process(stop()):
        raise InterruptedStepError
