"""The rules of the contract, each a function of what builds a method.

A rule raises ``Broken`` with one line. The first line of its docstring is its name in a report. Rules run on a network
of 145 thousand parameters and drawn images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from contseg.benchmark.contract import toy_run
from contseg.benchmark.contract.toy_run import (
    Build,
    ToyRun,
    ToyStep,
    clones,
    in_full_precision,
    second_step,
    steepest,
    tensors_of,
)
from contseg.benchmark.contract.two_processes import compare_split
from contseg.benchmark.contract.waits import WaitError, no_waits
from contseg.benchmark.models.load import term_states
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.datasets.errors import UserError
from contseg.methods.base import Method, held
from contseg.methods.faults import blamed_line
from contseg.methods.registry import build_method
from contseg.methods.visible import check_visible

SETUPS = ("sequential", "disjoint", "overlapped")
OVERLAPPED = ToyRun()


class Broken(Exception):
    """A rule does not hold; the message says how."""


# --- rules ---------------------------------------------------------------------------------------------------------


def losses_are_finite(build: Build) -> None:
    """Losses are finite in every setup, and predictions are seen classes."""
    for setup in SETUPS:
        _train_and_predict(ToyRun(setup), build)


def one_class(build: Build) -> None:
    """One class a step works."""
    _train_and_predict(ToyRun(sizes=(1, 1)), build)


def absent_class(build: Build) -> None:
    """A class that occurs in no image of the step works."""
    _train_and_predict(ToyRun(classes="some"), build)


def only_background(build: Build) -> None:
    """Batches of background only, and of void only, work."""
    for classes in ("background", "void"):
        _train_and_predict(ToyRun(classes=classes), build)


def rectangular(build: Build) -> None:
    """Rectangular images work."""
    _train_and_predict(ToyRun(height=24, width=56), build)


def bfloat16(build: Build) -> None:
    """Networks in bfloat16 work: terms cast to full precision what they read."""
    toy = ToyRun(autocast=True)
    _train_and_predict(toy, build)
    for make in (lambda: ToyStep.begin(toy, build, 0, None), second_step(toy, build)):
        torch.default_generator.manual_seed(0)
        if make is None or not (stage := make()).trains:
            continue
        losses = stage.method.losses(stage.batch(0))
        same, repeated = (_in_full_precision(make) for _ in range(2))
        for name, value in losses.items():
            is_, should = value.item(), same[name].item()
            drawn = repeated[name].item() != should  # without a seed: another rule tells
            if abs(is_ - should) > 1e-4 * max(abs(should), 1e-3) and not drawn:
                pair = f"is {is_:.7g}, and {should:.7g} of the same output in float32"
                raise Broken(f"{name!r} {pair}: cast what you read by `full_precision`")


def _in_full_precision(make: Callable[[], ToyStep]) -> dict[str, Tensor]:
    torch.default_generator.manual_seed(0)
    stage = make()
    return stage.method.losses(in_full_precision(stage.batch(0)))


def gradients_arrive(build: Build) -> None:
    """Gradients reach every parameter that the method trains."""
    toy, parent = ToyRun(), None
    for index in range(len(toy.steps(build()))):
        stage = ToyStep.begin(toy, build, index, parent)
        waiting = {n: p for n, p in stage.model.named_parameters() if p.requires_grad}

        def arrive(*_: object, waiting: dict[str, Any] = waiting) -> None:
            for name in [n for n, p in waiting.items() if p.grad is not None and p.grad.any()]:
                del waiting[name]

        if stage.trains:
            stage.optimizer.register_step_pre_hook(arrive)
        stage.updates(range(4))
        if waiting:
            name = next(iter(waiting))
            raise Broken(f"{name} ({len(waiting)} in all) never has one at step {index}: leave it out of `trainable`")
        parent = stage.end()


def old_model_stays(build: Build) -> None:
    """The previous network never changes."""
    make = second_step(ToyRun(), build)
    stage = make(begin=False) if make is not None else None
    old = stage.context.old_model if stage is not None else None
    if stage is None or old is None:
        return
    before = clones(old.state_dict())
    phases = (
        ("begin_step", stage.start),
        ("an update", lambda: stage.updates(range(2))),
        ("the end of the step", stage.end),
        ("predict", lambda: stage.predict(stage.toy.draw(stage.step, 0)[0])),
    )
    for name, run in phases:
        run()
        if changed := _differing(before, old.state_dict()):
            raise Broken(f"{changed} changed in {name}")


def nothing_is_written_to(build: Build) -> None:
    """Outputs and batch are not mutated."""
    for make in (lambda: ToyStep.begin(ToyRun(), build, 0, None), lambda: _second(build)):
        stage = make()
        if stage is None or not stage.trains:
            continue
        batch = stage.batch(0)
        parts = {"images": batch.images, "labels": batch.labels}
        parts |= {f"output {i}": t for i, t in enumerate(tensors_of(batch.out))}
        if batch.has_old:
            parts |= {f"previous output {i}": t for i, t in enumerate(tensors_of(batch.old))}
        before = clones(parts)
        stage.method.losses(batch)
        if changed := _differing(before, parts):
            raise Broken(f"{changed} was written to at step {stage.step.index}")


def terms_matter(build: Build) -> None:
    """Every loss has a gradient, by itself or in after_backward.

    A loss of old classes may have none in the overlapped setup, where no label names them, if the previous network
    predicts none of them either; then the sequential setup decides.
    """
    still = _without_gradient(OVERLAPPED, build)
    if still:
        still = [name for name in _without_gradient(ToyRun("sequential"), build) if name in still]
    if still:
        raise Broken(f"{still[0]!r} has none: it changes nothing")


def _without_gradient(toy: ToyRun, build: Build) -> list[str]:
    """The losses of the second step that give no parameter a gradient."""
    stage, without = _second(build, toy), list[str]()
    if stage is None or not stage.trains:
        return without
    losses = stage.updates(range(2)).method.losses(stage.batch(2))
    trained = [p for p in stage.model.parameters() if p.requires_grad]
    for name, value in losses.items():
        for p in trained:
            p.grad = torch.zeros_like(p)
        if value.requires_grad:
            value.backward(retain_graph=True)
        stage.terms[name].after_backward(stage.model)
        if stage.terms[name].weight and not any(p.grad is not None and p.grad.any() for p in trained):
            without.append(name)
    return without


def differs_from_fine_tuning(build: Build) -> None:
    """Weights or predictions differ from FT's after five updates from a perturbed student."""
    if build().name == "FT":
        return
    (weights, map_), (weights_ft, map_ft) = _perturbed(build), _fine_tuned(toy_run.NETWORK)
    if weights.keys() == weights_ft.keys() and not _differing(weights, weights_ft) and torch.equal(map_, map_ft):
        raise Broken("they are equal: this is plain fine-tuning under another name")


def observers_only_observe(build: Build) -> None:
    """Weights with and without the observers are equal, and no shared random number is drawn.

    An observer that a loss of the step holds is kept in both: it is part of the key of the weights.
    """
    if not _unread_observers(build()):
        return

    def bare() -> Method:
        made = build()
        unread = _unread_observers(made)
        return replace(made, first={n: t for n, t in made.first.items() if n not in unread})

    ends = []
    for maker in (build, bare):
        stage = ToyStep.begin(ToyRun(), maker, 0, None).updates(range(3))
        ends.append(
            _weights(stage) | {"random numbers": torch.get_rng_state(), "generator": stage.generator.get_state()}
        )
    if changed := _differing(*ends):
        raise Broken(f"{changed} differs with them")


def _unread_observers(method: Method) -> set[str]:
    read = {id(h) for t in method.first.values() if not t.observes for h in held(t)}
    return {name for name, t in method.first.items() if t.observes and id(t) not in read}


def terms_do_not_wait(build: Build) -> None:
    """No update waits for the device: neither in the terms nor in their gradients."""
    for make in (lambda: ToyStep.begin(ToyRun(), build, 0, None), lambda: _second(build)):
        stage = make()
        if stage is None or not stage.trains:
            continue
        try:
            stage.update(0)  # the first may copy what is then kept, such as window matrices
            stage.update(1, no_waits())
        except WaitError as wait:
            raise Broken(f"{wait} at step {stage.step.index}{blamed_line(wait)}: use tensors of fixed shapes") from wait


def signed_features(build: Build) -> None:
    """Features that may be negative work: losses are finite, and their gradients not a thousand times the usual."""
    _train_and_predict(ToyRun(signed=True), build)
    usual, signed = (steepest(ToyRun(signed=s), build) for s in (False, True))
    for name, slope in signed.items():
        if slope > 1000 * max(usual.get(name, 0.0), 0.01 * sum(usual.values())):
            raise Broken(f"the gradient of {name!r} reaches {slope:.2g}, and {usual.get(name, 0.0):.2g} without them")


def state_survives(build: Build) -> None:
    """State survives save and load."""
    for make in (lambda: ToyStep.begin(ToyRun(), build, 0, None), second_step(ToyRun(), build)):
        if make is None:
            continue
        stage = make().updates(range(2))
        kept = clones(term_states(stage.terms))
        again = make().resume(stage.save())
        if changed := _differing(kept, term_states(again.terms)):
            raise Broken(f"{changed} of the terms' state is not the saved one at step {stage.step.index}")


def interruption_is_harmless(build: Build) -> None:
    """Interrupted equals uninterrupted."""
    for make in (lambda: ToyStep.begin(ToyRun(), build, 0, None), second_step(ToyRun(), build)):
        if make is None:
            continue
        whole, again = make(), make()
        if changed := _differing(_weights(whole), _weights(again)):
            remedy = "draw numbers by torch, and those of `build` and begin_step by methods.modules.drawn_from"
            raise Broken(f"{changed} differs where step {whole.step.index} begins again: {remedy}")
        saved = whole.updates(range(3)).save()
        kept, weights = whole.updates(range(3, 6)).end(), _weights(whole)
        later = again.resume(saved).updates(range(3, 6))
        ended = later.end()
        if changed := _differing(weights, _weights(later)) or _differing(kept.terms, ended.terms):
            remedy = "does `state` name all that changes, and is each number drawn from batch.generator or ctx.seed?"
            raise Broken(f"{changed} differs at step {whole.step.index}: {remedy}")


def future_is_unseen(build: Build) -> None:
    """No step depends on the classes of a later one."""
    if len(ToyRun().steps(build())) < 2:
        return  # the method changes the scenario: there is no later step
    ends = []
    for sizes in ((2, 1, 2), (2, 1, 3, 1)):
        toy = ToyRun(sizes=sizes)
        first = ToyStep.begin(toy, build, 0, None).updates(range(2)).end()
        second = ToyStep.begin(toy, build, 1, first).updates(range(2)).end()
        ends.append(second.model | second.terms)
    if changed := _differing(*ends):
        raise Broken(f"{changed} at step 1 depends on step 2")


def processes_agree(build: Build) -> None:
    """One global batch equals its split over two processes."""
    toy, parent = ToyRun(dtype=torch.float64), None
    for index in range(min(2, len(toy.steps(build())))):
        whole, *parts = (ToyStep(toy, build, index, parent, moved=index > 0) for _ in range(3))
        if all(t.splits for t in whole.terms.values()):
            difference = compare_split(whole, parts)
            if difference:
                raise Broken(f"{difference} differs at step {index}: form means from sums through `reduce`")
        parent = ToyStep.begin(toy, build, index, parent).updates(range(2)).end()


def domains_work(build: Build) -> None:
    """Steps without new classes work, with background and without, if the method has ``domains=True``."""
    for background in (True, False) if build().domains else ():
        toy = ToyRun("domain", sizes=(3, 0, 0), background=background)
        _train_and_predict(toy, build)


def keys_see_all(build: Build) -> None:
    """Everything that makes a method is a field, and part of its steps' keys."""
    try:
        check_visible(build())
    except UserError as error:
        raise Broken(str(error)) from None


RULES: tuple[Callable[[Build], None], ...] = (
    losses_are_finite,
    one_class,
    absent_class,
    only_background,
    rectangular,
    bfloat16,
    signed_features,
    gradients_arrive,
    old_model_stays,
    nothing_is_written_to,
    terms_matter,
    terms_do_not_wait,
    differs_from_fine_tuning,
    observers_only_observe,
    state_survives,
    interruption_is_harmless,
    future_is_unseen,
    processes_agree,
    domains_work,
    keys_see_all,
)

# --- shared by rules ------------------------------------------------------------------------------------------------


def _train_and_predict(toy: ToyRun, build: Build) -> None:
    """Train all steps, two updates each: losses and weights are finite, and class maps hold seen classes."""
    parent = None
    for index in range(len(toy.steps(build()))):
        stage = ToyStep.begin(toy, build, index, parent)
        where = f"{toy.setup} step {index}"
        for number in range(2):
            for name, value in stage.update(number).items():
                if not value.isfinite():
                    raise Broken(f"{name!r} is {value.item()} at update {number} of {where}")
        parent = stage.end()
        for name, weight in parent.model.items():
            if not weight.isfinite().all():
                raise Broken(f"{name} is not finite after {where}")
        images, labels = toy.draw(stage.step, 0)
        prediction = stage.predict(images)
        if prediction.shape != labels.shape or prediction.is_floating_point():
            raise Broken(f"`predict` gives {prediction.dtype} {tuple(prediction.shape)}, not a class map")
        if not toy.background and not prediction.all():
            raise Broken(f"`predict` gives background after {where}, where no image has it")
        if prediction.min() < 0 or prediction.max() >= stage.step.n_classes:
            raise Broken(f"`predict` gives class {int(prediction.max())} of {stage.step.n_classes} after {where}")


def _perturbed(build: Build) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and a class map after all steps, five updates each; every later student is moved first."""
    toy, parent = ToyRun(), None
    for index in range(len(toy.steps(build()))):
        stage = ToyStep.begin(toy, build, index, parent, moved=index > 0).updates(range(5))
        parent = stage.end()
    return _weights(stage), stage.predict(toy.draw(stage.step, 0)[0])


@cache
def _fine_tuned(network: ModelConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Those of FT, computed once for all methods on this network."""
    return _perturbed(lambda: build_method("FT"))


def _second(build: Build, toy: ToyRun = OVERLAPPED) -> ToyStep | None:
    make = second_step(toy, build)
    return make() if make is not None else None


def _weights(stage: ToyStep) -> dict[str, Tensor]:
    return clones(stage.model.state_dict())


def _differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> str:
    """The first name whose tensors differ (NaN equals NaN); "" if there is none."""
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b or a[name].shape != b[name].shape or a[name].dtype != b[name].dtype:
            return name
        if not torch.equal(a[name].nan_to_num(nan=-1.5), b[name].nan_to_num(nan=-1.5)):
            return name
    return ""
