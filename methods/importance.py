"""EWC, PI and RW: a quadratic penalty on the weights that mattered before.

    penalty = sum_p nu(w_p) (theta_p - theta_p^ref)^2            over the tensors of the previous model

Observers measure the importance ``w`` from the data gradients of every update, at step 0 as well; the penalty adds
its own gradient, in closed form, once all of them have read theirs. ``theta^ref`` are the weights with which the
step begins, after the new rows are initialised; ``nu`` is the min-max normalisation of each tensor.

- EWC: Kirkpatrick et al., PNAS 2017, arXiv 1612.00796 (F-EWC)
- PI: Zenke et al., ICML 2017, arXiv 1703.04200 (F-PI)
- RW: Chaudhry et al., ECCV 2018, arXiv 1801.10112 (F-RW)

The releases of MiB, SDR and PLOP share one implementation of the three, which departs from the papers:

- PI multiplies a displacement by the gradient at its end, and the last update is missed
- RW multiplies the displacement of ``every`` updates by the gradient of one of them
- a tensor without gradient stops EWC with an error; here its importance stays as it is

``formulation="released"`` reproduces the first two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from methods.base import Batch, CrossEntropy, Method, StepContext, Term
from methods.registry import register_method

Formulation: TypeAlias = Literal["intended", "released"]
ByName: TypeAlias = dict[str, Tensor]


@dataclass(eq=False)
class Importance(Term):
    """An observer that measures how much each weight matters."""

    observes: ClassVar[bool] = True
    uses_setup: ClassVar[bool] = False

    def measured(self) -> ByName:
        """The importance at the end of the previous step, by parameter name. Not written to later."""
        raise TypeError(f"{type(self).__name__} has no measured()")


@dataclass(eq=False)
class Fisher(Importance):
    """Diagonal Fisher information: F <- alpha g^2 + (1 - alpha) F at every update, from 1 in new tensors (F-EWC)."""

    state: ClassVar[tuple[str, ...]] = ("fisher",)
    alpha: float = 0.9  # weight of the new gradient: run.py of MiB
    fisher: ByName = field(default_factory=dict, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        old = _names(ctx.old_model)
        self.fisher = {
            name: self.fisher[name] if name in old else torch.ones_like(theta)
            for name, theta in _weights(ctx.model).items()
        }

    def after_backward(self, model: Any) -> None:
        gradients = _gradients(model)
        fisher, g = _pick(self.fisher, gradients), list(gradients.values())
        torch._foreach_mul_(fisher, 1 - self.alpha)
        torch._foreach_addcmul_(fisher, g, g, self.alpha)

    def measured(self) -> ByName:
        return _copy(self.fisher)


@dataclass(eq=False)
class PathIntegral(Importance):
    """Share of each weight in the fall of the loss, over the square of its way (F-PI).

    change = sum_t g_t (theta_t - theta_{t+1});  score <- max(0, change / ((theta_T - theta^ref)^2 + 1e-20)) + score
    """

    state: ClassVar[tuple[str, ...]] = ("score", "change", "start", "theta", "gradient")
    formulation: Formulation = "intended"
    score: ByName = field(default_factory=dict, init=False, repr=False)
    change: ByName = field(default_factory=dict, init=False, repr=False)  # since start
    start: ByName = field(default_factory=dict, init=False, repr=False)
    theta: ByName = field(default_factory=dict, init=False, repr=False)  # at the last update seen, with its gradient
    gradient: ByName = field(default_factory=dict, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        self.score = {name: self.score[name] for name in _names(ctx.old_model)}
        self._restart(_copy(_weights(ctx.model)))
        self.theta, self.gradient = {}, {}

    def after_backward(self, model: Any) -> None:
        theta, gradient = _copy(_weights(model)), _copy(_gradients(model))
        self._advance(self.theta, theta, self.gradient if self.formulation == "intended" else gradient)
        self.theta, self.gradient = theta, gradient

    def end_step(self, ctx: StepContext) -> None:
        theta = _weights(ctx.model)
        if self.formulation == "intended":
            self._advance(self.theta, theta, self.gradient)
        gain = {n: self.change[n] / ((theta[n] - self.start[n]).square() + 1e-20) for n in self.change}
        self.score = {n: self.score.get(n, 0) + g.clamp(min=0) for n, g in gain.items()}
        self.change, self.start, self.theta, self.gradient = {}, {}, {}, {}

    def measured(self) -> ByName:
        return self.score

    def _advance(self, before: ByName, after: ByName, gradient: ByName) -> None:
        """change += gradient (before - after)"""
        names = [name for name in gradient if name in before]
        if names:
            way = torch._foreach_sub(_pick(before, names), _pick(after, names))
            torch._foreach_addcmul_(_pick(self.change, names), _pick(gradient, names), way)

    def _restart(self, theta: ByName) -> None:
        self.start, self.change = theta, {name: torch.zeros_like(p) for name, p in theta.items()}


@dataclass(eq=False)
class RiemannianWalk(PathIntegral):
    """Loss change over distance in the metric of the Fisher information, summed over windows of updates (F-RW).

    running += change / (1/2 F (theta_{t-n} - theta_t)^2 + 1e-8) every n updates, with F as it was before the
    gradient at t: list this term before ``fisher``. The saved score is max(0, running), averaged with the one before.
    """

    state: ClassVar[tuple[str, ...]] = (*PathIntegral.state, "running", "updates")
    fisher: Fisher = field(default_factory=Fisher)
    every: int = 10  # run.py of MiB
    running: ByName = field(default_factory=dict, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        super().begin_step(ctx)
        self.running = {name: torch.zeros_like(p) for name, p in self.start.items()}
        self._updates = 0

    def after_backward(self, model: Any) -> None:
        closes = self._updates > 0 and self._updates % self.every == 0
        if self.formulation == "intended":
            super().after_backward(model)
        elif closes:
            self._advance(self.start, _weights(model), _gradients(model))
        if closes:
            self._close_window(model)
        self._updates += 1

    def end_step(self, ctx: StepContext) -> None:
        if self.formulation == "intended":
            self._advance(self.theta, _weights(ctx.model), self.gradient)
            self._close_window(ctx.model)
        self.score = {
            name: (self.score[name] + s.clamp(min=0)) / 2 if name in self.score else s.clamp(min=0)
            for name, s in self.running.items()
        }
        self.change, self.start, self.theta, self.gradient, self.running = {}, {}, {}, {}, {}

    def _close_window(self, model: Any) -> None:
        theta = _copy(_weights(model))
        for name, change in self.change.items():
            way = (self.start[name] - theta[name]).square()
            self.running[name] += change / (self.fisher.fisher[name] * way / 2 + 1e-8)
        self._restart(theta)

    @property
    def updates(self) -> Tensor:
        """The count of updates as a piece of state; kept as a number, so that no update waits for the device."""
        return torch.tensor(self._updates)

    @updates.setter
    def updates(self, value: Tensor | None) -> None:
        self._updates = 0 if value is None else int(value)

    _updates: int = field(default=0, init=False, repr=False)


@dataclass(eq=False)
class QuadraticPenalty(Term):
    """sum_p nu(w_p) (theta_p - theta_p^ref)^2; with several observers, nu(w_p) is summed over them.

    The value carries no gradient: ``after_backward`` adds 2 weight nu(w) (theta - theta^ref), once per update.
    """

    uses_setup: ClassVar[bool] = False
    importance: tuple[Importance, ...]
    normalise: bool = True
    # of the step under way, all fixed by begin_step: the old tensors, where they began, and how much they matter
    parameters: list[Tensor] = field(default_factory=list, init=False, repr=False)
    reference: list[Tensor] = field(default_factory=list, init=False, repr=False)
    factors: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        old, measured = _names(ctx.old_model), [i.measured() for i in self.importance]
        shared = {name: p for name, p in ctx.model.named_parameters() if name in old}
        self.parameters = list(shared.values())
        self.reference = [p.detach().clone() for p in self.parameters]
        nu = min_max if self.normalise else torch.clone
        self.factors = [torch.stack([nu(m[name]) for m in measured]).sum(0) for name in shared]

    def __call__(self, batch: Batch) -> Tensor:
        way = self._way()
        torch._foreach_mul_(way, way)
        torch._foreach_mul_(way, self.factors)
        return torch.stack([w.sum() for w in way]).sum()

    def after_backward(self, model: Any) -> None:
        moved = [(p.grad, f, w) for p, f, w in zip(self.parameters, self.factors, self._way(), strict=True)]
        gradients, factors, way = zip(*(m for m in moved if m[0] is not None), strict=True)
        torch._foreach_addcmul_(gradients, factors, way, 2 * self.weight)

    def _way(self) -> list[Tensor]:
        return list(torch._foreach_sub([p.detach() for p in self.parameters], self.reference))


def min_max(x: Tensor) -> Tensor:
    """nu: a tensor of importances brought to [0, 1]; 0 where its values are equal up to the last digit."""
    low, high = x.aminmax()
    return torch.where(high - low > torch.finfo(x.dtype).eps * high, (x - low) / (high - low + 1e-8), 0)


def _names(model: Any | None) -> set[str]:
    return set() if model is None else {name for name, _ in model.named_parameters()}


def _weights(model: Any) -> ByName:
    return {name: p.detach() for name, p in model.named_parameters()}


def _gradients(model: Any) -> ByName:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _copy(tensors: ByName) -> ByName:
    return {name: t.clone() for name, t in tensors.items()}


def _pick(tensors: ByName, names: Iterable[str]) -> list[Tensor]:
    return [tensors[name] for name in names]


@register_method("EWC", paper="Kirkpatrick et al., PNAS 2017, arXiv 1612.00796")
def ewc(weight: float = 500.0, alpha: float = 0.9, normalise: bool = True) -> Method:
    """Elastic weight consolidation: weights of high Fisher information are held.

    weight: of the penalty; 500 in MiB's release, 1000 in SDR's, 100 in PLOP's
    alpha: weight of the new squared gradient in the running Fisher information; 0.9 in the releases
    normalise: min-max normalisation of each tensor's importance; on in the releases
    """
    fisher = Fisher(alpha)
    penalty = QuadraticPenalty((fisher,), normalise, weight=weight)
    return _method("EWC", {"fisher": fisher}, penalty)


@register_method("PI", paper="Zenke et al., ICML 2017, arXiv 1703.04200")
def pi(weight: float = 500.0, normalise: bool = True, formulation: Formulation = "intended") -> Method:
    """Path integral (synaptic intelligence): weights that brought the loss down are held.

    weight: of the penalty; 500 in MiB's release, 1000 in SDR's, 100 in PLOP's
    normalise: min-max normalisation of each tensor's importance; on in the releases
    formulation: released takes each gradient after its move and misses the last update
    """
    path = PathIntegral(formulation)
    penalty = QuadraticPenalty((path,), normalise, weight=weight)
    return _method("PI", {"path": path}, penalty)


@register_method("RW", paper="Chaudhry et al., ECCV 2018, arXiv 1801.10112")
def rw(
    weight: float = 100.0,
    alpha: float = 0.9,
    every: int = 10,
    normalise: bool = True,
    formulation: Formulation = "intended",
) -> Method:
    """Riemannian walk: EWC's importance plus the loss change per distance in its metric.

    weight: of the penalty; 100 in MiB's and PLOP's releases, 1000 in SDR's
    alpha: weight of the new squared gradient in the running Fisher information; 0.9 in the releases
    every: updates between two scores; 10 in the releases
    normalise: min-max normalisation of each tensor's importance; on in the releases
    formulation: released scores one gradient in ``every``, and misses the last updates
    """
    fisher = Fisher(alpha)
    walk = RiemannianWalk(formulation, fisher, every)
    penalty = QuadraticPenalty((fisher, walk), normalise, weight=weight)
    return _method("RW", {"walk": walk, "fisher": fisher}, penalty)


def _method(name: str, observers: dict[str, Term], penalty: QuadraticPenalty) -> Method:
    return Method(
        name,
        first={"ce": CrossEntropy(), **observers},
        terms={"ce": CrossEntropy(), **observers, "penalty": penalty},
    )
