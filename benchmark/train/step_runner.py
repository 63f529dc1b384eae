"""One step of a plan: train it, score it, and keep what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from contseg.benchmark.models.load import load_terms, on_device, term_states, trained
from contseg.benchmark.plan.build import Cell, Plan, StepNode
from contseg.benchmark.store.files import (
    LostStateError,
    Store,
    digest,
    read_sealed,
    tensors_digest,
    write_json,
    write_sealed,
    write_tensors,
)
from contseg.benchmark.store.provenance import provenance
from contseg.benchmark.train.batches import loader_processes
from contseg.benchmark.train.distributed import InterruptedStepError, gather
from contseg.benchmark.train.evaluate import evaluate
from contseg.benchmark.train.step_record import describe_step
from contseg.benchmark.train.test_set import test_set
from contseg.benchmark.train.trainer import Observer, StepTrainer
from contseg.datasets.errors import UserError
from contseg.methods.base import Method, describe
from contseg.methods.registry import build_method

SCORED = (2048, 2048)  # a test image is hardly larger


@dataclass
class Outcome:
    """What a run did: numbers of trained and scored steps, and the failed ones, by title, with a reason in one line."""

    trained: int = 0
    scored: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    branched: bool = False  # a retraining gave other weights: the grid must be planned again
    interrupted: int = 0  # the signal that stopped the run


class NotScoredError(Exception):
    """Some evaluations of a trained step failed: the errors by title."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(", ".join(errors))
        self.errors = errors


class StepRunner:
    """Trains and scores single steps of a plan, and stores what comes of them. Parents are in the store already."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        accelerator: Accelerator,
        *,
        say: Callable[[str], None] = print,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.store, self.accelerator, self.say, self.stop = plan, store, accelerator, say, stop
        self.outcome = Outcome()
        self.trained: set[str] = set()  # keys of the steps that this program trained
        self._run_of = {c.score: r for r in plan.runs for c in r.cells}

    def train(self, node: StepNode) -> None:
        """Train a step, store its weights and states, and write the scores that it has to give."""
        method = build_method(node.method)
        self._check_checkpoint(node)
        trainer = self.trainer(node, method)
        cost = trainer.run()
        weights = trainer.model.state_dict()
        if not gather(self._same_as_stored(node, weights))[0]:
            self._branch(node)
            return
        terms = term_states({n: t for n, t in trainer.terms.items() if not t.observes})  # observers have own files
        meta = describe_step(
            self.plan,
            node,
            cost=cost,
            progress=trainer.progress,
            terms=bool(terms),
            accelerator=self.accelerator,
            code=self.plan.origins.now(node.key, {}, self.store),
        )
        if self.accelerator.is_main_process:
            self._keep(trainer, weights, terms, meta)
        self.accelerator.wait_for_everyone()
        self.outcome.trained += 1
        self.trained.add(node.key)
        self._score_all(node, on_device(trainer.model, self.accelerator.device), method)

    def trainer(self, node: StepNode, method: Method) -> StepTrainer:
        """What trains a step of the plan, with every observer that needs this training."""
        return StepTrainer(
            node,
            method,
            self._observers(node, method),
            config=self.plan.config,
            dataset=self.plan.images(node.scenario),
            store=self.store,
            accelerator=self.accelerator,
            stop=self.stop,
        )

    def _check_checkpoint(self, node: StepNode) -> None:
        """Keep a checkpoint only if it was written by the present code."""
        store, origins = self.store, self.plan.origins
        if self.accelerator.is_main_process:
            keys = [node.key, *sorted(node.observers)]
            code = digest([origins.known[k].files for k in keys] + [origins.now(node.key, {}, store)["on"]])
            begun = read_sealed(store.begun(node.key)) or {}
            if begun.get("code") != code:
                if store.checkpoint(node.key).exists():
                    self.say(f"{node.title}: its checkpoint was written by other code; the step starts again")
                store.drop_checkpoint(node.key)
                write_sealed(store.begun(node.key), {"code": code})
        self.accelerator.wait_for_everyone()

    def _observers(self, node: StepNode, method: Method) -> dict[str, Observer]:
        """The observers of a training by key, with the states in which the parent step left them."""
        built = {node.method: method}
        observers: dict[str, Observer] = {}
        for key, shared in node.observers.items():
            owner = built.setdefault(shared.method, build_method(shared.method))
            state = None
            if node.parent is not None and shared.before is not None:
                state = self.store.read_observer(node.parent.key, shared.before)
            observers[key] = Observer(owner.active(node.step)[shared.term], state)
        return observers

    def _keep(
        self, trainer: StepTrainer, weights: dict[str, Tensor], terms: dict[str, Tensor], meta: dict[str, Any]
    ) -> None:
        """Store a trained step: the states of terms and observers, then the weights."""
        store, origins, node = self.store, self.plan.origins, trainer.node
        stored = origins.current(node.key, store)  # the step was trained again, for a late observer
        made = {node.key: origins.stored(node.key, store) if stored else meta["code"]}
        if not stored and (terms or store.terms(node.key).exists()):
            store.model(node.key).unlink(missing_ok=True)  # of other code: never beside the terms of this training
            store.terms(node.key).unlink(missing_ok=True)
        if terms:
            write_tensors(store.terms(node.key), terms, {})
        for key, term in trainer.observers.items():
            what = {"term": node.observers[key].term, "is": describe(term), "code": origins.now(key, made, store)}
            write_tensors(store.observer(node.key, key), term.state_dict(), what)
        if not stored:
            write_tensors(store.model(node.key), weights, meta)  # last: its presence says that the step is trained
        store.drop_checkpoint(node.key)

    def _same_as_stored(self, node: StepNode, weights: dict[str, Tensor]) -> bool:
        """Whether a retraining for a late observer gave the stored weights; true if none are stored."""
        if not self.plan.trained(self.store, node.key):
            return True
        try:
            return bool(self.store.meta(node.key)["sha256"] == tensors_digest(weights))
        except LostStateError:
            return True

    def _branch(self, node: StepNode) -> None:
        """Give the late observers a training of their own, which the next plan contains."""
        self.outcome.branched = True
        if self.accelerator.is_main_process:
            for key, shared in node.observers.items():
                if not self.plan.origins.current(key, self.store):  # missing, or made by other code
                    what = {"step": node.key, "title": node.title, "method": shared.method, "term": shared.term}
                    write_json(self.store.branch(key), what | {"provenance": provenance(self.accelerator)})
            self.store.drop_checkpoint(node.key)
            self.say(
                f"{node.title}: retraining for a late observer gave other weights than those stored (another machine, "
                "or another number of threads or processes?); the observer gets a training of its own"
            )

    # --- scores ---------------------------------------------------------------------------------------------------

    def score(self, node: StepNode) -> None:
        """Score a step whose weights are in the cache."""
        steps, weights = node.scenario.steps[: node.index + 1], self.store.read_model(node.key)[0]
        model = trained(self.plan.config.model, steps, build_method(node.method), 0, weights)
        self._score_all(node, on_device(model, self.accelerator.device))

    def _score_all(self, node: StepNode, model: Any, trained: Method | None = None) -> None:
        """Score a step by the prediction rule of every method that shares it; ``trained`` has its states already.

        Raises ``NotScoredError`` at the end: a rule that fails is its own method's mistake, and takes no other along.
        """
        failed: dict[str, Exception] = {}
        for cell in self._unscored(node):
            run = self._run_of[cell.score]
            try:
                own = trained if run.method == node.method else None
                self._score(cell, model, own or self._method_of(cell))
            except (InterruptedStepError, LostStateError, UserError):
                raise
            except Exception as error:
                if self.accelerator.num_processes > 1:
                    raise  # the other processes wait in a collective operation
                failed[f"{run.scenario.name} step {node.index} {run.method} seed {run.seed}"] = error
        if failed:
            raise NotScoredError(failed)

    def _unscored(self, node: StepNode) -> list[Cell]:
        cells = [c for c in self.plan.missing_scores(self.store) if c.node.key == node.key]
        return [c for c in cells if not self.plan.scored(self.store, c)]

    def _method_of(self, cell: Cell) -> Method:
        """The method whose prediction rule scores this cell; its terms have their stored states."""
        key, device = cell.node.key, self.accelerator.device
        method = build_method(self._run_of[cell.score].method)
        terms = method.active(cell.node.step)
        load_terms(terms, self.store.read_terms(key), device)
        for name, observer in cell.reads.items():
            state = self.store.read_observer(key, observer)
            terms[name].load_state_dict({k: v.to(device) for k, v in state.items()})
        return method

    def _score(self, cell: Cell, model: Any, method: Method) -> None:
        node, plan = cell.node, self.plan
        images, seen, domains = test_set(plan, self._run_of[cell.score].scenario, node.index)
        model.eval()
        began = time.perf_counter()
        matrix = evaluate(
            model,
            method.predict,
            images,
            seen,
            n_labels=len(plan.datasets[node.scenario.dataset].class_names),
            n_channels=node.step.n_classes,
            device=self.accelerator.device,
            precision=plan.config.train.precision,
            batch=plan.config.run.eval_batch,
            workers=loader_processes(plan.config.run.workers, self.accelerator.device, 1, SCORED),
            title=f"{node.title}: evaluation",
            stop=self.stop,
            domains=domains,
        )
        if self.accelerator.is_main_process:
            score = {"matrix": matrix, "seconds": round(time.perf_counter() - began, 3), "images": len(images)}
            score["code"] = plan.origins.now(cell.score, {}, self.store)
            write_sealed(self.store.score(node.key, cell.score), score)
        self.accelerator.wait_for_everyone()
        self.outcome.scored += 1
