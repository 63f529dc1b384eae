"""grid -> runs -> step keys: what must be trained, what is shared, what is stored. Only here a grid is expanded.

A step's key hashes what the step *sees and does*, never the names of scenario or method: equal steps are trained once.
Observers (terms that change no weight) have keys of their own, so methods with different observers share a training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from contseg.benchmark.plan.config import Config, TrainConfig, checked
from contseg.benchmark.plan.model_config import check, model_identity
from contseg.benchmark.plan.observers import needed_observers, observed, observers_read, read_by
from contseg.benchmark.plan.protocol import Protocol, parse_protocol
from contseg.benchmark.plan.recipe import own_recipe
from contseg.benchmark.plan.views import Views, check_domains, check_slots, made_by
from contseg.benchmark.store.files import Store, cell_path, digest
from contseg.benchmark.store.origin import Origin, Origins, differing, evaluation_files, observer_files, training_files
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.domains import images_for
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Scenario, Step
from contseg.datasets.view import StepView, scenario_of, scored_view
from contseg.methods.base import HOOKS, Method, describe, held
from contseg.methods.memory import Memory
from contseg.methods.registry import build_method, expand_methods, plugins_of, refuse_equal

# Of trainer, network and transforms, by train.precision (and norm): raised when numbers change, so that no old step is
# reused. In float64 weights are passed on unrounded, fp16 scales each step by itself, frozen norms keep half precision.
REVISIONS = {"no": 1, "bf16": 1, "fp16": 2, "double": 2, "bf16 frozen": 2, "fp16 frozen": 3}
TRAINING_HOOKS = ("build", "trainable", "init")


@dataclass(frozen=True)
class SharedObserver:
    """An observer of a training: the term ``term`` of ``method``.

    ``before`` is the key of its state after the step before; ``None`` if it starts here.
    """

    method: str
    term: str
    before: str | None


@dataclass
class StepNode:
    """One training, with its observers by key.

    ``branch``: retraining for a late observer gave other weights, so that this observer has a training of its own.
    """

    key: str
    parent: StepNode | None
    scenario: Scenario
    index: int
    method: str
    seed: int
    train: TrainConfig
    view: StepView
    observers: dict[str, SharedObserver] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)
    branch: bool = False
    memory: Memory | None = None

    @property
    def step(self) -> Step:
        return self.scenario.steps[self.index]

    @property
    def updates(self) -> int:
        return self.train.plan_updates(self.epoch_images)

    @property
    def epoch_images(self) -> int:
        """Images that an epoch shows: those of the step, and stored ones that are appended to them."""
        appended = self.memory is not None and self.memory.mix == "append"
        return len(self.view.ids) + (len(self.view.stored) if appended else 0)

    @property
    def images(self) -> int:
        """Training images that it processes."""
        return self.updates * self.train.batch[0]

    @property
    def title(self) -> str:
        """``voc/15-1/overlapped step 2 MiB+SDR seed 0``."""
        return f"{self.scenario.name} step {self.index} {self.method} seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """A step of a run: its training, its evaluation and its record."""

    node: StepNode
    score: str  # key of the evaluation, and of the record
    path: Path  # of the record
    reads: dict[str, str]  # observers whose state the prediction reads: name in the run's own method -> key


@dataclass(frozen=True)
class Run:
    """A path through steps: one scenario, one method, one seed."""

    scenario: Scenario
    method: str
    seed: int
    cells: tuple[Cell, ...]
    key: str
    plugins: tuple[tuple[str, str], ...] = ()  # module and hash of those that define its method
    memory: Memory | None = None

    @property
    def title(self) -> str:
        return f"{self.scenario.name} {self.method} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """An expanded grid: its runs, and their trainings, parents first."""

    config: Config
    protocol: Protocol
    datasets: dict[str, SegmentationDataset]
    runs: tuple[Run, ...]
    nodes: dict[str, StepNode]
    origins: Origins

    def recorded(self, store: Store, cell: Cell) -> bool:
        """Whether a cell's record is stored. A record of other code does not count, unless it is trusted."""
        return store.record_of(cell.path)[0] == cell.score and not self._record_differs(store, cell)

    def scored(self, store: Store, cell: Cell) -> bool:
        """Whether a cell's evaluation is in the cache, made by the present code."""
        return self.origins.current(cell.score, store)

    def trained(self, store: Store, key: str, observers: Iterable[str] = ()) -> bool:
        """Whether a step's weights and the states of these observers are in the cache, made by the present code."""
        return all(self.origins.current(k, store) for k in (key, *observers))

    def made_by_other_code(self, store: Store) -> dict[str, list[str]]:
        """Steps to repeat because other code made them: their titles, and the files that changed."""
        found: dict[str, list[str]] = {}
        todo = {n.key for n in self.to_score_or_train(store)}
        for cell in (c for r in self.runs for c in r.cells if c.node.key in todo):
            keys = [k for k in (cell.node.key, *cell.node.observers, cell.score) if self.origins.kept(k, store)]
            files = [*(self.origins.differs(k, store) for k in keys), self._record_differs(store, cell)]
            if any(files):
                found.setdefault(cell.node.title, next(f for f in files if f))
        return found

    def _record_differs(self, store: Store, cell: Cell) -> list[str]:
        key, code = store.record_of(cell.path)
        if store.trust or key != cell.score or code is None:
            return []
        keys = {"training": cell.node.key, "evaluation": cell.score}
        said = {name: code[name] if isinstance(code[name], dict) else None for name in keys}
        files = [differing(said[name], self.origins.expected(k)) for name, k in keys.items()]
        return files[0] or files[1]

    def missing_scores(self, store: Store) -> list[Cell]:
        """Cells without their record, one for each evaluation."""
        cells = {c.score: c for r in self.runs for c in r.cells if not self.recorded(store, c)}
        return list(cells.values())

    def to_train(self, store: Store) -> list[StepNode]:
        """The trainings that the missing cells need, parents first, without those whose results are stored."""
        return self._trainings_for(self._to_score(store), store)

    def _to_score(self, store: Store) -> list[Cell]:
        return [c for c in self.missing_scores(store) if not self.scored(store, c)]

    def _trainings_for(self, cells: Iterable[Cell], store: Store) -> list[StepNode]:
        wanted: dict[str, set[str]] = {}

        def need(node: StepNode, observers: Iterable[str]) -> None:
            known, asked = node.key in wanted, wanted.setdefault(node.key, set())
            if known and asked.issuperset(observers):
                return
            asked.update(observers)
            if node.parent is not None and not self.trained(store, node.key, asked):
                need(node.parent, node.parent.observers)

        for cell in cells:
            need(cell.node, cell.reads.values())
        missing = {k for k, observers in wanted.items() if not self.trained(store, k, observers)}
        return [node for key, node in self.nodes.items() if key in missing]

    def to_score_or_train(self, store: Store) -> list[StepNode]:
        """``to_train``, then the steps that are trained but not scored."""
        cells = self._to_score(store)
        nodes = [*self._trainings_for(cells, store), *(c.node for c in cells)]
        return list({n.key: n for n in nodes}.values())

    def images(self, scenario: Scenario) -> SegmentationDataset:
        """The data set of a scenario; for a scenario by domain, both of its splits as one."""
        return images_for(self.datasets[scenario.dataset], scenario)

    def tested_on_trained(self, run: Run, t: int = -1) -> tuple[int, int]:
        """By domain: how many test images of step ``t`` the run trained on by then, and how many there are."""
        cells = run.cells[: t % len(run.cells) + 1]
        view = scored_view(self.images(run.scenario), run.scenario, len(cells) - 1, self.config.eval.split)
        trained = {i for c in cells for i in c.node.view.ids}
        return len(trained.intersection(view.ids)), len(view.ids)

    @property
    def trains(self) -> list[TrainConfig]:
        """What the grid's steps are trained with, each once."""
        return [*dict.fromkeys(n.train for n in self.nodes.values())]

    def alone(self) -> int:
        """Training images if every cell were trained on its own."""
        return sum(c.node.images for r in self.runs for c in r.cells)

    def shared(self) -> int:
        """Training images when each step is trained once."""
        return sum(n.images for n in self.nodes.values())


def make_plan(config: Config, open_data: Callable[[str], SegmentationDataset], branches: Collection[str] = ()) -> Plan:
    """Expand the grid. Every mistake that can be known before training raises ``UserError`` here.

    ``branches``: the observers whose retraining gave other weights (``Store.branches``).
    """
    config = checked(config)
    protocol = parse_protocol(config.protocol)
    check(config.model)
    if not config.scenarios:
        raise UserError("no scenario: give --scenarios voc/15-1/overlapped ... or a --config FILE.toml that names some")
    if not config.methods:
        raise UserError("no method: give --methods FT MiB+SDR ... or a --config FILE.toml that names some")
    methods, recipes = dict[str, Method](), dict[str, TrainConfig]()
    for method in (build_method(one) for text in config.methods for one in expand_methods(text)):
        name, train = own_recipe(config, method.name)
        methods[name], recipes[name] = replace(method, name=name), train
    refuse_equal(methods.values())
    for m in methods.values():  # now, before reading data takes minutes: the files as they were loaded
        training_files([*m.first.values(), *m.terms.values()])
    builder = _Builder(config, protocol, open_data, branches)
    builder.recipes |= recipes
    asked = [(builder.scenario(text, seed), seed) for text in config.scenarios for seed in config.seeds]
    runs = {}
    for scenario, seed in asked:
        for method in methods.values():
            run = builder.run(made_by(method, scenario), method, seed)
            runs[run.scenario, run.method, seed] = run  # Joint of some classes has the name of Joint of all
    return Plan(config, protocol, builder.datasets, tuple(runs.values()), builder.nodes, builder.origins)


class _Builder:
    """Builds runs; equal steps become one node."""

    def __init__(
        self,
        config: Config,
        protocol: Protocol,
        open_data: Callable[[str], SegmentationDataset],
        branches: Collection[str],
    ) -> None:
        self.config, self.protocol, self.open_data, self.branches = config, protocol, open_data, branches
        self.recipes: dict[str, TrainConfig] = {}  # by method
        self.datasets: dict[str, SegmentationDataset] = {}
        self.nodes: dict[str, StepNode] = {}
        self.origins = Origins()
        split = "train" if config.eval.split == "val" else "tune-train"
        self._views = Views(self.datasets, protocol.void_in_training, split)
        self._tests: dict[Any, dict[str, Any]] = {}  # by data set; for tuning by scenario and step
        self._model = model_identity(config.model)

    def scenario(self, text: str, seed: int) -> Scenario:
        name = text.partition("/")[0]
        if name not in self.datasets:
            self.datasets[name] = self.open_data(name)
        return scenario_of(self.datasets[name], text, seed)

    def run(self, scenario: Scenario, method: Method, seed: int) -> Run:
        check_domains(scenario, method)
        cells: list[Cell] = []
        parent: StepNode | None = None
        states: dict[int, str] = {}  # id of an observer -> key of its state after the step before
        needed = needed_observers(method, len(scenario.steps))
        for step in scenario.steps:
            view = self._views.of(scenario, step.index, method.memory, seed)
            active = method.active(step)
            read = needed[step.index] | {id(h) for t in active.values() for h in held(t)}
            shared = {name: t for name, t in active.items() if t.observes and id(t) in read}
            key = original = self._step_key(step, method, seed=seed, view=view, parent=parent, states=states)
            before, states = states, observed(key, step, active, states)
            while any(states[id(t)] in self.branches for t in shared.values()):
                key = digest({"branch": key})
                states = observed(key, step, active, before)
            node = self.nodes.get(key)
            if node is None:
                train = self.recipes[method.name].at(step.index)
                branch = key != original
                memory = method.memory if view.stored else None
                if memory is not None:
                    check_slots(memory, train, method.name)
                node = StepNode(
                    key, parent, scenario, step.index, method.name, seed, train, view, branch=branch, memory=memory
                )
                train.warmup_updates(node.epoch_images)  # refuses a warm-up longer than the step
                self.nodes[key] = node
                on = (*([parent.key] if parent else ()), *observers_read(active, before))
                self.origins.add(key, Origin("model", key, training_files(_called(step, method)), on))
            for name, term in shared.items():
                state, earlier = states[id(term)], before.get(id(term))
                node.observers.setdefault(state, SharedObserver(method.name, name, earlier))
                on = (key, *([earlier] if earlier else ()))
                self.origins.add(state, Origin("observer", key, observer_files(term), on))
            user = f"{scenario.name} {method.name}"
            if user not in node.used_by:
                node.used_by.append(user)
            names = {id(t): name for name, t in active.items()}
            reads = {names[id(t)]: states[id(t)] for t in read_by(method.predict) if id(t) in states}
            shows = {"step": key, "predict": describe(method.predict), "reads": [*reads.values()]}
            score = digest({**shows, **self._test(scenario, step.index)})
            files = evaluation_files(method.predict)
            self.origins.add(score, Origin("score", key, files, (key, *reads.values())))
            cells.append(Cell(node, score, Path(), reads))
            parent = node
        return _with_paths(scenario, method, seed, cells)

    def _step_key(
        self,
        step: Step,
        method: Method,
        *,
        seed: int,
        view: StepView,
        parent: StepNode | None,
        states: dict[int, str],
    ) -> str:
        precision = self.config.train.precision
        terms = {n: t for n, t in method.active(step).items() if not t.observes}
        hooks = {n: describe(h) for n in TRAINING_HOOKS if (h := method.hook(n, step)) is not HOOKS[n]}
        reads = observers_read(terms, states)
        warm_ups, endings = method.warm_ups(step), method.endings(step)
        uses_setup = bool(hooks or warm_ups or endings) or any(t.uses_setup for t in terms.values())
        return digest(
            {
                "revision": REVISIONS.get(f"{precision} {self.config.model.norm}", REVISIONS[precision]),
                "parent": parent.key if parent else self._model,
                "reads": reads,
                "sees": view.digest,
                "index": step.index,
                "channels": [step.n_old, *step.seen_classes],
                "setup": step.setup if uses_setup else None,
                "train": describe(self.recipes[method.name].at(step.index)),
                "seed": seed,
                "terms": [[n if t.state else None, describe(t)] for n, t in terms.items()],
                "doors": hooks,  # their name when the first keys were made
                "end_step": describe(endings),
                **({"warm_up": describe(warm_ups)} if warm_ups else {}),
                **({"memory": method.memory.shown} if method.memory and view.stored else {}),
                **({} if step.background else {"background": False}),
            }
        )

    def _test(self, scenario: Scenario, index: int) -> dict[str, Any]:
        """What an evaluation depends on, besides the network."""
        evaluation, dataset = self.config.eval, self.datasets[scenario.dataset]
        place = (scenario, index) if evaluation.split == "tune" or scenario.domains else scenario.dataset
        if place not in self._tests:
            self._tests[place] = {
                "view": self.protocol.eval_view,
                "crop": (evaluation.crop or self.config.train.crop) if self.protocol.eval_view == "crop" else None,
                "split": evaluation.split,
                "test": scored_view(dataset, scenario, index, evaluation.split).digest,
                **({"by": sum(scenario.domains[: index + 1], ())} if scenario.domains else {}),
                # rows of more than 127 labels were counted wrongly once
                **({"counted": 2} if len(dataset.class_names) > 127 else {}),
            }
        return self._tests[place]


def _called(step: Step, method: Method) -> list[Any]:
    """The terms and hooks that a step's training calls, without observers."""
    terms = [t for t in method.active(step).values() if not t.observes]
    hooks = [method.hook(name, step) for name in TRAINING_HOOKS]
    return [*terms, *hooks, *method.warm_ups(step), *method.endings(step)]


def _with_paths(scenario: Scenario, method: Method, seed: int, cells: list[Cell]) -> Run:
    key = digest([c.score for c in cells])
    place: dict[str, Any] = {
        "dataset": scenario.dataset,
        "task": scenario.task,
        "order": scenario.order,
        "setup": scenario.setup,
        "method": method.name,
        "run": key,
        "seed": seed,
    }
    placed = tuple(replace(c, path=cell_path(**place, step=t)) for t, c in enumerate(cells))
    return Run(scenario, method.name, seed, placed, key, plugins_of(method.name), method.memory)
