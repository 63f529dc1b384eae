"""F-EWC, F-PI, F-RW: two steps of stored weights and gradients, replayed through observers and penalty.

The intended forms of PI and RW have no stored reference: their oracle is in ``tests/unit/test_importance.py``.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from contseg.methods.base import StepContext
from contseg.methods.importance import Fisher, Importance, PathIntegral, QuadraticPenalty, RiemannianWalk
from contseg.tests.golden.harness import Fixture, make_step, operation


class Weights:
    """A model as importance sees it: named parameters that share one flat vector."""

    def __init__(self, names: list[str], offsets: list[int], dtype: torch.dtype) -> None:
        self.flat = torch.zeros(offsets[-1], dtype=dtype)
        self.gradient = torch.zeros_like(self.flat)
        self.parameters: dict[str, Tensor] = {}
        for name, start, end in zip(names, offsets, offsets[1:], strict=False):
            p = torch.nn.Parameter(self.flat[start:end])
            p.grad = self.gradient[start:end]
            self.parameters[name] = p

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.parameters.items()

    def vector(self, by_name: dict[str, Tensor]) -> Tensor:
        """Tensors by name as one vector; 0 where a name is missing."""
        return torch.cat([by_name.get(n, torch.zeros_like(p.detach())) for n, p in self.parameters.items()])


def ranges_are_resolved(fixture: Fixture) -> bool:
    """Whether the stored importances after step 0 differ within every tensor; else min-max shows their rounding."""
    offsets = fixture["cfg_step0_offsets"]
    stored = [fixture.arrays[k] for k in ("released_step0_score", "released_step0_fisher") if k in fixture.arrays]
    tensors = [s.reshape(-1, offsets[-1])[-1][a:b] for s in stored for a, b in pairwise(offsets) if b - a > 1]
    return all(fixture.resolves(np.ptp(t), np.abs(t).max()) for t in tensors)


@operation("reg_ewc", "reg_pi", "reg_rw")
def importance(fixture: Fixture) -> None:
    operation = fixture.entry["operation"]
    observer: Importance
    if operation == "reg_ewc":
        observer = Fisher(fixture["cfg_alpha"])
    elif operation == "reg_pi":
        observer = PathIntegral("released")
    else:
        observer = RiemannianWalk("released", fixture["cfg_alpha"], fixture["cfg_iterations"])
    penalty = QuadraticPenalty(observer, fixture["cfg_normalize"], weight=fixture["cfg_importance"])

    old = None
    for index in (0, 1):
        model = Weights(fixture[f"cfg_step{index}_names"], fixture[f"cfg_step{index}_offsets"], fixture.dtype)
        theta, gradients = (fixture.tensor(f"in_step{index}_{what}") for what in ("theta", "grad"))
        with torch.no_grad():
            model.flat.copy_(theta[0])
        context = StepContext(make_step(3, 2, index=index), model, old, lambda: [])
        observer.begin_step(context)
        distinguishable = not (index and fixture["cfg_normalize"]) or ranges_are_resolved(fixture)
        if index:
            penalty.begin_step(context)
            weight = dict(zip(model.parameters, penalty.factors, strict=False))
            if distinguishable:
                fixture.check("released_step1_weight", model.vector(weight))
            else:
                for what in ("weight", "penalty", "penalty_grad"):
                    fixture.excuse(f"released_step1_{what}", "importances of a tensor that are as good as equal")
        seen: dict[str, list[Tensor]] = {"penalty": [], "penalty_grad": []}
        for position, gradient in zip(theta, gradients, strict=False):
            model.flat.copy_(position)
            model.gradient.copy_(gradient)
            observer.after_backward(model)
            for state in {"fisher", "change", "walk"} & set(observer.state):
                seen.setdefault(state, []).append(model.vector(getattr(observer, state)))
            seen["penalty"].append(penalty(None) if index else position.new_zeros(()))
            model.gradient.zero_()
            if index:
                penalty.after_backward(model)
            seen["penalty_grad"].append(model.gradient / penalty.weight)
        model.flat.copy_(theta[-1])
        observer.end_step(context)
        names = {"change": "delta", "walk": "score_running"}
        for state, values in seen.items():
            key = f"released_step{index}_{names.get(state, state)}"
            if key in fixture and key not in fixture.excused:
                fixture.check(key, torch.stack(values))
        if operation != "reg_ewc":
            fixture.check(f"released_step{index}_score", model.vector(observer.score))
        old = model
