"""EWC, PI and RW against slow oracles: the intended path integrals, the penalty and its gradient."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from contseg.datasets.scenario import Step
from contseg.methods.base import StepContext, Term
from contseg.methods.importance import Fisher, PathIntegral, QuadraticPenalty, RiemannianWalk, min_max
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_steps

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(2, 1)


class Net(nn.Module):
    """Three tensors; the last is new at step 1."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(step.index)
        self.body = nn.Parameter(torch.randn(3, 4, generator=g, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(2, generator=g, dtype=torch.float64))
        if step.index:
            self.fresh = nn.Parameter(torch.randn(2, generator=g, dtype=torch.float64))


def trained(model: Net, observers: list[Term], updates: int, rate: float = 0.1) -> list[tuple[dict, dict]]:
    """Gradient descent on random slopes; weights and gradients of every update, and the weights at the end."""
    g = torch.Generator().manual_seed(5)
    path = []
    for _ in range(updates):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype)
        for observer in observers:
            observer.after_backward(model)
        path.append(
            (
                {n: p.detach().clone() for n, p in model.named_parameters()},
                {n: p.grad.clone() for n, p in model.named_parameters()},
            )
        )
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    path.append(({n: p.detach().clone() for n, p in model.named_parameters()}, {}))
    return path


def context(step: Step, model: Net, old: Net | None) -> StepContext:
    return StepContext(step, model, old, list)


def test_path_integral_is_the_fall_of_the_loss_along_the_whole_path() -> None:
    observer, model = PathIntegral(), Net(FIRST)
    observer.begin_step(context(FIRST, model, None))
    path = trained(model, [observer], 5)
    observer.end_step(context(FIRST, model, None))
    for name in ("body", "head"):
        fall = sum(g[name] * (theta[name] - after[name]) for (theta, g), (after, _) in pairwise(path))
        way = path[-1][0][name] - path[0][0][name]
        torch.testing.assert_close(observer.score[name], (fall / (way**2 + 1e-20)).clamp(min=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["intended", "released"])
@pytest.mark.parametrize("kind", [PathIntegral, RiemannianWalk])
def test_a_path_starts_where_a_warm_up_left_the_weights(kind: type[PathIntegral], form: str) -> None:
    """NeST and AWT write rows between ``begin_step`` and the first update: that is no move of the training."""
    scores = []
    for warm_up in (True, False):
        observer, model, written = kind(form), Net(FIRST), Net(SECOND)
        if warm_up:
            observer.begin_step(context(FIRST, model, None))
        with torch.no_grad():
            model.head.copy_(written.head)
        if not warm_up:
            observer.begin_step(context(FIRST, model, None))
        trained(model, [observer], 15)
        observer.end_step(context(FIRST, model, None))
        scores.append(observer.score)
    for name, score in scores[0].items():
        torch.testing.assert_close(score, scores[1][name], rtol=0, atol=0)


def test_on_a_quadratic_the_path_integral_nears_the_drop_of_the_loss() -> None:
    """theta^2 / 2 from 2 by small steps: the released form falls short of the drop, the intended one does not."""
    drops = {}
    for formulation in ("intended", "released"):
        observer, model = PathIntegral(formulation), nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(model.weight, 2.0)
        observer.begin_step(StepContext(FIRST, model, None, list))
        for _ in range(400):
            model.weight.grad = model.weight.detach().clone()
            observer.after_backward(model)
            with torch.no_grad():
                model.weight -= 0.01 * model.weight.grad
        way = (2.0 - model.weight.item()) ** 2
        observer.end_step(StepContext(FIRST, model, None, list))
        drops[formulation] = observer.score["weight"].item() * way
    true_drop = 2.0 - model.weight.item() ** 2 / 2
    assert drops["intended"] == pytest.approx(true_drop, rel=0.01)
    assert drops["intended"] > true_drop > drops["released"]


@pytest.mark.parametrize("updates", [1, 4, 6, 7])
def test_walk_sums_the_loss_change_of_every_update(updates: int) -> None:
    every, alpha = 3, 0.9
    observer, model = RiemannianWalk("intended", alpha, every), Net(FIRST)
    observer.begin_step(context(FIRST, model, None))
    path = trained(model, [observer], updates)
    observer.end_step(context(FIRST, model, None))
    for name in ("body", "head"):
        fisher, walk = torch.ones_like(path[0][0][name]), 0.0
        change, start = 0.0, path[0][0][name]
        for t, (theta, g) in enumerate(path):
            if t and (t % every == 0 or t == updates):
                walk = walk + change / (fisher / 2 * (start - theta[name]) ** 2 + 1e-8)
                change, start = 0.0, theta[name]
            if g:
                change = change + g[name] * (theta[name] - path[t + 1][0][name])
                fisher = alpha * g[name] ** 2 + (1 - alpha) * fisher
        torch.testing.assert_close(observer.score[name], torch.clamp(walk, min=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(observer.fisher[name], fisher, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["EWC", "PI", "RW"])
def test_penalty_equals_autograd_and_comes_once(name: str) -> None:
    method = build_method(name)
    old = Net(FIRST)
    observer = method.terms["importance"]
    observer.begin_step(context(FIRST, old, None))
    trained(old, [observer], 12)
    observer.end_step(context(FIRST, old, None))

    model = Net(SECOND)
    penalty = method.terms["penalty"]
    assert isinstance(penalty, QuadraticPenalty)
    for term in (observer, penalty):
        term.begin_step(context(SECOND, model, old))
    reference = {n: p.detach().clone() for n, p in model.named_parameters()}
    weights = [{n: min_max(w) for n, w in measured.items()} for measured in observer.measured()]
    assert any(w["body"].any() for w in weights)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(9), dtype=p.dtype)

    slow = sum(
        (w[n] * (p - reference[n]) ** 2).sum() for w in weights for n, p in model.named_parameters() if n != "fresh"
    )
    expected = dict(zip(reference, torch.autograd.grad(slow, list(model.parameters()), allow_unused=True), strict=True))
    value = penalty(None)  # type: ignore[arg-type]
    assert not value.requires_grad
    torch.testing.assert_close(value, slow.detach(), rtol=1e-12, atol=0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    penalty.after_backward(model)
    for n, p in model.named_parameters():
        added = 0 if expected[n] is None else penalty.weight * expected[n]
        torch.testing.assert_close(p.grad, torch.ones_like(p) + added, rtol=1e-12, atol=1e-12)


def test_penalty_begins_at_zero() -> None:
    old, model, fisher = Net(FIRST), Net(SECOND), Fisher()
    fisher.begin_step(context(FIRST, old, None))
    trained(old, [fisher], 3)
    penalty = QuadraticPenalty(fisher)
    for term in (fisher, penalty):
        term.begin_step(context(SECOND, model, old))
    assert penalty(None).item() == 0  # type: ignore[arg-type]


def test_a_tensor_without_gradient_keeps_its_importance() -> None:
    for observer in (Fisher(), PathIntegral(), RiemannianWalk(every=1)):
        model = Net(FIRST)
        observer.begin_step(context(FIRST, model, None))
        for _ in range(3):
            model.body.grad = torch.ones_like(model.body)
            observer.after_backward(model)
            with torch.no_grad():
                model.body -= 0.1
        observer.end_step(context(FIRST, model, None))
        *_, measured = observer.measured()
        assert torch.equal(measured["head"], torch.full_like(model.head, float(isinstance(observer, Fisher))))
        assert (measured["body"] != 0).all()


def test_new_tensors_begin_and_old_ones_go_on() -> None:
    old, model, fisher = Net(FIRST), Net(SECOND), Fisher()
    fisher.begin_step(context(FIRST, old, None))
    trained(old, [fisher], 3)
    before = fisher.measured()[0]
    fisher.begin_step(context(SECOND, model, old))
    assert torch.equal(fisher.fisher["body"], before["body"])
    assert torch.equal(fisher.fisher["fresh"], torch.ones(2, dtype=torch.float64))


def test_a_lost_state_is_an_error_rather_than_fine_tuning() -> None:
    for observer in (Fisher(), PathIntegral(), RiemannianWalk()):
        with pytest.raises(KeyError):
            observer.begin_step(context(SECOND, Net(SECOND), Net(FIRST)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 3.0, 2.0], dtype=dtype)
    torch.testing.assert_close(min_max(x), torch.tensor([0.0, 1.0, 0.5], dtype=dtype))
    equal = torch.full((4,), 0.1, dtype=dtype)
    assert not min_max(equal).any()
    equal[1] = torch.nextafter(equal[1], torch.tensor(1.0, dtype=dtype))
    assert not min_max(equal).any()  # rounding is no importance


def states(observer: Term) -> Iterator[tuple[str, Tensor]]:
    return iter(sorted(observer.state_dict().items()))


@pytest.mark.parametrize("make", [PathIntegral, lambda: RiemannianWalk(every=2)])
def test_nothing_of_the_path_is_kept_after_the_step(make: type[PathIntegral]) -> None:
    observer, model = make(), Net(FIRST)
    observer.begin_step(context(FIRST, model, None))
    trained(model, [observer], 3)
    observer.end_step(context(FIRST, model, None))
    kept = {name.partition("/")[0] for name, _ in states(observer)}
    assert kept <= {"score", "fisher", "updates"}


@pytest.mark.parametrize(("factor", "diverges"), [(0.95, False), (1.05, True)])
def test_the_largest_weight_that_the_docstring_allows(factor: float, diverges: bool) -> None:
    """Where nu is 1, weight 0.68 / rate is the edge for SGD with Nesterov momentum 0.9."""
    rate = 0.01
    old, fisher = Net(FIRST), Fisher()
    fisher.begin_step(context(FIRST, old, None))
    trained(old, [fisher], 3)
    model = Net(SECOND)
    penalty = QuadraticPenalty(fisher, weight=factor * 0.68 / rate)
    for term in (fisher, penalty):
        term.begin_step(context(SECOND, model, old))
    with torch.no_grad():
        model.body += 1e-3
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, nesterov=True)
    for _ in range(1000):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        penalty.after_backward(model)
        optimizer.step()
    assert (penalty(None).item() > 1) == diverges  # type: ignore[arg-type]
