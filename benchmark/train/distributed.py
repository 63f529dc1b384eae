"""Communication between processes: sums, means, small objects, and stopping.

The backward pass of a sum is a sum as well, so that DDP's averaging gives the gradient of the one global batch: each of
P processes forms the same global loss from reduced sums. The gradient of this loss with respect to a reduced sum is
equal in all processes; its sum over processes is P times as large; DDP divides by P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = _copy(x)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = _copy(gradient)
        dist.all_reduce(total)
        return total


def _copy(x: Tensor) -> Tensor:
    """Contiguous, for NCCL refuses any other layout, such as that of a transposed matrix, which a clone keeps."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def several() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class AllProcesses:
    """``Reduce`` over all processes; the identity if there is only one."""

    def __call__(self, x: Tensor) -> Tensor:
        if not several():
            return x
        total: Tensor = _Sum.apply(x)
        return total

    def max(self, x: Tensor) -> Tensor:
        if not several():
            return x.detach()
        highest = _copy(x)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return highest


over_processes = AllProcesses()


@torch.no_grad()
def average(x: Tensor) -> None:
    """Replace ``x`` by its mean over processes."""
    if several():
        dist.all_reduce(x)
        x /= dist.get_world_size()


def average_statistics(norms: Iterable[Any]) -> None:
    """Average the running statistics of these batch normalisations over processes: all then hold the same network."""
    for statistics in (s for m in norms for s in (m.running_mean, m.running_var) if s is not None):
        average(statistics)


def gather(value: Any) -> list[Any]:
    """One small object from each process, in order of rank."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class InterruptedStepError(Exception):
    """SIGTERM or SIGINT arrived. Finished steps are kept; the current one can resume from its last checkpoint."""


def check_stop(stop: Callable[[], bool]) -> None:
    """Raise ``InterruptedStepError`` in every process if ``stop()`` is true in one of them. Called by all processes."""
    if any(gather(stop())):
        raise InterruptedStepError
