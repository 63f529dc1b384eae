"""THE CONTRACT between a method and the suite.

A method is a named dictionary of loss terms plus a classifier initialiser; whatever is not additive goes through one
named door (a field of ``Method``) whose default does the plain thing.

Shapes: ``B`` batch, ``C`` seen classes (logit channels), ``O`` old classes, ``N`` new ones (``C = O + N``),
``D`` channels of the encoder, ``E`` channels in front of the classifier, ``H, W`` image, ``h, w`` feature map.

Life of a step: ``build -> init -> load the parent's state -> begin_step -> (load a checkpoint) -> per micro-batch
__call__ -> once per update after_backward -> optimiser -> Method.end_step -> Term.end_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.scenario import VOID, Scenario, Step

T = TypeVar("T")


class Reduce(Protocol):
    """Sums and maxima over processes, any shape, the result on every process."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum. Differentiable: its backward sums too, so that the mean of the processes' parameter gradients is
        exactly the gradient of the one global batch, if every process forms the same global loss from such sums."""
        ...

    def max(self, x: Tensor) -> Tensor:
        """The elementwise maximum, detached; ``-inf`` where no process has a value."""
        ...


class SegOutput(NamedTuple):
    """What a network gives. A tuple of tensors, so that it survives DDP and autocast.

    ``logits`` (B, C, h, w) at the resolution of the network; ``features`` (B, D, h, w) the encoder's output;
    ``embedding`` (B, E, h, w) what the 1x1 classifier reads; ``stages`` the encoder's residual stages, each
    (B, D_l, h_l, w_l), before their last activation; ``extra`` whatever a method's ``build`` door adds.
    """

    logits: Tensor
    features: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    extra: dict[str, Tensor] = {}  # noqa: RUF012  (a NamedTuple's default; never written to)


@runtime_checkable
class Classifier(Protocol):
    """A 1x1 classifier that grew by a block a step: ``blocks[t].weight`` (N_t, E, 1, 1), ``.bias`` (N_t,).

    ``seed`` is that of its initial weights. What a ``build`` door puts in its place keeps ``blocks`` and ``grow``.
    """

    blocks: nn.ModuleList
    seed: int

    def grow(self, n: int) -> None: ...


@runtime_checkable
class SegModel(Protocol):
    """What a method may rely on in a network: ``encoder``, ``aspp``, ``classifier``, and ``heads``.

    A ``build`` door may put modules into ``heads``: each reads the embedding, its output is ``SegOutput.extra[name]``.
    """

    encoder: nn.Module
    aspp: nn.Module
    classifier: nn.Module
    heads: nn.ModuleDict

    def __call__(self, images: Tensor) -> SegOutput: ...


class Alone:
    """``Reduce`` where there is one process."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x.detach()


alone = Alone()


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, ``align_corners=False``: logits (B, C, h, w) -> (B, C, H, W); nothing if they have that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbour as torch defines it: labels (B, H, W) -> (B, h, w), same dtype."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    # float32 holds 0..255 exactly
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].to(labels.dtype)


def full_precision(x: Tensor) -> Tensor:
    """At least float32: what mixed precision halved is brought back, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(B, h, w) -> (B, classes, hw) of 0 and 1; a label that is no class, such as void, has no 1."""
    names = torch.arange(classes, device=labels.device)
    return (labels.flatten(1)[:, None] == names[:, None]).to(dtype)


def class_sums(features: Tensor, membership: Tensor) -> Tensor:
    """Features (B, D, hw) and membership (B, C, hw) -> (C, D), sums over the positions of each class."""
    return torch.bmm(features, membership.transpose(1, 2)).sum(0).T


class Batch:
    """Everything a term may read of one micro-batch. Derived maps are computed once, on first use, and kept.

    ``images`` (B, 3, H, W); ``labels`` (B, H, W) int64 channels, 255 void; ``out`` and ``old`` the outputs of the
    current and of the previous model (``None`` at step 0, or if no term uses it).
    ``reduce`` is a differentiable sum over processes: whatever is a ratio, a maximum or not linear in the batch is
    formed from reduced sums, so that several processes have exactly the gradient of the one global batch.
    Terms must not write to any of these tensors.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        out: SegOutput,
        old: SegOutput | None,
        step: Step,
        reduce: Reduce = alone,
        generator: torch.Generator | None = None,
    ) -> None:
        self.images, self.labels, self.out, self.step = images, labels, out, step
        self._old, self.reduce, self.generator = old, reduce, generator
        self._shared: dict[str, Any] = {}

    @property
    def old(self) -> SegOutput:
        """The previous model's output; only for terms that declare ``uses_old``."""
        if self._old is None:
            raise RuntimeError("no previous model here: a term that reads batch.old must set uses_old = True")
        return self._old

    @cached_property
    def logits(self) -> Tensor:
        """(B, C, H, W), at label size, at least float32."""
        return full_precision(resize(full_precision(self.out.logits), self._size))

    @cached_property
    def old_logits(self) -> Tensor:
        """(B, O, H, W), at label size, no gradient."""
        return full_precision(resize(full_precision(self.old.logits), self._size)).detach()

    @cached_property
    def valid(self) -> Tensor:
        """(B, H, W) bool: not void."""
        return self.labels != VOID

    @cached_property
    def features(self) -> Tensor:
        """(B, D, h, w): the encoder's output, at least float32."""
        return full_precision(self.out.features)

    @cached_property
    def feature_labels(self) -> Tensor:
        """(B, h, w): labels at the size of ``out.features``, nearest neighbour."""
        return shrink_labels(self.labels, self._feature_size)

    @cached_property
    def old_feature_prediction(self) -> Tensor:
        """(B, h, w): arg max of the previous model at label size, brought to feature size by nearest neighbour."""
        return shrink_labels(self.old_logits.argmax(1), self._feature_size)

    @cached_property
    def n_valid(self) -> Tensor:
        """Pixels of the global batch that are not void, at least 1 (a scalar, float)."""
        return self.reduce(self.valid.sum().to(self.logits.dtype)).clamp(min=1)

    @cached_property
    def n_pixels(self) -> Tensor:
        """Pixels of the global batch, void ones included (a scalar, float)."""
        return self.reduce(self.logits.new_full((), self.labels.numel()))

    @cached_property
    def flat_features(self) -> Tensor:
        """(B, D, hw): ``features`` with the positions in a row; one view for all, so that gradients add in place."""
        return self.features.flatten(2)

    @cached_property
    def class_hot(self) -> Tensor:
        """(B, C, hw): one-hot ``feature_labels``; void belongs to no class."""
        return hot(self.feature_labels, self.step.n_classes, self.features.dtype)

    @cached_property
    def class_counts(self) -> Tensor:
        """(C,): positions of each class in the global batch, at feature size (float; exact up to 2^24)."""
        return self.reduce(self.class_hot.sum((0, 2)))

    @cached_property
    def class_sums(self) -> Tensor:
        """(C, D): sum of ``features`` over the positions of each class in the global batch, with gradient."""
        return self.reduce(class_sums(self.flat_features, self.class_hot))

    @property
    def has_old(self) -> bool:
        """Whether the previous model ran along."""
        return self._old is not None

    def share(self, name: str, compute: Callable[[], T]) -> T:
        """What several terms of one method read: computed by the first that asks."""
        if name not in self._shared:
            self._shared[name] = compute()
        found: T = self._shared[name]
        return found

    @property
    def _size(self) -> tuple[int, int]:
        return self.labels.shape[-2], self.labels.shape[-1]

    @property
    def _feature_size(self) -> tuple[int, int]:
        return self.out.features.shape[-2], self.out.features.shape[-1]


class StepContext(NamedTuple):
    """What a term may use outside the loop.

    ``loader`` gives a fresh pass over this step's training images, (images (B, 3, H, W), labels (B, H, W)) already on
    the device, with a generator of its own: it disturbs no random number of the training. Each process sees its
    share of every batch, hence ``reduce``. ``old_model`` is ``None`` at step 0; both models are unwrapped.
    """

    step: Step
    model: Any
    old_model: Any | None
    loader: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    reduce: Reduce = alone
    seed: int = 0


@dataclass(eq=False)
class Term:
    """One ingredient of the objective. Its fields are its hyper-parameters; ``weight`` multiplies its value.

    A subclass sets ``uses_old`` if it needs the previous model's output, ``uses_setup = False`` if its numbers do not
    depend on ``step.setup`` (sequential and disjoint then share step 0), ``observes`` if it never touches loss or
    gradient (prototypes, importance: it then does not split the key of the weights), ``splits = False`` if it cannot
    give the same for one global batch and its split over processes, ``state`` to the names of EVERY
    attribute that changes (a tensor, or a dict of tensors) and raises ``revision`` whenever its numbers change.
    A term that needs another one's state holds that term in a field.
    """

    uses_old: ClassVar[bool] = False
    uses_setup: ClassVar[bool] = True
    observes: ClassVar[bool] = False
    splits: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()
    revision: ClassVar[int] = 1

    weight: float = field(default=1.0, kw_only=True)

    def begin_step(self, ctx: StepContext) -> None:
        """Before the first update, after the parent's state is loaded. Grow the state to the new classes here."""

    def __call__(self, batch: Batch) -> Tensor | None:
        """The unweighted value (a scalar), or ``None`` if it only observes."""
        return None

    def after_backward(self, model: Any) -> None:
        """Once per update; gradients are unscaled and averaged over processes, not yet clipped.

        All observers are called before any term that adds a gradient of its own.
        """

    def end_step(self, ctx: StepContext) -> None:
        """After the last update and the method's own ``end_step``."""

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
        """Put a state back in place of the present one; the object stays the same, for those that share it."""
        for name in self.state:
            inside = {k.removeprefix(f"{name}/"): v for k, v in flat.items() if k.startswith(f"{name}/")}
            if name in flat:
                setattr(self, name, flat[name])
            else:
                setattr(self, name, inside if isinstance(getattr(self, name), dict) else None)


@dataclass(eq=False)
class CrossEntropy(Term):
    """Mean cross entropy over the valid pixels of the global batch (F-CE, ``mean_valid``)."""

    uses_setup: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Tensor:
        # summed in one fused pass; the mean is formed from global sums
        total = F.cross_entropy(batch.logits, batch.labels, ignore_index=VOID, reduction="sum")
        return batch.reduce(total) / batch.n_valid


# --- the doors, and what they do when no method opens them ---------------------------------------------------------


def same_scenario(scenario: Scenario) -> Scenario:
    """The scenario as asked for."""
    return scenario


def same_model(model: Any, step: Step) -> None:
    """The network as it is."""


def torch_init(model: Any, step: Step) -> None:
    """New classifier rows as torch draws them."""


def train_all(model: Any, step: Step) -> list[dict[str, Any]]:
    """Everything trains: one parameter group."""
    return [{"params": list(model.parameters())}]


def argmax(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """(B, H, W) int64: arg max of the upsampled logits."""
    return resize(full_precision(out.logits), size).argmax(1)


Door: TypeAlias = Callable[..., Any]
DOORS: dict[str, Door] = {
    "scenario": same_scenario,
    "build": same_model,
    "init": torch_init,
    "trainable": train_all,
    "predict": argmax,
}


@dataclass(eq=False)
class Method:
    """A named dictionary of loss terms plus a classifier initialiser.

    ``terms`` act at steps >= 1, ``first`` at step 0 (observers there let their state begin). The doors:

    ``scenario(scenario) -> Scenario`` (Joint: all classes in one step); raise ``UserError`` where it makes no sense.
    ``build(model, step)`` changes the network in place, after the classifier grew and before ``init``; it runs again,
    on a fresh network, for steps 0, 1, ... in order, before weights are loaded.
    ``init(model, step)`` sets the new classifier rows, at steps >= 1.
    ``trainable(model, step)`` gives the optimiser's groups: dicts with ``params`` and, if wanted, ``lr_scale``
    and ``weight_decay``. What is in no group is frozen; a normalisation layer with frozen affine parameters, or
    without parameters, stays in evaluation mode. No parameter at all: the step has no update.
    ``predict(out, size)`` gives the class map (B, H, W).
    ``end_step`` functions of a ``StepContext`` run in order after the last update and before evaluation (fusion).
    A door is a function, or an object with ``__call__`` whose dataclass fields are its parameters.
    """

    name: str
    terms: dict[str, Term]
    first: dict[str, Term] = field(default_factory=lambda: {"ce": CrossEntropy()})
    init: Door = torch_init
    scenario: Door = same_scenario
    build: Door = same_model
    trainable: Door = train_all
    predict: Door = argmax
    end_step: tuple[Door, ...] = ()

    def plus(self, addon: Method) -> Method:
        """This method and an add-on's terms and doors.

        Raises ``ValueError`` where both bring a term of one name, or open one door.
        """
        doors: dict[str, Door] = {}
        for name, default in DOORS.items():
            mine, theirs = getattr(self, name), getattr(addon, name)
            if mine is not default and theirs is not default:
                raise ValueError(f"{self.name} and {addon.name} both bring their own {name!r}")
            doors[name] = theirs if mine is default else mine
        return Method(
            name=f"{self.name}+{addon.name}",
            terms=_union(self, addon, "terms"),
            first=_union(self, addon, "first"),
            end_step=self.end_step + addon.end_step,
            **doors,
        )

    def active(self, step: Step) -> dict[str, Term]:
        """The terms of this step, in the order of evaluation."""
        return self.first if step.index == 0 else self.terms

    def uses_old(self, step: Step) -> bool:
        """Whether the previous model has to run along."""
        return step.index > 0 and any(t.uses_old for t in self.terms.values())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted values by name; observers are run and leave no entry."""
        values: dict[str, Tensor] = {}
        for name, term in self.active(batch.step).items():
            value = term(batch)
            if value is not None:
                values[name] = term.weight * value
        return values

    def __str__(self) -> str:
        lines = [f"{self.name}"]
        for title, terms in (("step 0", self.first), ("later steps", self.terms)):
            parts = [t for t in terms.items() if not t[1].observes]
            watch = [f"{n}: {_words(t)}" for n, t in terms.items() if t.observes]
            lines.append(f"  {title}: " + (" + ".join(_product(n, t) for n, t in parts) or "no loss"))
            lines.extend(f"    observes {w}" for w in watch)
        for name, default in DOORS.items():
            if getattr(self, name) is not default:
                lines.append(f"  {name}: {_words(getattr(self, name))}")
        lines.extend(f"  end of step: {_words(f)}" for f in self.end_step)
        return "\n".join(lines)


def _union(a: Method, b: Method, which: str) -> dict[str, Term]:
    mine, theirs = getattr(a, which), getattr(b, which)
    both = [n for n in mine if n in theirs and not (n == "ce" and which == "first")]
    if both:
        raise ValueError(f"{a.name} and {b.name} both bring a term {both[0]!r}")
    return {**mine, **{n: t for n, t in theirs.items() if n not in mine}}


def _product(name: str, term: Term) -> str:
    weight = "" if term.weight == 1 else f"{term.weight:g} "
    return f"{weight}{name}: {_words(term)}" if name.lower() != type(term).__name__.lower() else f"{weight}{name}"


def _words(thing: Any) -> str:
    """``LocalPod(scales=(1, 2, 4))``: a class or function with the parameters that are not defaults."""
    if not is_dataclass(thing):
        return getattr(thing, "__name__", type(thing).__name__)
    shown = [
        f"{f.name}={getattr(thing, f.name)}"
        for f in fields(thing)
        if f.name != "weight" and f.init and not is_dataclass(getattr(thing, f.name))
    ]
    return type(thing).__name__ + (f"({', '.join(shown)})" if shown else "")


# --- identity ------------------------------------------------------------------------------------------------------


def describe(thing: Any) -> Any:
    """A term, a door or a value in canonical form, fit for hashing as JSON.

    Terms and callable dataclasses give their class, revision and all fields (other terms held in a field included);
    functions their qualified name and ``revision``; numbers declared ``float`` their ``float.hex``, so that ``100``
    and ``100.0`` are one value.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        values: dict[str, Any] = {}
        for f in fields(thing):
            if not f.init:
                continue
            value = getattr(thing, f.name)
            if f.type in ("float", float) and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            values[f.name] = describe(value)
        kind = type(thing)
        return {"is": f"{kind.__module__}.{kind.__qualname__}", "revision": getattr(kind, "revision", 1), **values}
    if isinstance(thing, float):
        return thing.hex()
    if isinstance(thing, (list, tuple)):
        return [describe(x) for x in thing]
    if isinstance(thing, dict):
        return {str(k): describe(v) for k, v in thing.items()}
    if thing is None or isinstance(thing, (str, int, bool)):
        return thing
    if callable(thing) and hasattr(thing, "__qualname__"):
        return {"is": f"{thing.__module__}.{thing.__qualname__}", "revision": getattr(thing, "revision", 1)}
    raise TypeError(f"cannot describe {thing!r}: a method's parameters are numbers, strings, terms and functions")


def held(term: Term) -> Iterator[Term]:
    """The terms whose state this term reads: those held in its fields, directly or through others."""
    for f in fields(term):
        value = getattr(term, f.name)
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, Term):
                yield from held(inner)
                yield inner
