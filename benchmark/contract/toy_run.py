"""A toy run for the contract check: one method on drawn images, trained by the trainer's own code.

It needs no data set and no Accelerator. A rule starts, updates and ends each step itself, so it can look in between.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from contseg.benchmark.models.load import half, term_states
from contseg.benchmark.plan.build import StepNode
from contseg.benchmark.plan.config import Config, TrainConfig
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.plan.views import made_by
from contseg.benchmark.train.trainer import StepTrainer
from contseg.datasets.scenario import BACKGROUND, VOID, Scenario, Step
from contseg.datasets.view import StepView
from contseg.methods.base import Batch, Method, SegOutput, full_precision
from contseg.methods.batch import divided

NETWORK = ModelConfig("tiny", norm="batch")
CPU = torch.device("cpu")
Build: TypeAlias = Callable[[], Method]
ImagesLabels: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ToyRun:
    """A small run: setup, number of new foreground classes of each step (``sizes``), and kind of images.

    In the setup ``domain`` later steps have no new classes. ``background``: whether channel 0 can be predicted.
    """

    setup: str = "overlapped"
    sizes: tuple[int, ...] = (2, 1, 2)
    batch: int = 4
    height: int = 24
    width: int = 24
    classes: str = "all"  # "all" | "some": the newest never occurs | "background" | "void"
    dtype: torch.dtype = torch.float32
    autocast: bool = False  # the networks run in bfloat16
    signed: bool = False  # features of either sign, as after a linear bottleneck or hard swish
    background: bool = True

    @property
    def train(self) -> TrainConfig:
        """The training configuration of a step."""
        precision: Any = "double" if self.dtype == torch.float64 else "bf16" if self.autocast else "no"
        return TrainConfig(
            updates=(6,), lr=(1e-3,), batch=(self.batch,), nesterov=False, weight_decay=0.0, precision=precision
        )

    def steps(self, method: Method) -> tuple[Step, ...]:
        """The steps, after the method's ``scenario`` hook."""
        return self.scenario(method).steps

    def scenario(self, method: Method) -> Scenario:
        """The scenario, after the method's ``scenario`` hook."""
        ends = [sum(self.sizes[: t + 1]) for t in range(len(self.sizes))]
        groups = tuple(tuple(range(e - n + 1, e + 1)) for e, n in zip(ends, self.sizes, strict=True))
        domains = tuple((f"domain {t}",) for t in range(len(groups))) if self.setup == "domain" else ()
        drawn = Scenario("drawn", "-".join(map(str, self.sizes)), self.setup, groups, domains=domains)
        return made_by(method, replace(drawn, background=self.background))

    def draw(self, step: Step, number: int) -> ImagesLabels:
        """Images (noise, coloured by class) and labels (blocks of 8 x 8): a function of step and number."""
        g = torch.Generator().manual_seed(1000 * step.index + number)
        kept = range(1, step.n_old) if step.keeps_labels else ()
        new = range(max(step.n_old, 1), step.n_classes - (self.classes == "some"))
        choices = {
            "background": [BACKGROUND],
            "void": [VOID],
        }.get(self.classes, [*([BACKGROUND] if self.background else ()), VOID, *kept, *new])
        shape = (self.batch, self.height // 8, self.width // 8)
        blocks = torch.tensor(choices)[torch.randint(len(choices), shape, generator=g)]
        labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        colours = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
        images = torch.randn(self.batch, 3, self.height, self.width, generator=g)
        return (images + colours[labels].permute(0, 3, 1, 2)).to(self.dtype), labels

    def stored(self) -> torch.Tensor:
        """Which images of a batch a memory gave, if the method has one: every other."""
        return torch.arange(self.batch) % 2 == 1


@dataclass(frozen=True)
class Parent:
    """What a step leaves to the next one."""

    model: dict[str, Tensor]
    terms: dict[str, Tensor]


class ToyStore:
    """What the trainer needs of a ``Store``: the parent's state, and a place for a checkpoint."""

    def __init__(self, parent: Parent | None) -> None:
        self.parent = parent

    def read_model(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self.parent is not None
        return self.parent.model, {}

    def read_terms(self, key: str) -> dict[str, Tensor]:
        assert self.parent is not None
        return clones(self.parent.terms)

    def checkpoint(self, key: str) -> Path:
        return Path(self._folder.name) / "checkpoint.safetensors"

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory()


class ToyAccelerator:
    """What the trainer needs of an ``Accelerator``, for one process on a CPU."""

    device, process_index, num_processes, is_main_process = CPU, 0, 1, True

    def prepare_model(self, model: Any) -> Any:
        """The network."""
        return model

    def wait_for_everyone(self) -> None:
        """Nothing: there is one process."""


class ToyBatches:
    """What the trainer needs of ``StepBatches``."""

    def __init__(self, node: StepNode, config: Config, toy: ToyRun, *_: Any) -> None:
        self.step, self.toy = node.step, toy

    def whole_pass(self, number: int = 0) -> Iterator[ImagesLabels]:
        """Three batches, the same at every call with this number."""
        return (self.toy.draw(self.step, 100 + 3 * number + i) for i in range(3))


class ToyStep(StepTrainer):
    """One step, trained in pieces by the trainer's own code."""

    batches = ToyBatches

    @classmethod
    def begin(cls, toy: ToyRun, build: Build, index: int, parent: Parent | None = None, moved: bool = False) -> ToyStep:
        """The step before its first update. ``moved``: the student's weights differ from its teacher's."""
        return cls(toy, build, index, parent, moved).start()

    def __init__(
        self, toy: ToyRun, build: Build, index: int, parent: Parent | None = None, moved: bool = False
    ) -> None:
        """The step with its networks and states; ``begin_step`` is not called yet."""
        self.toy, method = toy, build()
        scenario = toy.scenario(method)
        view = StepView((), np.zeros(256, np.uint8), "")

        def node(t: int, before: StepNode | None) -> StepNode:
            return StepNode(f"step {t}", before, scenario, t, method.name, 0, toy.train, view)

        init = then(method.init, move) if moved else method.init
        hook = then(method.build, without_activation) if toy.signed else method.build
        store: Any = ToyStore(parent)
        accelerator: Any = ToyAccelerator()
        dataset: Any = toy
        super().__init__(
            node(index, node(index - 1, None) if parent else None),
            replace(method, init=init, build=hook),
            {},
            config=Config(model=NETWORK),
            dataset=dataset,
            store=store,
            accelerator=accelerator,
        )

    def _begin(self) -> None:
        """Nothing yet: ``start`` does it."""

    def start(self) -> ToyStep:
        """Call every term's ``begin_step``, and make the optimiser."""
        super()._begin()
        if not self.trains:
            self.prepared = self.accelerator.prepare_model(self.model)
        torch.default_generator.manual_seed(self.step.index)
        return self

    @property
    def trains(self) -> bool:
        """Whether the step has updates."""
        return self.total > 0

    def batch(self, number: int) -> Batch:
        """Images and both networks' outputs, as a term gets them."""
        self._train_mode()
        return self._batch(*self.shown(number))

    def shown(self, number: int) -> tuple[Tensor, ...]:
        """What an update sees, stored images among it if the method has a memory."""
        images, labels = self.toy.draw(self.step, number)
        if self.method.memory is None or self.step.index == 0:
            return images, labels
        earlier = self.node.scenario.steps[self.step.index - 1]
        old_images, old_labels = self.toy.draw(earlier, number)
        stored = self.toy.stored()
        images[stored], labels[stored] = old_images[stored], old_labels[stored]
        return images, *divided(labels, stored, self.method.memory.apart)

    def updates(self, numbers: Iterable[int]) -> ToyStep:
        """Several updates, if the step has any; returns the stage."""
        for number in numbers:
            self.update(number)
        return self

    def update(self, number: int, watched: AbstractContextManager[None] | None = None) -> dict[str, Tensor]:
        """One optimiser update, in a context; the weighted losses by name, none if nothing trains."""
        if not self.trains:
            return {}
        self._train_mode()
        shown = self.shown(number)
        with watched or nullcontext():
            return self._update(iter([shown]))

    def end(self) -> Parent:
        """End the step; what it leaves to the next one."""
        self._finish()
        return Parent(clones(self.model.state_dict()), clones(term_states(self.terms)))

    def predict(self, images: Tensor) -> Tensor:
        """(B, H, W): the class map."""
        self.model.eval()
        with torch.no_grad():
            with half(self.device, self.precision):
                out = self.prepared(images)
            prediction: Tensor = self.method.predict(out, (images.shape[-2], images.shape[-1]))
        return prediction

    def save(self) -> Any:
        """Write a checkpoint, if the step has updates; returns the store that holds it."""
        if self.trains:
            self.save_checkpoint()
        return self.store

    def resume(self, store: Any) -> ToyStep:
        """Load the checkpoint of a store that ``save`` returned."""
        self.store = store
        self.load_checkpoint()
        return self


@lru_cache(maxsize=2)
def first_step(toy: ToyRun, build: Build) -> Parent:
    """What a first step of three updates leaves; computed once for all rules that start at the second step."""
    return ToyStep.begin(toy, build, 0, None).updates(range(3)).end()


def second_step(toy: ToyRun, build: Build) -> Callable[..., ToyStep] | None:
    """A function that makes the second step, its student moved, after the trained first one; always the same step.

    With ``begin=False``, ``begin_step`` is not called. ``None`` if the method's scenario has one step.
    """
    if len(toy.steps(build())) < 2:
        return None
    parent = first_step(toy, build)

    def make(begin: bool = True) -> ToyStep:
        stage = ToyStep(toy, build, 1, parent, moved=True)
        return stage.start() if begin else stage

    return make


def steepest(toy: ToyRun, build: Build) -> dict[str, float]:
    """The largest gradient of each loss with respect to the network's output, over four batches of one step."""
    make = second_step(toy, build) or (lambda: ToyStep.begin(toy, build, 0, None))
    stage = make()
    found: dict[str, float] = {}
    for number in range(4 if stage.trains else 0):
        batch = stage.batch(number)
        outputs = [t for t in tensors_of(batch.out) if t.requires_grad]
        for name, value in stage.method.losses(batch).items():
            if value.requires_grad and outputs:
                slopes = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
                largest = max((float(g.abs().max()) for g in slopes if g is not None), default=0.0)
                found[name] = max(found.get(name, 0.0), largest)
    return found


def then(hook: Callable[[Any, Step], None], more: Callable[[Any, Step], None]) -> Callable[[Any, Step], None]:
    """A hook that calls both, one after the other; the first at step 0 only if it is not marked ``@later``."""

    def both(model: Any, step: Step) -> None:
        if step.index > 0 or not getattr(hook, "later", False):
            hook(model, step)
        more(model, step)

    return both


def without_activation(model: Any, step: Step) -> None:
    """Make the encoder's features its last stage before the activation, so that they may be negative."""
    if step.index == 0:
        model.encoder.register_forward_hook(_last_stage)


def _last_stage(encoder: nn.Module, images: Any, output: Any) -> Any:
    _, stages = output
    return stages[-1], stages


def move(model: nn.Module, step: Step) -> None:
    """Add noise to every weight, about a twentieth of its tensor's root mean square."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in model.parameters():
            size = p.square().mean().sqrt().clamp(min=0.02)
            p.add_(0.05 * size * torch.randn(p.shape, generator=g, dtype=p.dtype))


def clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of the tensors."""
    return {k: v.detach().clone() for k, v in tensors.items()}


def map_output(out: SegOutput, change: Callable[[Tensor], Tensor]) -> SegOutput:
    """The output with every tensor changed, in the order of ``tensors_of``."""
    logits, features, embedding = (change(t) for t in (out.logits, out.features, out.embedding))
    stages = tuple(change(s) for s in out.stages)
    return SegOutput(logits, features, embedding, stages, {k: change(v) for k, v in out.extra.items()})


def in_full_precision(batch: Batch) -> Batch:
    """The batch, not read yet, with float32 copies of both networks' outputs."""
    batch.out = map_output(batch.out, full_precision)
    if batch.has_old:
        batch._old = map_output(batch.old, full_precision)
    return batch


def tensors_of(out: SegOutput) -> list[Tensor]:
    """Every tensor of an output."""
    return [out.logits, out.features, out.embedding, *out.stages, *out.extra.values()]
