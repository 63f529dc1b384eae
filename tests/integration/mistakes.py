"""Mistakes of assembly, planted for the length of a test: every term by itself stays right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contseg.benchmark.train.trainer import StepTrainer
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, Method, StepContext, Term
from contseg.methods.importance import Fisher, QuadraticPenalty, RiemannianWalk
from contseg.methods.plop import LocalPod
from contseg.methods.sdr import Prototypes

Plant = Callable[[pytest.MonkeyPatch], None]


def lr(patch: pytest.MonkeyPatch) -> None:
    """The rate is that of the next update."""
    plain = StepTrainer._set_rate
    patch.setattr(StepTrainer, "_set_rate", lambda self, update: plain(self, update + 1))


def teacher(patch: pytest.MonkeyPatch) -> None:
    """The previous network normalises by the batch."""
    plain = StepTrainer._train_mode

    def train_mode(self: StepTrainer) -> None:
        plain(self)
        if self.old is not None:
            self.old.train()

    patch.setattr(StepTrainer, "_train_mode", train_mode)


def decay(patch: pytest.MonkeyPatch) -> None:
    """Offsets and normalisations are not decayed."""
    plain = StepTrainer._optimiser

    def optimiser(self: StepTrainer) -> None:
        plain(self)
        (group,) = self.optimizer.param_groups
        vectors = [p for p in group["params"] if p.ndim == 1]
        group["params"] = [p for p in group["params"] if p.ndim > 1]
        self.optimizer.add_param_group({"params": vectors, "lr": group["lr"], "weight_decay": 0.0})
        self.rates *= 2

    patch.setattr(StepTrainer, "_optimiser", optimiser)


def proto(patch: pytest.MonkeyPatch) -> None:
    """Prototypes are updated after the losses that read them."""
    plain = Method.active

    def active(self: Method, step: Step) -> dict[str, Term]:
        return dict(sorted(plain(self, step).items(), key=lambda item: isinstance(item[1], Prototypes)))

    patch.setattr(Method, "active", active)


def fisher(patch: pytest.MonkeyPatch) -> None:
    """Fisher information sees the gradient of the penalty too."""
    begin, add, observe = QuadraticPenalty.begin_step, QuadraticPenalty.after_backward, Fisher.after_backward
    penalties: dict[int, QuadraticPenalty] = {}

    def begin_step(self: QuadraticPenalty, ctx: StepContext) -> None:
        begin(self, ctx)
        penalties[id(self.importance)] = self

    def after_backward(self: Fisher, model: Any) -> None:
        if id(self) in penalties:
            add(penalties[id(self)], model)
        observe(self, model)

    patch.setattr(QuadraticPenalty, "begin_step", begin_step)
    patch.setattr(QuadraticPenalty, "after_backward", lambda self, model: None)
    patch.setattr(Fisher, "after_backward", after_backward)


def window(patch: pytest.MonkeyPatch) -> None:
    """RW counts the updates of a window from 1."""
    plain = RiemannianWalk.begin_step

    def begin_step(self: RiemannianWalk, ctx: StepContext) -> None:
        plain(self, ctx)
        self._updates = 1

    patch.setattr(RiemannianWalk, "begin_step", begin_step)


def reset(patch: pytest.MonkeyPatch) -> None:
    """The counts behind SDR's running prototypes begin anew at every step."""
    plain = Prototypes.begin_step

    def begin_step(self: Prototypes, ctx: StepContext) -> None:
        plain(self, ctx)
        if self.counts is not None:
            self.counts = torch.zeros_like(self.counts)

    patch.setattr(Prototypes, "begin_step", begin_step)


def reference(patch: pytest.MonkeyPatch) -> None:
    """Local POD leaves the last stage out."""
    plain = LocalPod.__call__

    def call(self: LocalPod, batch: Batch) -> torch.Tensor:
        out, old = (x._replace(stages=x.stages[:-1]) for x in (batch.out, batch.old))
        return plain(self, Batch(batch.images, batch.labels, out, old, batch.step, reduce=batch.reduce))

    patch.setattr(LocalPod, "__call__", call)


# what each of them spoils: a stored run and a method of it
SHORT, LONG = "sequential --fold --lr 0.1,0.02,0.02", "overlapped --epochs 2,3,3"
PLANTED: dict[Plant, tuple[str, str]] = {
    lr: (SHORT, "MiB"),
    teacher: (SHORT, "MiB"),
    decay: (SHORT, "MiB"),
    proto: (SHORT, "SDR[formulation=released]"),
    reset: (SHORT, "SDR[formulation=released]"),
    fisher: (LONG, "EWC"),
    window: (LONG, "RW[formulation=released]"),
    reference: (LONG, "PLOP[formulation=released]"),
}
