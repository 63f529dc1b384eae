"""EWC, PI and RW: a quadratic penalty on changes of weights that were important before.

    penalty = sum_p nu(w_p) (theta_p - theta_p^ref)^2            over the tensors of the previous model

Observers measure the importance ``w`` from the data gradients of every update, also at step 0. After they have read the
gradients, the penalty adds its own gradient in closed form. ``theta^ref``: the weights at the start of the step, after
the initialisation of the new rows; ``nu``: the min-max normalisation of each tensor.

- EWC: Kirkpatrick et al., PNAS 2017, arXiv 1612.00796 (F-EWC)
- PI: Zenke et al., ICML 2017, arXiv 1703.04200 (F-PI)
- RW: Chaudhry et al., ECCV 2018, arXiv 1801.10112 (F-RW)

The releases of MiB, SDR and PLOP share one implementation of the three, which differs from the papers:

- PI multiplies a displacement by the gradient at its end, and misses the last update
- RW multiplies the displacement of ``every`` updates by the gradient of one of them
- EWC stops with an error at a tensor without gradient; here the importance of that tensor does not change

``formulation="released"`` reproduces the first two.

The penalty acts like a spring of stiffness 2 weight nu, with nu up to 1 (RW: 2). SGD with Nesterov momentum 0.9
diverges if learning rate x stiffness > 1.36 (3.8 without Nesterov): keep weight below 0.68 / learning rate (RW: 0.34 /
learning rate). The weights of the releases fit the learning rates of 1e-3 and 1e-4 that they use after step 0. At
1e-2, EWC and PI need a weight below 68.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from contseg.methods.base import Batch, CrossEntropy, Method, StepContext, Term
from contseg.methods.ranges import Count, Search, Share, Weight
from contseg.methods.registry import register_method

Formulation: TypeAlias = Literal["intended", "released"]
ByName: TypeAlias = dict[str, Tensor]


@dataclass(eq=False)
class Importance(Term):
    """An observer that measures how important each weight is."""

    observes = True
    uses_setup = False

    def measured(self) -> tuple[ByName, ...]:
        """The importance measured at earlier steps, by parameter name. Read in ``begin_step``; not changed later."""
        raise TypeError(f"{type(self).__name__} has no measured()")


@dataclass(eq=False)
class Fisher(Importance):
    """Diagonal Fisher information: F <- alpha g^2 + (1 - alpha) F at every update; new tensors start at 1 (F-EWC)."""

    state = ("fisher",)
    alpha: float = 0.9  # weight of the new gradient: run.py of MiB
    fisher: ByName = field(default_factory=dict, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        self.fisher = _grown(self.fisher, ctx)

    def after_backward(self, model: Any) -> None:
        _observe_gradients(self.fisher, model, self.alpha)

    def measured(self) -> tuple[ByName, ...]:
        return (_copy(self.fisher),)


@dataclass(eq=False)
class PathIntegral(Importance):
    """Contribution of each weight to the decrease of the loss, divided by its squared displacement (F-PI).

    change = sum_t g_t (theta_t - theta_{t+1});  score <- max(0, change / ((theta_T - theta^ref)^2 + 1e-20)) + score
    """

    state: ClassVar[tuple[str, ...]] = ("score", "change", "start", "theta", "gradient")
    formulation: Formulation = "intended"
    score: ByName = field(default_factory=dict, init=False, repr=False)
    change: ByName = field(default_factory=dict, init=False, repr=False)  # since start
    start: ByName = field(default_factory=dict, init=False, repr=False)
    theta: ByName = field(default_factory=dict, init=False, repr=False)  # at the last update seen, with its gradient
    gradient: ByName = field(default_factory=dict, init=False, repr=False)

    @property
    def reads_moves(self) -> bool:
        """Whether ``end_step`` reads the weights that the last update left: no fusion may come before it."""
        return True

    def begin_step(self, ctx: StepContext) -> None:
        self.score = {name: self.score[name] for name in _names(ctx.old_model)}
        self._restart(ctx.model)
        self.theta, self.gradient = {}, {}

    def after_backward(self, model: Any) -> None:
        if not self.theta:  # the first update: a warm-up may have written weights since ``begin_step``
            self._restart(model)
        theta, gradient = _copy(_weights(model)), _copy(_gradients(model))
        self._advance(self.theta, theta, self.gradient if self.formulation == "intended" else gradient)
        self.theta, self.gradient = theta, gradient

    def end_step(self, ctx: StepContext) -> None:
        theta = _weights(ctx.model)
        if self.formulation == "intended":
            self._advance(self.theta, theta, self.gradient)
        gain = {n: c / ((theta[n] - self.start[n]).square() + 1e-20) for n, c in self.change.items()}
        self.score = {n: g.clamp(min=0) + self.score.get(n, 0) for n, g in gain.items()}
        self.change, self.start, self.theta, self.gradient = {}, {}, {}, {}

    def measured(self) -> tuple[ByName, ...]:
        return (self.score,)

    def _advance(self, before: ByName, after: ByName, gradient: ByName) -> None:
        """change += gradient (before - after)"""
        names = [name for name in gradient if name in before]
        if names:
            way = torch._foreach_sub(_pick(before, names), _pick(after, names))
            torch._foreach_addcmul_(_pick(self.change, names), _pick(gradient, names), way)

    def _restart(self, model: Any) -> None:
        self.start = _copy(_weights(model))
        self.change = {name: torch.zeros_like(p) for name, p in self.start.items()}


@dataclass(eq=False)
class RiemannianWalk(PathIntegral):
    """EWC's Fisher information, plus the loss change per distance in its metric over windows of n updates (F-RW).

    walk += change / (F (theta_{t-n} - theta_t)^2 / 2 + 1e-8) every n updates, with F before the gradient at t;
    score <- max(0, walk); in old tensors the mean of this value and the earlier score.
    """

    state = (*PathIntegral.state, "fisher", "walk", "updates")
    alpha: float = 0.9  # weight of the new gradient in F: run.py of MiB
    every: int = 10  # run.py of MiB
    fisher: ByName = field(default_factory=dict, init=False, repr=False)
    walk: ByName = field(default_factory=dict, init=False, repr=False)

    @property
    def reads_moves(self) -> bool:
        return self.formulation == "intended"

    def begin_step(self, ctx: StepContext) -> None:
        super().begin_step(ctx)
        self.fisher = _grown(self.fisher, ctx)
        self.walk = {name: torch.zeros_like(p) for name, p in self.start.items()}
        self._updates = 0

    def after_backward(self, model: Any) -> None:
        closes = self._updates > 0 and self._updates % self.every == 0
        if self.formulation == "intended":
            super().after_backward(model)
        elif not self._updates:
            self._restart(model)
        elif closes:
            self._advance(self.start, _weights(model), _gradients(model))
        if closes:
            self._close_window(model)
        _observe_gradients(self.fisher, model, self.alpha)
        self._updates += 1

    def end_step(self, ctx: StepContext) -> None:
        if self.formulation == "intended":
            self._advance(self.theta, _weights(ctx.model), self.gradient)
            self._close_window(ctx.model)
        walked = {name: s.clamp(min=0) for name, s in self.walk.items()}
        self.score = {n: (s + self.score[n]) / 2 if n in self.score else s for n, s in walked.items()}
        self.change, self.start, self.theta, self.gradient, self.walk = {}, {}, {}, {}, {}

    def measured(self) -> tuple[ByName, ...]:
        return _copy(self.fisher), self.score

    def _close_window(self, model: Any) -> None:
        theta = _weights(model)
        for name, change in self.change.items():
            way = (self.start[name] - theta[name]).square()
            self.walk[name] += change / (self.fisher[name] * way / 2 + 1e-8)
        self._restart(model)

    @property
    def updates(self) -> Tensor:
        """The number of updates, as a tensor of the state. It is kept as an int, so no update waits for the device."""
        return torch.tensor(self._updates)

    @updates.setter
    def updates(self, value: Tensor | None) -> None:
        self._updates = 0 if value is None else int(value)

    _updates: int = field(default=0, init=False, repr=False)


@dataclass(eq=False)
class QuadraticPenalty(Term):
    """sum_p nu(w_p) (theta_p - theta_p^ref)^2; if importance is measured in two ways, the two nu are added.

    The value has no gradient: ``after_backward`` adds 2 weight nu(w) (theta - theta^ref), once per update.
    """

    uses_setup = False
    importance: Importance
    normalise: bool = True
    # set by begin_step: the tensors of the previous model, their start values, and their importance
    parameters: list[Tensor] = field(default_factory=list, init=False, repr=False)
    reference: list[Tensor] = field(default_factory=list, init=False, repr=False)
    factors: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin_step(self, ctx: StepContext) -> None:
        old, measured = _names(ctx.old_model), self.importance.measured()
        shared = {name: p for name, p in ctx.model.named_parameters() if name in old}
        self.parameters = list(shared.values())
        self.reference = [p.detach().clone() for p in self.parameters]
        nu = min_max if self.normalise else torch.clone
        self.factors = [_as(p, torch.stack([nu(m[name]) for m in measured]).sum(0)) for name, p in shared.items()]

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
    """nu: a tensor of importances scaled to [0, 1]; 0 if its values are equal up to rounding."""
    low, high = x.aminmax()
    return torch.where(high - low > torch.finfo(x.dtype).eps * high, (x - low) / (high - low + 1e-8), 0)


def _names(model: Any | None) -> set[str]:
    return set() if model is None else {name for name, _ in model.named_parameters()}


def _weights(model: Any) -> ByName:
    return {name: p.detach() for name, p in model.named_parameters()}


def _gradients(model: Any) -> ByName:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _grown(fisher: ByName, ctx: StepContext) -> ByName:
    """Fisher information for the tensors of this step's model, 1 in new ones. A copy: it is updated in place."""
    old = _names(ctx.old_model)
    return {n: _as(p, fisher[n]) if n in old else torch.ones_like(p) for n, p in _weights(ctx.model).items()}


def _as(p: Tensor, values: Tensor) -> Tensor:
    """A copy in the layout of a parameter."""
    return torch.empty_like(p).copy_(values)


def _observe_gradients(fisher: ByName, model: Any, alpha: float) -> None:
    """F <- alpha g^2 + (1 - alpha) F, in place, where there is a gradient."""
    gradients = _gradients(model)
    moved, g = _pick(fisher, gradients), list(gradients.values())
    torch._foreach_mul_(moved, 1 - alpha)
    torch._foreach_addcmul_(moved, g, g, alpha)


def _copy(tensors: ByName) -> ByName:
    return {name: t.clone() for name, t in tensors.items()}


def _pick(tensors: ByName, names: Iterable[str]) -> list[Tensor]:
    return [tensors[name] for name in names]


@register_method("EWC", paper="Kirkpatrick et al., PNAS 2017, arXiv 1612.00796")
def ewc(weight: Annotated[Weight, Search(1, 1000)] = 500.0, alpha: Share = 0.9, normalise: bool = True) -> Method:
    """Elastic weight consolidation: changes of weights with high Fisher information are penalised.

    weight: of the penalty; 500 in MiB's release, 1000 in SDR's, 100 in PLOP's; below 0.68 / learning rate
    alpha: weight of the new squared gradient in the running Fisher information; 0.9 in the releases
    normalise: min-max normalisation of each tensor's importance; on in the releases
    """
    return _method("EWC", QuadraticPenalty(Fisher(alpha), normalise, weight=weight))


@register_method("PI", paper="Zenke et al., ICML 2017, arXiv 1703.04200")
def pi(
    weight: Annotated[Weight, Search(1, 1000)] = 500.0, normalise: bool = True, formulation: Formulation = "intended"
) -> Method:
    """Path integral (synaptic intelligence): changes of weights that reduced the loss are penalised.

    weight: of the penalty; 500 in MiB's release, 1000 in SDR's, 100 in PLOP's; below 0.68 / learning rate
    normalise: min-max normalisation of each tensor's importance; on in the releases
    formulation: released takes each gradient after its move and misses the last update
    """
    return _method("PI", QuadraticPenalty(PathIntegral(formulation), normalise, weight=weight))


@register_method("RW", paper="Chaudhry et al., ECCV 2018, arXiv 1801.10112")
def rw(
    weight: Annotated[Weight, Search(1, 1000)] = 100.0,
    alpha: Share = 0.9,
    every: Count = 10,
    normalise: bool = True,
    formulation: Formulation = "intended",
) -> Method:
    """Riemannian walk: EWC's importance plus the loss change per distance in its metric.

    weight: of the penalty; 100 in MiB's and PLOP's releases, 1000 in SDR's; below 0.34 / learning rate
    alpha: weight of the new squared gradient in the running Fisher information; 0.9 in the releases
    every: updates between two scores; 10 in the releases
    normalise: min-max normalisation of each tensor's importance; on in the releases
    formulation: released scores one gradient in ``every``, and misses the last updates
    """
    return _method("RW", QuadraticPenalty(RiemannianWalk(formulation, alpha, every), normalise, weight=weight))


def _method(name: str, penalty: QuadraticPenalty) -> Method:
    return Method(
        name,
        first={"ce": CrossEntropy(), "importance": penalty.importance},
        terms={"ce": CrossEntropy(), "importance": penalty.importance, "penalty": penalty},
        domains=True,
    )
