"""THE CONTRACT between a method and the suite.

A method is a named dictionary of loss terms, plus hooks: what is not a sum of losses is a named field of ``Method``
with a plain default.

Shapes: ``B`` batch, ``C`` seen classes (logit channels), ``O`` old classes, ``N`` new ones (``C = O + N``),
``D`` channels of the encoder, ``E`` channels in front of the classifier, ``H, W`` image, ``h, w`` feature map.

Life of a step: ``build -> init -> load the parent's state -> begin_step -> Method.warm_up -> (load a checkpoint) ->
per micro-batch __call__ -> once per update after_backward -> optimiser -> Method.end_step -> Term.end_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor

from contseg.datasets.scenario import Scenario, Step
from contseg.methods.batch import Batch, Progress, Reduce, alone
from contseg.methods.code import place
from contseg.methods.faults import MethodError, called_by_nobody, not_a_loss, not_called_so
from contseg.methods.fit import misfit
from contseg.methods.identity import added_field, describe
from contseg.methods.losses import cross_entropy_sum, full_precision, resize, shrink_labels
from contseg.methods.memory import Memory
from contseg.methods.network import Classifier, OnDemand, SegModel, SegOutput
from contseg.methods.wording import product, words

__all__ = [
    "HOOKS",
    "Batch",
    "Classifier",
    "CrossEntropy",
    "Hook",
    "Method",
    "Progress",
    "Reduce",
    "SegModel",
    "SegOutput",
    "StepContext",
    "Term",
    "added_field",
    "alone",
    "argmax",
    "describe",
    "full_precision",
    "held",
    "later",
    "resize",
    "shrink_labels",
]


class StepContext(NamedTuple):
    """What a term may use before the first update and after the last one.

    ``loader()`` is a new pass over the step's training images: pairs of images (B, 3, H, W) and labels (B, H, W), on
    the device, with a random generator of its own; ``loader(n)``, n >= 1, is a further one, with its own order and
    augmentation. Each process gets its share of every batch, an empty one if there are fewer images than processes: use
    ``reduce`` for sums over all processes. ``old_model``, the previous network, is ``None`` at step 0; if no term has
    ``uses_old`` it is read from the store when asked for, and not held during updates. Both models are unwrapped, in
    full precision. ``lr``: at the step's first update. ``epoch_updates``: optimiser updates of an epoch; stored images
    that are appended to the step's count there, and are not in the passes of ``loader``.
    """

    step: Step
    model: Any
    previous: Any | None  # or ``OnDemand``
    loader: Callable[..., Iterable[tuple[Tensor, Tensor]]]
    reduce: Reduce = alone
    seed: int = 0
    lr: float = 1e-3
    epoch_updates: int = 1

    @property
    def old_model(self) -> Any | None:
        return self.previous.model if isinstance(self.previous, OnDemand) else self.previous


@dataclass(eq=False)
class Term:
    """One ingredient of the objective. Its fields are its hyper-parameters; ``weight`` multiplies its value.

    A subclass sets these class variables:

    - ``uses_old = True`` if it needs the previous model's output; if no term does, updates hold no previous model;
    - ``uses_setup = False`` if its numbers do not depend on ``step.setup``: sequential and disjoint then share step 0;
    - ``observes = True`` if it never changes loss or gradient (prototypes, importance): it is then not part of the key
      of the weights;
    - ``weigh``, a method ``(batch, targets, scores)`` if it gives ``Batch.pixel_weight`` (UCB; at most one term): the
      weights (B, H, W) of the pixels of a supervised loss, mean 1, without gradient. targets (B, H, W): its labels,
      completed by the previous model; scores (B, K, H, W): the previous model's;
    - ``weighable = True`` if its loss is supervised and takes these weights (PLOP, SSUL);
    - ``splits = False`` if its value changes when a batch is divided over several processes;
    - ``state``: the names of EVERY attribute that changes during training (a tensor, or a dict of tensors);
    - ``revision``: raised whenever its numbers change.

    A term that reads the state of another term holds that term in a field. A field that is added to a released class is
    an ``added_field``: keys do not change while it has its default.
    """

    uses_old: ClassVar[bool] = False
    uses_setup: ClassVar[bool] = True
    observes: ClassVar[bool] = False
    weigh: ClassVar[Any] = None
    weighable: ClassVar[bool] = False
    splits: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()
    revision: ClassVar[int] = 1

    weight: float = field(default=1.0, kw_only=True)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if isinstance(cls.state, str):
            raise TypeError(f"{cls.__name__}.state is the text {cls.state!r}: write a tuple, ({cls.state!r},)")
        if fault := called_by_nobody(cls):
            raise TypeError(fault)

    def begin_step(self, ctx: StepContext) -> None:
        """Called before the first update, after the parent's state is loaded: extend the state to the new classes."""

    def __call__(self, batch: Batch) -> Tensor | None:
        """The unweighted value (a scalar), or ``None`` if it only observes. ``batch.progress``: where in the step."""
        return None

    def after_backward(self, model: Any) -> None:
        """Once an update, observers first. Gradients are unscaled, averaged over processes, and not clipped yet."""

    def end_step(self, ctx: StepContext) -> None:
        """Called after the last update and after the ``end_step`` functions of the method."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state, flat: ``name`` or ``name/key`` for a dict of tensors. Tensors are not copied."""
        flat: dict[str, Tensor] = {}
        for name in self.state:
            value = getattr(self, name)
            if isinstance(value, dict):
                flat.update({f"{name}/{k}": v for k, v in value.items()})
            elif value is not None:
                flat[name] = value
        return flat

    def load_state_dict(self, flat: dict[str, Tensor]) -> None:
        """Replace the present state. The object stays the same, because other terms may hold it."""
        for name in self.state:
            inside = {k.removeprefix(f"{name}/"): v for k, v in flat.items() if k.startswith(f"{name}/")}
            if name in flat:
                setattr(self, name, flat[name])
            else:
                setattr(self, name, inside if isinstance(getattr(self, name), dict) else None)


@dataclass(eq=False)
class CrossEntropy(Term):
    """Mean cross entropy over the valid pixels of the global batch (F-CE)."""

    uses_setup: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Tensor:
        # one fused pass for the sum; the mean is a ratio of global sums
        total = cross_entropy_sum(batch.logits, batch.labels)
        return batch.reduce(total) / batch.n_valid


# --- the default of each hook --------------------------------------------------------------------------------------


def same_scenario(scenario: Scenario) -> Scenario:
    """The scenario, unchanged."""
    return scenario


def same_model(model: Any, step: Step) -> None:
    """The network, unchanged."""


def torch_init(model: Any, step: Step) -> None:
    """New classifier rows keep torch's random initialisation."""


def train_all(model: Any, step: Step) -> list[dict[str, Any]]:
    """Everything trains: one parameter group."""
    return [{"params": list(model.parameters())}]


def argmax(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """(B, H, W) int64: arg max of the upsampled logits."""
    return resize(full_precision(out.logits), size).max(1).indices  # on a CPU 4 times as fast as argmax


Hook: TypeAlias = Callable[..., Any]


def later(hook: Hook) -> Hook:
    """Mark a hook that acts at steps >= 1 only. Step 0 uses the default, and can be shared with other methods."""
    hook.later = True  # type: ignore[attr-defined]
    return hook


def _open(hook: Hook, step: Step) -> bool:
    return step.index > 0 or not getattr(hook, "later", False)


HOOKS: dict[str, Hook] = {
    "scenario": same_scenario,
    "build": same_model,
    "init": torch_init,
    "trainable": train_all,
    "predict": argmax,
}


@dataclass(eq=False)
class Method:
    """A named dictionary of loss terms, plus hooks.

    ``terms`` are the terms of steps >= 1, ``first`` those of step 0 (an observer that starts at step 0 is in both).

    The hooks:

    - ``scenario(scenario)`` returns the scenario to train (Joint: all classes in one step). It raises ``UserError`` for
      a scenario that the method cannot do.
    - ``build(model, step)`` changes the network in place, after the classifier has grown and before ``init``. To read a
      trained step again it is called on a new network for steps 0, 1, ... in order, before the weights are loaded.
    - ``init(model, step)`` sets the new classifier rows, at steps >= 1.
    - ``trainable(model, step)`` returns the groups of the optimiser: dicts with ``params`` and, optionally,
      ``lr_scale`` and ``weight_decay``. A parameter in no group is frozen. A normalisation layer with frozen
      parameters, or without parameters, stays in evaluation mode. No group: the step has no update.
    - ``predict(out, size)`` returns the class map (B, H, W).
    - ``warm_up``: functions of a ``StepContext``, called in order at steps >= 1, once, after the ``begin_step`` of the
      terms and before the optimiser is made. They may train or compute weights, such as the new classifier rows, and
      write them in place. The model is in evaluation mode. A step that is resumed does not call them again.
    - ``end_step``: functions of a ``StepContext``, called in order after the last update, before evaluation (fusion).
    - ``memory``: images of earlier steps that are shown again at steps >= 1 (``methods.memory``).

    ``domains``: whether the method can do steps that bring images of a new domain and no class (setup ``domain``); such
    a step has ``step.n_new == 0``, complete labels, and no call of ``init``.

    A hook that acts at steps >= 1 only is marked ``@later``, but not ``scenario`` and ``predict``, which know no step.
    ``hook`` and ``endings`` return the hooks of a step.
    A hook is a function, or an object with ``__call__`` whose dataclass fields are its parameters.
    """

    name: str
    terms: dict[str, Term]
    first: dict[str, Term] = field(default_factory=lambda: {"ce": CrossEntropy()})
    init: Hook = torch_init
    scenario: Hook = same_scenario
    build: Hook = same_model
    trainable: Hook = train_all
    predict: Hook = argmax
    warm_up: tuple[Hook, ...] = ()
    end_step: tuple[Hook, ...] = ()
    memory: Memory | None = None
    domains: bool = False

    def __post_init__(self) -> None:
        _check_terms("terms", self.terms)
        _check_terms("first", self.first)
        for name in HOOKS:
            if not callable(hook := getattr(self, name)):
                raise TypeError(f"{name} is a {type(hook).__name__}: give a function")
            if name in ("scenario", "predict") and getattr(hook, "later", False):
                raise TypeError(f"{name} is marked @later, and knows no step: take the mark off")
            _check_call(name, name, hook)
        for name in ("warm_up", "end_step"):
            functions = getattr(self, name)
            if not isinstance(functions, tuple) or not all(map(callable, functions)):
                raise TypeError(f"{name} is a {type(functions).__name__}: give a tuple of functions, (fuse,)")
            for hook in functions:
                _check_call(name, name, hook)

    def plus(self, addon: Method) -> Method:
        """This method with the terms and hooks of an add-on.

        Raises ``ValueError`` if both have a term of the same name, or both set the same hook, or the add-on would
        change nothing (``methods.fit``).
        """
        if why := misfit(self, addon):
            raise ValueError(why)
        hooks: dict[str, Hook] = {}
        for name, default in HOOKS.items():
            mine, theirs = getattr(self, name), getattr(addon, name)
            if mine is not default and theirs is not default:
                raise ValueError(f"{self.name} and {addon.name} both set the hook {name!r}")
            hooks[name] = theirs if mine is default else mine
        return Method(
            name=f"{self.name}+{addon.name}",
            terms=_union(self, addon, "terms"),
            first=_union(self, addon, "first"),
            warm_up=self.warm_up + addon.warm_up,
            end_step=self.end_step + addon.end_step,
            memory=self.memory or addon.memory,
            domains=self.domains and addon.domains,
            **hooks,
        )

    def active(self, step: Step) -> dict[str, Term]:
        """The terms of this step, in the order of evaluation."""
        return self.first if step.index == 0 else self.terms

    def hook(self, name: str, step: Step) -> Hook:
        """The hook of this step; ``init`` only at steps >= 1, and where there are new rows."""
        mine: Hook = getattr(self, name)
        called = name != "init" or (step.index > 0 and step.n_new > 0)
        return mine if called and _open(mine, step) else HOOKS[name]

    def warm_ups(self, step: Step) -> list[Hook]:
        """The ``warm_up`` functions of this step; none at step 0."""
        return list(self.warm_up) if step.index > 0 else []

    def endings(self, step: Step) -> list[Hook]:
        """The ``end_step`` functions of this step."""
        return [f for f in self.end_step if _open(f, step)]

    def uses_old(self, step: Step) -> bool:
        """Whether the previous model is needed at this step."""
        return step.index > 0 and any(t.uses_old for t in self.terms.values())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted values by name. Observers are called too, without an entry. ``MethodError``: a value is no loss."""
        values: dict[str, Tensor] = {}
        terms = self.active(batch.step)
        batch.pixel_weight = next((partial(t.weigh, batch) for t in terms.values() if t.weigh), None)
        for name, term in terms.items():
            value = term(batch)
            if value is None and (term.observes or not _only_called(term)):
                continue
            if (fault := not_a_loss(term.observes, value, batch.labels.device)) or value is None:
                raise MethodError(f"{self.name}: {name!r} {fault} ({place(term)})")
            values[name] = term.weight * value
        return values

    def __str__(self) -> str:
        lines = [f"{self.name}"]
        for title, terms in (("step 0", self.first), ("later steps", self.terms)):
            parts = [t for t in terms.items() if not t[1].observes]
            watch = [f"{n}: {words(t)}" for n, t in terms.items() if t.observes]
            lines.append(f"  {title}: " + (" + ".join(product(n, t) for n, t in parts) or "no loss"))
            lines.extend(f"    observes {w}" for w in watch)
        for name, default in HOOKS.items():
            if getattr(self, name) is not default:
                lines.append(f"  {name}: {words(getattr(self, name))}")
        lines.extend(f"  warm-up: {words(f)}" for f in self.warm_up)
        lines.extend(f"  end of step: {words(f)}" for f in self.end_step)
        lines.extend([f"  memory: {words(self.memory)}"] if self.memory else [])
        return "\n".join(lines)


def _check_terms(which: str, terms: Any) -> None:
    """``TypeError`` unless these are terms by name that have the attributes of their state."""
    if not isinstance(terms, dict):
        raise TypeError(f'{which} is a {type(terms).__name__}: give a dictionary, {{"ce": CrossEntropy(), ...}}')
    for name, term in terms.items():
        if not isinstance(term, Term):
            what = f"the class {term.__name__}" if isinstance(term, type) else f"a {type(term).__name__}"
            raise TypeError(f"{which}[{name!r}] is {what}: give an object of a class that derives from Term")
        for attribute in term.state:
            if not hasattr(term, attribute):
                example = f"{attribute}: Tensor | None = field(default=None, init=False)"
                raise TypeError(f"{type(term).__name__} has no attribute {attribute!r} of its state: declare {example}")
        for function in ("__call__", "begin_step", "after_backward", "end_step"):
            if getattr(type(term), function) is not getattr(Term, function):
                _check_call(function, f"{type(term).__name__}.{function}", getattr(term, function))


def _check_call(name: str, called: str, thing: Hook) -> None:
    """``MethodError`` if a function does not take what it is called with."""
    if fault := not_called_so(name, called, thing):
        raise MethodError(f"{fault} ({place(getattr(thing, '__func__', thing))})")


def _only_called(term: Term) -> bool:
    """Whether a term has nothing but its value to act by."""
    own = [n for n in ("begin_step", "after_backward", "end_step") if getattr(type(term), n) is not getattr(Term, n)]
    return type(term).__call__ is not Term.__call__ and not own and not term.weigh and not term.state


def _union(a: Method, b: Method, which: str) -> dict[str, Term]:
    mine, theirs = getattr(a, which), getattr(b, which)
    both = [n for n in mine if n in theirs and not (n == "ce" and which == "first")]
    if both:
        raise ValueError(f"{a.name} and {b.name} both have a term {both[0]!r}")
    return {**mine, **{n: t for n, t in theirs.items() if n not in mine}}


def held(term: Term) -> Iterator[Term]:
    """The terms whose state this term reads: those held in its fields, directly or through others."""
    for f in fields(term):
        value = getattr(term, f.name)
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, Term):
                yield from held(inner)
                yield inner
