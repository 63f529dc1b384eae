"""Two processes, simulated by two threads that exchange sums: does a method give the same as in one process?

A sum carries the gradients of both threads, and the mean of both losses stands for DDP's averaging. So the gradients
with respect to the network's output are those of two real processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from contseg.benchmark.contract.toy_run import ImagesLabels, ToyStep, clones, map_output, tensors_of
from contseg.benchmark.models.load import term_states
from contseg.methods.base import Batch, Reduce, SegOutput


class Exchange:
    """Where two threads meet: each gives one tensor and gets both."""

    def __init__(self) -> None:
        self.slots: list[Any] = [None, None]
        self.barrier = threading.Barrier(2, timeout=60)

    def meet(self, rank: int, x: Tensor) -> list[Tensor]:
        self.slots[rank] = x
        self.barrier.wait()
        both = list(self.slots)
        self.barrier.wait()
        return both


@dataclass(frozen=True)
class Rank:
    """The ``Reduce`` of one of the two processes."""

    rank: int
    exchange: Exchange

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.exchange.meet(self.rank, x)
        return first + second

    def max(self, x: Tensor) -> Tensor:
        first, second = self.exchange.meet(self.rank, x.detach())
        return torch.maximum(first, second)

    @property
    def rows(self) -> slice:
        """The process's share of a batch of four."""
        return slice(2 * self.rank, 2 * self.rank + 2)


def own_batch() -> type[Batch]:
    """A ``Batch`` for one thread: Python 3.11's ``cached_property`` has one lock a class, a deadlock of two threads."""
    lazy = {n: cached_property(v.func) for n, v in vars(Batch).items() if isinstance(v, cached_property)}
    return type("Batch", (Batch,), lazy)


def on_both(work: Callable[[Rank], Any]) -> list[Any]:
    """Run ``work`` in both processes at the same time; returns both results, or raises the first error."""
    exchange, results = Exchange(), [None, None]
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Rank(rank, exchange))
        except Exception as error:
            errors.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        if isinstance(errors[0], threading.BrokenBarrierError):
            raise RuntimeError("the two processes form different numbers of sums: they would wait forever")
        raise errors[0]
    return results


def compare_split(whole: ToyStep, parts: list[ToyStep]) -> str:
    """The first difference between one process and two; "" if there is none. The steps must not be started.

    It compares the states after ``begin_step``, the classifier after ``warm_up``, the losses of a batch and their
    gradients with respect to the network's output, and the states after that batch and after ``end_step``.
    """
    whole.start()
    batch = whole.batch(0)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors_of(batch.out)]
    draws = whole.generator.get_state()

    def results(stage: ToyStep, rows: slice, reduce: Reduce) -> dict[str, Tensor]:
        found = {f"state {k} after begin_step": v for k, v in clones(term_states(stage.terms)).items()}
        if stage.method.warm_ups(stage.step):
            written = stage.model.classifier.state_dict()
            found |= {f"classifier.{k} after warm_up": v for k, v in clones(written).items()}
        stage.model.load_state_dict(whole.model.state_dict())  # its forward pass changed the running statistics
        generator = torch.Generator()
        generator.set_state(draws)
        cut = iter([leaf[rows] for leaf in leaves])
        out = map_output(batch.out, lambda _: next(cut))
        old: SegOutput | None = map_output(batch.old, lambda t: t[rows]) if batch.has_old else None
        mine = own_batch()(
            batch.images[rows],
            batch.labels[rows],
            out,
            old,
            stage.step,
            reduce=reduce,
            generator=generator,
            progress=batch.progress,
            memory=(batch.stored[rows], batch.stored_labels[rows]),
        )
        found |= {f"loss {k!r}": v for k, v in stage.method.losses(mine).items()}
        found |= {f"state {k} after a batch": v for k, v in clones(term_states(stage.terms)).items()}
        stage.model.eval()
        for term in stage.terms.values():
            term.end_step(stage.context._replace(reduce=reduce))
        return found | {f"state {k} after end_step": v for k, v in clones(term_states(stage.terms)).items()}

    def share(rank: Rank) -> dict[str, Tensor]:
        stage = parts[rank.rank]
        all_images = stage.context.loader

        def rows_of_pass(number: int = 0) -> Iterator[ImagesLabels]:
            return ((images[rank.rows], labels[rank.rows]) for images, labels in all_images(number))

        stage.context = stage.context._replace(reduce=rank, loader=rows_of_pass)
        return results(stage.start(), rank.rows, rank)

    one = results(whole, slice(None), whole.context.reduce)
    first, second = on_both(share)
    for name, value in one.items():
        mean = (first[name] + second[name]) / 2 if value.is_floating_point() else first[name]
        if not (close(value, mean) and close(first[name], second[name])):
            return name
        if value.requires_grad:
            pairs = zip(gradients(value, leaves), gradients(mean, leaves), strict=True)
            if not all(close(a, b) for a, b in pairs):
                return f"the gradient of {name}"
    return ""


def gradients(value: Tensor, leaves: Iterable[Tensor]) -> list[Tensor]:
    """d value / d leaf for each leaf; zero if the value does not depend on it."""
    leaves = list(leaves)
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of float64 sums in another order."""
    a, b = a.detach().double(), b.detach().double()
    scale = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-8, atol=1e-9 * scale + 1e-15, equal_nan=True)
