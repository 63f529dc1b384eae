"""A small course for the contract check: one method, drawn pictures, the way through the steps that the trainer takes.

No data, no files, no Accelerator: a step is begun, updated and ended by hand, so that a rule can look in between.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmark.load import grow, load_terms, skeleton, term_states
from benchmark.model import Segmenter
from benchmark.model_config import ModelConfig
from datasets.scenario import BACKGROUND, VOID, Scenario, Step
from methods.base import Batch, Method, SegOutput, StepContext, Term, alone
from methods.modules import is_norm

NETWORK = ModelConfig("tiny", norm="batch")
CPU = torch.device("cpu")
RATE, MOMENTUM = 1e-3, 0.9
Build: TypeAlias = Callable[[], Method]
Pictures: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Course:
    """What is learned, on which kind of pictures: ``sizes`` are foreground classes by step."""

    setup: str = "overlapped"
    sizes: tuple[int, ...] = (2, 1, 2)
    batch: int = 4
    height: int = 24
    width: int = 24
    classes: str = "all"  # "all" | "some": the newest never occurs | "background" | "void"
    dtype: torch.dtype = torch.float32
    autocast: bool = False  # the networks run in bfloat16
    signed: bool = False  # features of either sign, as after a linear bottleneck or hard swish

    def steps(self, method: Method) -> tuple[Step, ...]:
        """The steps as the method wants them."""
        ends = [sum(self.sizes[: t + 1]) for t in range(len(self.sizes))]
        groups = tuple(tuple(range(e - n + 1, e + 1)) for e, n in zip(ends, self.sizes, strict=True))
        scenario: Scenario = method.scenario(Scenario("drawn", "-".join(map(str, self.sizes)), self.setup, groups))
        return scenario.steps

    def pictures(self, step: Step, number: int) -> Pictures:
        """Noise, coloured by class, and labels in blocks of 8 x 8: the same for the same number."""
        g = torch.Generator().manual_seed(1000 * step.index + number)
        kept = range(1, step.n_old) if step.setup == "sequential" else ()
        new = range(max(step.n_old, 1), step.n_classes - (self.classes == "some"))
        choices = {
            "background": [BACKGROUND],
            "void": [VOID],
        }.get(self.classes, [BACKGROUND, VOID, *kept, *new])
        shape = (self.batch, self.height // 8, self.width // 8)
        blocks = torch.tensor(choices)[torch.randint(len(choices), shape, generator=g)]
        labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        colours = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
        images = torch.randn(self.batch, 3, self.height, self.width, generator=g)
        return (images + colours[labels].permute(0, 3, 1, 2)).to(self.dtype), labels

    def loader(self, step: Step) -> Iterator[Pictures]:
        """Three batches, the same at every call."""
        return (self.pictures(step, 100 + i) for i in range(3))


@dataclass
class Parent:
    """What a step leaves to the next one."""

    model: dict[str, Tensor]
    terms: dict[str, Tensor]


@dataclass
class Stage:
    """One step under way."""

    course: Course
    method: Method
    step: Step
    model: Segmenter
    old: Segmenter | None
    context: StepContext
    optimizer: torch.optim.SGD | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    @classmethod
    def begin(
        cls, course: Course, build: Build, index: int, parent: Parent | None = None, moved: bool = False
    ) -> Stage:
        """The step before its first update; ``moved``: the student is not where its teacher is."""
        return cls.ready(course, build, index, parent, moved).start()

    @classmethod
    def ready(
        cls, course: Course, build: Build, index: int, parent: Parent | None = None, moved: bool = False
    ) -> Stage:
        """The step with its networks and states; no term has begun."""
        method = build()
        steps = course.steps(method)
        step = steps[index]
        model = skeleton(NETWORK, steps[: max(index, 1)], method, seed=0)
        if course.signed:
            model.encoder.register_forward_hook(without_activation)
        old = None
        if parent is not None:
            model.load_state_dict(parent.model)
            old = copy.deepcopy(model).to(course.dtype).eval().requires_grad_(False)
            grow(model, step, method)
            method.init(model, step)
            load_terms(method.active(step), clones(parent.terms), CPU)
        model = model.to(course.dtype)
        if moved:
            move(model)
        return cls(course, method, step, model, old, StepContext(step, model, old, lambda: course.loader(step)))

    def start(self) -> Stage:
        """Let the terms begin, and make the optimiser."""
        for term in self.terms.values():
            term.begin_step(self.context)
        groups = [g for g in self.method.door("trainable", self.step)(self.model, self.step) if len(g["params"])]
        trained = {id(p) for g in groups for p in g["params"]}
        for p in self.model.parameters():
            p.requires_grad_(id(p) in trained)
        rates = [{"params": g["params"], "lr": RATE * g.get("lr_scale", 1.0)} for g in groups]
        self.optimizer = torch.optim.SGD(rates, RATE, MOMENTUM) if rates else None
        torch.default_generator.manual_seed(self.step.index)
        return self

    @property
    def terms(self) -> dict[str, Term]:
        """Those of this step."""
        return self.method.active(self.step)

    def batch(self, number: int) -> Batch:
        """Pictures and both networks' outputs, as a term gets them."""
        images, labels = self.course.pictures(self.step, number)
        self.model.train()
        for module in self.model.modules():
            if is_norm(module) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        out = self.look(self.model, images)
        old = None
        if self.method.uses_old(self.step):
            with torch.no_grad():
                old = self.look(self.old, images)
        return Batch(images, labels, out, old, self.step, alone, self.generator)

    def look(self, model: Any, images: Tensor) -> SegOutput:
        """A network's output, in bfloat16 if the course says so."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.course.autocast):
            out: SegOutput = model(images)
        return out

    def update(self, number: int) -> dict[str, Tensor]:
        """One optimiser update; the weighted losses by name, none where nothing trains."""
        if self.optimizer is None:
            return {}
        self.optimizer.zero_grad()
        losses = self.method.losses(self.batch(number))
        torch.stack([*losses.values()]).sum().backward()
        terms = self.terms.values()
        for term in [t for t in terms if t.observes] + [t for t in terms if not t.observes]:
            term.after_backward(self.model)
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def updates(self, numbers: Iterable[int]) -> Stage:
        """Several updates; returns the stage."""
        for number in numbers:
            self.update(number)
        return self

    def end(self) -> Parent:
        """After the last update."""
        self.model.eval()
        for fuse in self.method.endings(self.step):
            fuse(self.context)
        for term in self.terms.values():
            term.end_step(self.context)
        return Parent(clones(self.model.state_dict()), clones(term_states(self.terms)))

    def predict(self, images: Tensor) -> Tensor:
        """(B, H, W): the class map."""
        self.model.eval()
        with torch.no_grad():
            out = self.look(self.model, images)
            prediction: Tensor = self.method.predict(out, (images.shape[-2], images.shape[-1]))
        return prediction

    def checkpoint(self) -> bytes:
        """What the trainer writes: network, momentum, terms, random numbers."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"momentum/{i}": b for i, b in enumerate(self._momenta())}
        tensors |= {f"terms/{k}": v for k, v in term_states(self.terms).items()}
        tensors |= {"rng": torch.get_rng_state(), "generator": self.generator.get_state()}
        return save({k: v.contiguous() for k, v in clones(tensors).items()})

    def resume(self, content: bytes) -> Stage:
        """Go on from a checkpoint."""
        tensors = load(content)

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}

        self.model.load_state_dict(part("model"))
        if self.optimizer is not None:
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            for i, buffer in part("momentum").items():
                self.optimizer.state[parameters[int(i)]]["momentum_buffer"] = buffer
        load_terms(self.terms, part("terms"), CPU)
        torch.set_rng_state(tensors["rng"])
        self.generator.set_state(tensors["generator"])
        return self

    def _momenta(self) -> list[Tensor]:
        if self.optimizer is None:
            return []
        state: Any = self.optimizer.state
        return [state[p]["momentum_buffer"] for g in self.optimizer.param_groups for p in g["params"] if p in state]


@lru_cache(maxsize=2)
def first_step(course: Course, build: Build) -> Parent:
    """What a first step of three updates leaves; found once for all rules that begin at the second."""
    return Stage.begin(course, build, 0, None).updates(range(3)).end()


def second_step(course: Course, build: Build) -> Callable[..., Stage] | None:
    """Makes the second step, its student moved, after a trained first one: the same every time.

    ``begin=False``: its terms have not begun. None if the method asks for a scenario with one step.
    """
    if len(course.steps(build())) < 2:
        return None
    parent = first_step(course, build)

    def make(begin: bool = True) -> Stage:
        return (Stage.begin if begin else Stage.ready)(course, build, 1, parent, moved=True)

    return make


def steepest(course: Course, build: Build) -> dict[str, float]:
    """The largest gradient of each loss with respect to the network's output, over four batches of one step."""
    make = second_step(course, build) or (lambda: Stage.begin(course, build, 0, None))
    stage = make()
    found: dict[str, float] = {}
    for number in range(4 if stage.optimizer is not None else 0):
        batch = stage.batch(number)
        outputs = [t for t in tensors_of(batch.out) if t.requires_grad]
        for name, value in stage.method.losses(batch).items():
            if value.requires_grad and outputs:
                slopes = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
                largest = max((float(g.abs().max()) for g in slopes if g is not None), default=0.0)
                found[name] = max(found.get(name, 0.0), largest)
    return found


def without_activation(encoder: nn.Module, images: Any, output: Any) -> Any:
    """The last stage before its activation in place of the features."""
    _, stages = output
    return stages[-1], stages


def move(model: nn.Module) -> None:
    """Move every weight by about a twentieth of its tensor's size."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in model.parameters():
            size = p.square().mean().sqrt().clamp(min=0.02)
            p.add_(0.05 * size * torch.randn(p.shape, generator=g, dtype=p.dtype))


def clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, in memory of their own."""
    return {k: v.detach().clone() for k, v in tensors.items()}


def map_output(out: SegOutput, change: Callable[[Tensor], Tensor]) -> SegOutput:
    """The output with every tensor changed, in the order of ``tensors_of``."""
    logits, features, embedding = (change(t) for t in (out.logits, out.features, out.embedding))
    stages = tuple(change(s) for s in out.stages)
    return SegOutput(logits, features, embedding, stages, {k: change(v) for k, v in out.extra.items()})


def tensors_of(out: SegOutput) -> list[Tensor]:
    """Every tensor of an output."""
    return [out.logits, out.features, out.embedding, *out.stages, *out.extra.values()]
