"""What is watched while a step trains, and changes nothing: losses that are not finite, gradients of terms, memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from contseg.benchmark.train.checkpoint import StepProgress
from contseg.benchmark.train.distributed import average
from contseg.benchmark.train.optimiser import parameters
from contseg.methods.base import Term
from contseg.methods.code import is_ours, place
from contseg.methods.faults import MethodError, no_loss


class NonFiniteLossError(Exception):
    """A loss is NaN or infinite; the message names its term and the update."""


def raise_if_bad(first: Mapping[str, float]) -> None:
    """``NonFiniteLossError`` for the earliest of the first bad updates, by term; 0: none."""
    bad = {n: int(u) for n, u in first.items() if u}
    if bad:
        name = min(bad, key=lambda n: bad[n])
        raise NonFiniteLossError(
            f"the loss {name!r} is not finite at update {bad[name]} "
            "(lower train.lr, or set train.clip=1); nothing earlier is lost"
        )


@contextlib.contextmanager
def backward_explained(terms: Mapping[str, Term], losses: Mapping[str, Tensor]) -> Iterator[None]:
    """``MethodError`` for a backward pass that fails by what a term has done: torch names none of its lines."""
    if not losses:
        raise MethodError(no_loss(terms, losses))
    try:
        yield
    except RuntimeError as error:
        if fault := no_loss(terms, losses):
            raise MethodError(f"{fault} ({place(terms[next(iter(losses))])})") from error
        if fault := _spoiled_graph(terms, str(error)):
            raise MethodError(fault) from error
        raise


def _spoiled_graph(terms: Mapping[str, Term], text: str) -> str:
    """Which term kept or overwrote what a gradient needs; "" if it is another error, or none of a plugin's."""
    theirs = {n: t for n, t in terms.items() if not is_ours(type(t).__module__)}
    if not theirs:
        return ""
    if "backward through the graph a second time" in text:
        for name, term in theirs.items():
            for kept, value in vars(term).items():
                inside = value.values() if isinstance(value, dict) else [value]
                if any(isinstance(v, Tensor) and v.grad_fn is not None for v in inside):
                    return f"{name!r} keeps {kept!r} with the gradients of an update: keep .detach() ({place(term)})"
    if "modified by an inplace operation" in text:
        who = ", ".join(f"{name!r} ({place(term)})" for name, term in theirs.items())
        return f"a tensor that a gradient needs was written to: write x * a and not x.mul_(a); look into {who}"
    return ""


# --- gradients of terms ---------------------------------------------------------------------------------------------


def spaced(points: int, total: int) -> frozenset[int]:
    """So many updates of 0 to ``total`` - 1, evenly spaced from the first to the last; all if there are fewer."""
    n = min(points, total)
    return frozenset(i * (total - 1) // max(1, n - 1) for i in range(n))


class GradientNorms:
    """At ``points`` updates of a step: the L2 norm of the gradient of every term, times its weight, in ``progress``.

    The gradient is that of the whole update, over all micro-batches and processes, with respect to all parameters that
    train, before ``train.clip``. What a term adds to the gradients itself (``after_backward``) is in its norm. Each
    term costs a backward pass of its own, and memory as large as these parameters. An update in fp16 whose gradients
    overflowed is left out: the optimiser skips it.
    """

    def __init__(
        self,
        points: int,
        total: int,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        progress: StepProgress,
    ) -> None:
        self.updates, self.parameters = spaced(points, total), parameters(optimizer)
        self.scaler, self.progress = scaler, progress
        self.gradients: dict[str, Tensor] = {}  # by term, flat, scaled as in fp16

    @property
    def due(self) -> bool:
        """Whether the present update is looked at."""
        return self.progress.update in self.updates

    def add(self, losses: Mapping[str, Tensor], parts: int) -> None:
        """Before the backward pass of a micro-batch, one of ``parts``. ``losses``: weighted, with their graph."""
        if not self.due:
            return
        with self._timed():
            for name, value in losses.items():
                here = self._gradient(self.scaler.scale(value) / parts)
                self.gradients[name] = self.gradients[name] + here if name in self.gradients else here

    @contextlib.contextmanager
    def adding(self, name: str) -> Iterator[None]:
        """Around ``after_backward`` of a term, where gradients are unscaled and averaged over processes."""
        before = self._flat([p.grad for p in self.parameters]) if self.due else None
        yield
        if before is not None:
            added = self._flat([p.grad for p in self.parameters]) - before
            self.gradients[name] = self.gradients.get(name, 0) + added * self.scaler.get_scale()

    def end(self, terms: Mapping[str, Term]) -> None:
        """After ``after_backward`` of all terms: note the norms of this update."""
        if not self.due:
            return
        with self._timed():
            for gradient in self.gradients.values():
                average(gradient)
            norms = {n: float(g.norm()) / self.scaler.get_scale() for n, g in self.gradients.items()}
            self.gradients = {}
        if not all(map(math.isfinite, norms.values())):
            return
        kept = self.progress.gradient_norms or {"updates": [], "weights": {}, "norms": {n: [] for n in norms}}
        kept["updates"].append(self.progress.update)
        kept["weights"] = {n: float(terms[n].weight) for n in norms}
        for name, norm in norms.items():
            kept["norms"][name].append(float(f"{norm:.6g}"))
        self.progress.gradient_norms = kept

    def _gradient(self, value: Tensor) -> Tensor:
        if not value.requires_grad:
            return self._flat([None] * len(self.parameters))
        return self._flat(torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True))

    def _flat(self, gradients: Iterable[Tensor | None]) -> Tensor:
        """One vector (P,) of all parameters' gradients; zero where there is none."""
        pairs = zip(self.parameters, gradients, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time to the part of the step's seconds that is called ``gradient_norms``."""
        seconds, began = self.progress.seconds, self._now()
        yield
        seconds["gradient_norms"] = seconds.get("gradient_norms", 0.0) + self._now() - began

    def _now(self) -> float:
        device = self.parameters[0].device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()


# --- memory ---------------------------------------------------------------------------------------------------------


def watch_memory(device: torch.device) -> None:
    """Reset the peak; on a CPU it is Linux's ``VmHWM`` of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Peak in MiB since ``watch_memory``: of a GPU's allocator, or on a CPU of this process; 0 if unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    return 0.0
