"""Walk the plan: train what is missing, score what is not scored, write the records. Nothing is trained twice."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, PartialState
from torch import Tensor

from contseg.benchmark.models.load import load_terms, load_weights, on_device, skeleton, term_states
from contseg.benchmark.plan.build import Cell, Plan, Run, StepNode
from contseg.benchmark.plan.config import Config
from contseg.benchmark.store.claims import Claim
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
from contseg.benchmark.train.distributed import InterruptedStepError, gather, heed
from contseg.benchmark.train.evaluate import evaluate
from contseg.benchmark.train.step_record import describe_step, make_record
from contseg.benchmark.train.test_set import test_set
from contseg.benchmark.train.trainer import NonFiniteLossError, StepTrainer
from contseg.datasets.errors import UserError
from contseg.methods.base import Method, Term, describe
from contseg.methods.faults import is_a_plugins
from contseg.methods.registry import build_method, reason


@dataclass
class Outcome:
    """What a walk did: trained and scored steps, and what failed, by title with its reason in one line."""

    trained: int = 0
    scored: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    branched: bool = False  # a replay gave other weights: the grid is to be planned again
    interrupted: int = 0  # the signal that was heeded


def make_accelerator(config: Config) -> Accelerator:
    """One for each process of the program."""
    precision = {"double": "no"}.get(config.train.precision, config.train.precision)
    if precision == "fp16" and PartialState().device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU: on a CPU set train.precision=bf16, or no")
    tracker = None if config.run.tracker == "none" else config.run.tracker
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False
    return Accelerator(
        mixed_precision=precision,
        log_with=tracker,
        project_dir="." if tracker else None,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )


class Runner:
    """One walk over one plan by the processes of one program."""

    def __init__(self, plan: Plan, store: Store, accelerator: Accelerator, say: Callable[[str], None] = print) -> None:
        self.plan, self.store, self.accelerator, self.say = plan, store, accelerator, say
        self.outcome = Outcome()
        self._signal: int | None = None
        self._failed_keys: set[str] = set()
        self._trained: set[str] = set()
        self._said = ""
        self._run_of = {c.score: r for r in plan.runs for c in r.cells}
        self._places: dict[str, list[tuple[Run, int]]] = {key: [] for key in plan.nodes}  # runs through a step
        for run in plan.runs:
            for t, cell in enumerate(run.cells):
                self._places[cell.node.key].append((run, t))

    def run(self, only: Collection[str] = ()) -> Outcome:
        """Train and score everything that is missing, or only the steps with these keys.

        A step that fails takes only its own descendants with it. Other programs may walk the same grid.
        """
        before = {s: signal.signal(s, self._heed) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._walk(only)
            while not gather(self._write_records(self.plan.nodes))[0]:
                self._walk(only)
        except InterruptedStepError:
            self.outcome.interrupted = self._signal or signal.SIGTERM
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
        if self.accelerator.is_main_process:
            self._sweep()
        self.accelerator.wait_for_everyone()
        return self.outcome

    def _sweep(self) -> None:
        """Claims that the dead have left on steps that were done already."""
        for claim in (Claim(self.store.step(key)) for key in self.plan.nodes):
            if claim.path.exists() and claim.acquire():
                claim.release()

    def _walk(self, only: Collection[str]) -> None:
        """Take a step that nobody has claimed and whose parent is there, or wait; until all is done."""
        while not self.outcome.branched:
            heed(self._stop)
            choice = gather(self._choose(only) if self.accelerator.is_main_process else None)[0]
            if choice is None:
                return
            if choice == "wait":
                time.sleep(1)
                continue
            key, work, left = choice
            try:
                self._guarded(
                    self.plan.nodes[key], f"[{left} left]", self._train if work == "train" else self._score_kept
                )
                self._write_records([key])
            finally:
                if self.accelerator.is_main_process:
                    self._claim.release()

    def _choose(self, only: Collection[str]) -> tuple[str, str, int] | str | None:
        """A step that is now claimed, "wait" if others hold all that could be done, ``None`` if nothing is left."""
        todo, missing = self._todo(only)
        for node in todo:
            parent_missing = node.parent is not None and node.parent.key in missing
            failed = self._failed_ancestor(node)
            if failed is not None or (parent_missing and only and node.parent not in todo):
                self._fail(node, f"not trained, as {(failed or node.parent or node).title} is not there")
            elif not parent_missing or node.key not in missing:
                self._claim = Claim(self.store.step(node.key))
                self._refuse_undone(node)
                if self._claim.acquire():
                    again, missing = self._todo(only)  # another may have done it meanwhile
                    if node in again:
                        return node.key, "train" if node.key in missing else "score", len(todo)
                    self._claim.release()
        left = [n for n in todo if n.key not in self._failed_keys]
        if left:
            self._say_waiting(left)
        return "wait" if left else None

    def _todo(self, only: Collection[str]) -> tuple[list[StepNode], set[str]]:
        """Steps to train or to score, and the keys of those to train."""
        todo = [n for n in self.plan.to_score_or_train(self.store) if n.key not in self._failed_keys]
        missing = {n.key for n in self.plan.to_train(self.store)}
        return [n for n in todo if not only or n.key in only], missing

    def _refuse_undone(self, node: StepNode) -> None:
        """``UserError`` if a step that was trained here is another program's by now, which runs other code."""
        origins = self.plan.origins
        if node.key in self._trained and origins.kept(node.key, self.store) and origins.differs(node.key, self.store):
            raise UserError(
                f"{node.title} was trained here, and again by another program with other code: let one of them end, "
                "or give each a folder of its own with --out"
            )

    def _say_waiting(self, left: list[StepNode]) -> None:
        """Whom we are waiting for, once."""
        held = [n for n in left if Claim(self.store.step(n.key)).path.exists()]
        if held:
            line = f"waiting: {held[0].title} is being trained by {Claim(self.store.step(held[0].key)).holder()}"
            if line != self._said:
                self.say(line)
            self._said = line

    # --- one step -------------------------------------------------------------------------------------------------

    def _failed_ancestor(self, node: StepNode) -> StepNode | None:
        ancestor = node.parent
        while ancestor is not None and ancestor.key not in self._failed_keys:
            ancestor = ancestor.parent
        return ancestor

    def _guarded(self, node: StepNode, count: str, work: Callable[[StepNode], None]) -> None:
        """Do a node's work; what goes wrong is one line of the outcome, unless it is the user's input."""
        began = time.perf_counter()
        try:
            work(node)
        except (InterruptedStepError, UserError):
            raise
        except LostStateError as error:
            self.say(f"{error}: its step is done again")  # the plan has it among those to train now
        except NonFiniteLossError as error:
            self._fail(node, str(error))
        except Exception as error:
            if self.accelerator.num_processes > 1:
                raise  # the others wait in a collective operation: the launcher ends them all
            if not is_a_plugins(error):
                traceback.print_exc(file=sys.stderr)
            self._fail(node, reason(error))
        else:
            if self.accelerator.is_main_process:
                self.say(f"{count} {node.title}: {time.perf_counter() - began:.0f} s")
        finally:
            self.accelerator.free_memory()  # it keeps every model and optimiser that it has prepared

    def _fail(self, node: StepNode, reason: str) -> None:
        self.outcome.failed[node.title] = reason
        self._failed_keys.add(node.key)
        self.say(f"failed: {node.title}: {reason}")

    def _train(self, node: StepNode) -> None:
        plan, store, config = self.plan, self.store, self.plan.config
        method = build_method(node.method)
        observers, states = self._observers(node, method)
        parent = node.parent.key if node.parent else None
        self._begin(node)
        dataset = plan.datasets[node.scenario.dataset]
        trainer = StepTrainer(
            node,
            method,
            observers,
            states,
            config,
            dataset,
            store,
            self.accelerator,
            parent,
            self._stop,
        )
        cost = trainer.run()
        weights = trainer.model.state_dict()
        if not gather(self._agrees(node, weights))[0]:
            self._branch(node)
            return
        terms = term_states(_active(method, node))
        code = plan.origins.now(node.key, {}, store)
        meta = describe_step(plan, node, cost, trainer.progress.losses, bool(terms), self.accelerator, code)
        if self.accelerator.is_main_process:
            self._keep(node, weights, terms, observers, meta)
        self.accelerator.wait_for_everyone()
        self.outcome.trained += 1
        self._trained.add(node.key)
        for cell in self._unscored(node):
            own = self._run_of[cell.score].method == node.method
            self._score(cell, trainer.model, method if own else self._method_of(cell))

    def _begin(self, node: StepNode) -> None:
        """Keep a checkpoint only if the code that wrote it is that of today."""
        store, origins = self.store, self.plan.origins
        if self.accelerator.is_main_process:
            keys = [node.key, *sorted(node.observers)]
            code = digest([origins.known[k].files for k in keys] + [origins.now(node.key, {}, store)["on"]])
            begun = read_sealed(store.begun(node.key)) or {}
            if begun.get("code") != code:
                if store.checkpoint(node.key).exists():
                    self.say(f"{node.title}: its checkpoint was written by other code; it begins again")
                store.drop_checkpoint(node.key)
                write_sealed(store.begun(node.key), {"code": code})
        self.accelerator.wait_for_everyone()

    def _observers(self, node: StepNode, method: Method) -> tuple[dict[str, Term], dict[str, dict[str, Tensor]]]:
        """The observers that ride along, by key, and the states in which the parent left them."""
        built = {node.method: method}
        observers: dict[str, Term] = {}
        states: dict[str, dict[str, Tensor]] = {}
        for key, shared in node.observers.items():
            owner = built.setdefault(shared.method, build_method(shared.method))
            observers[key] = owner.active(node.step)[shared.term]
            if node.parent is not None and shared.before is not None:
                states[key] = self.store.read_observer(node.parent.key, shared.before)
        return observers, states

    def _keep(
        self,
        node: StepNode,
        weights: dict[str, Tensor],
        terms: dict[str, Tensor],
        observers: dict[str, Term],
        meta: dict[str, Any],
    ) -> None:
        store, key = self.store, node.key
        origins = self.plan.origins
        again = origins.current(key, store)  # for an observer that came late
        made = {key: origins.stored(key, store) if again else meta["code"]}
        if terms:
            write_tensors(store.terms(key), terms, {})
        for observer, term in observers.items():
            what = {"term": node.observers[observer].term, "is": describe(term)}
            what["code"] = origins.now(observer, made, store)
            write_tensors(store.observer(key, observer), term.state_dict(), what)
        if not again:
            write_tensors(store.model(key), weights, meta)  # last: its presence says that the step is trained
        store.drop_checkpoint(key)

    def _agrees(self, node: StepNode, weights: dict[str, Tensor]) -> bool:
        """Whether these weights, trained again for an observer that came late, are those kept, if any are."""
        if not self.plan.trained(self.store, node.key):
            return True
        try:
            return bool(self.store.meta(node.key)["sha256"] == tensors_digest(weights))
        except LostStateError:
            return True

    def _branch(self, node: StepNode) -> None:
        """Give the observers that came late a branch of their own, which the next plan takes."""
        self.outcome.branched = True
        if self.accelerator.is_main_process:
            for observer, shared in node.observers.items():
                if not self.store.observer(node.key, observer).exists():
                    what = {"step": node.key, "title": node.title, "method": shared.method, "term": shared.term}
                    write_json(self.store.branch(observer), what | {"provenance": provenance(self.accelerator)})
            self.store.drop_checkpoint(node.key)
            self.say(
                f"{node.title}: trained again for an observer that came late, it gave other weights than those kept "
                "(another machine, or another number of threads or processes?); it goes on as a branch of its own"
            )

    # --- scores ---------------------------------------------------------------------------------------------------

    def _unscored(self, node: StepNode) -> list[Cell]:
        cells = [c for c in self.plan.missing_scores(self.store) if c.node.key == node.key]
        return [c for c in cells if not self.plan.scored(self.store, c)]

    def _score_kept(self, node: StepNode) -> None:
        """Score a step whose weights are in the cache."""
        model = skeleton(self.plan.config.model, node.scenario.steps[: node.index + 1], build_method(node.method), 0)
        load_weights(model, self.store.read_model(node.key)[0])
        model = on_device(model, self.accelerator.device)
        for cell in self._unscored(node):
            self._score(cell, model, self._method_of(cell))

    def _method_of(self, cell: Cell) -> Method:
        """The method whose prediction rule scores this cell, its terms in their kept states."""
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
        dataset = plan.datasets[node.scenario.dataset]
        images, known = test_set(plan, self._run_of[cell.score].scenario, node.index)
        model.eval()
        began = time.perf_counter()
        matrix = evaluate(
            model,
            method.predict,
            images,
            known,
            len(dataset.class_names),
            node.step.n_classes,
            self.accelerator.device,
            plan.config.train.precision,
            plan.config.run.eval_batch,
            plan.config.run.workers,
            f"{node.title}: evaluation",
            self._stop,
        )
        if self.accelerator.is_main_process:
            score = {"matrix": matrix, "seconds": round(time.perf_counter() - began, 3), "images": len(images)}
            score["code"] = plan.origins.now(cell.score, {}, self.store)
            write_sealed(self.store.score(node.key, cell.score), score)
        self.accelerator.wait_for_everyone()
        self.outcome.scored += 1

    # --- records --------------------------------------------------------------------------------------------------

    def _write_records(self, keys: Iterable[str]) -> bool:
        """Records of these steps' cells that have a score and no record yet; whether everything for that was there."""
        if not self.accelerator.is_main_process:
            return True
        whole = True
        for run, t in (place for key in keys for place in self._places[key]):
            cell = run.cells[t]
            path = self.store.score(cell.node.key, cell.score)
            if not self.plan.scored(self.store, cell) or self.plan.recorded(self.store, cell):
                continue
            score = read_sealed(path)
            try:
                meta = self.store.meta(cell.node.key)
            except LostStateError:
                path.unlink(missing_ok=True)  # nothing says what was scored
                score = None
            if score is None:
                whole = False
            else:
                write_sealed(self.store.records / cell.path, make_record(self.plan, run, t, score, meta))
        return whole

    def _stop(self) -> bool:
        return self._signal is not None

    def _heed(self, number: int, frame: Any) -> None:
        """A checkpoint at the first signal; a second Ctrl-C ends at once.

        A second SIGTERM does not: launchers and Slurm send it to those who are leaving already, and SIGKILL at last.
        """
        if self._signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = self._signal or number


def _active(method: Method, node: StepNode) -> dict[str, Term]:
    """The terms whose state belongs to the weights: observers have files of their own."""
    return {n: t for n, t in method.active(node.step).items() if not t.observes}
