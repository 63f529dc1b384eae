"""Train one step: one loop over optimiser updates, which can resume at any update.

Shapes: ``B`` batch of this process, ``H, W`` crop.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from contseg.benchmark.models.load import for_batches, fresh, grow, half, load_terms, trained
from contseg.benchmark.plan.build import StepNode
from contseg.benchmark.plan.config import Config
from contseg.benchmark.store.files import Store
from contseg.benchmark.train import checkpoint
from contseg.benchmark.train.batches import StepBatches
from contseg.benchmark.train.checkpoint import PARTS, StepProgress, StepState
from contseg.benchmark.train.distributed import (
    InterruptedStepError,
    average_statistics,
    check_stop,
    gather,
    over_processes,
)
from contseg.benchmark.train.optimiser import make_optimiser, method_groups, parameters, rate_factor
from contseg.benchmark.train.rng import derive
from contseg.benchmark.train.watch import GradientNorms, backward_explained, peak_memory, raise_if_bad, watch_memory
from contseg.datasets.base import SegmentationDataset
from contseg.datasets.progress import progress
from contseg.methods.base import Batch, Method, Progress, StepContext, Term
from contseg.methods.network import OnDemand

LOOK = 10  # updates between two reads from the device: losses shown, non-finite values noticed, signals handled


class Observer(NamedTuple):
    """A term that observes a training, and its state after the step before; ``None`` if it starts here."""

    term: Term
    state: dict[str, Tensor] | None = None


class StepTrainer:
    """One step of one method on one data set; ``run`` trains it and returns what it cost.

    ``observers`` by key: the method's own (the same objects that its terms hold) and the shared observers, which
    belong to other methods with the same training. ``node.parent`` must be trained and in the store. If ``stop()`` is
    true, the trainer writes a checkpoint and stops. The contract check uses this class too (``toy_run.ToyStep``).
    """

    batches: ClassVar[Any] = StepBatches  # what gives a step its images

    def __init__(
        self,
        node: StepNode,
        method: Method,
        observers: dict[str, Observer],
        *,
        config: Config,
        dataset: SegmentationDataset,
        store: Store,
        accelerator: Accelerator,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.node, self.method, self.config = node, method, config
        self.store, self.accelerator, self.stop = store, accelerator, stop
        self.step, self.train = node.step, node.train
        self.device = accelerator.device
        self.precision: str = self.train.precision
        self.dtype = torch.float64 if self.train.precision == "double" else torch.float32
        self.step_batches = self.batches(node, config, dataset, accelerator, self.dtype)
        self.epoch_updates = self.train.epoch_updates(node.epoch_images)
        self.terms = method.active(self.step)
        mine = {id(t) for t in self.terms.values()}
        self.observers = {k: o.term for k, o in observers.items()}
        self.shared = {k: t for k, t in self.observers.items() if id(t) not in mine}
        self.progress = StepProgress()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.train.precision == "fp16")
        watch_memory(self.device)
        with self._timed("begin"):
            self._build(observers)
            self._begin()

    # --- before the first update ----------------------------------------------------------------------------------

    def _build(self, observers: dict[str, Observer]) -> None:
        """Make the networks, and load what the parent step left."""
        method, parent, old = self.method, self.node.parent, None
        if parent is None:
            model = fresh(self.config.model, self.node.scenario.steps[0], method, derive(self.node.seed, "init"))
        else:
            model = _previous(self.node, method, self.config, self.store)
            old = copy.deepcopy(model) if method.uses_old(self.step) else None
            grow(model, self.step, method)
            method.hook("init", self.step)(model, self.step)
            load_terms(self.terms, self.store.read_terms(parent.key), self.device)
        for term, state in observers.values():
            if state is not None:
                term.load_state_dict({k: v.to(self.device) for k, v in state.items()})
        self.model = for_batches(model.to(self.dtype), self.device)
        self.old = None if old is None else for_batches(old.eval().requires_grad_(False), self.device)
        self.generator = torch.Generator(self.device).manual_seed(derive(self.node.seed, self.step.index, "terms"))
        self.context = self._context()

    def _context(self) -> StepContext:
        """What terms and hooks may use; the previous network is made anew for them if no term keeps it in use.

        Nothing in it holds the trainer: a step's networks go with its last user, not when Python looks for cycles.
        """
        node, method, config, store, device = self.node, self.method, self.config, self.store, self.device

        def read() -> Any:
            with torch.random.fork_rng(devices=[]):
                return for_batches(_previous(node, method, config, store).eval().requires_grad_(False), device)

        previous = OnDemand(read) if self.old is None and node.parent is not None else self.old
        passes = partial(_whole_pass, self.step_batches, self.stop)
        settled = over_processes, node.seed, self.train.lr[0], self.epoch_updates
        return StepContext(self.step, self.model, previous, passes, *settled)

    def _begin(self) -> None:
        """Call every term's ``begin_step`` and the method's ``warm_up``, and make the optimiser."""
        for term in self.terms.values():
            term.begin_step(self.context)
        with self._timed("observer"):
            for term in self.shared.values():
                term.begin_step(self.context)
        self.warmed_up = self._warm_up()
        self._optimiser()

    def _warm_up(self) -> bool:
        """Call the method's ``warm_up`` functions, unless a checkpoint holds their result; whether they were called."""
        functions = self.method.warm_ups(self.step)
        if not functions or checkpoint.read(self.store.checkpoint(self.node.key), self.observers) is not None:
            return False
        torch.manual_seed(derive(self.node.seed, self.step.index, "warm_up", self.accelerator.process_index))
        self.model.eval()
        for function in functions:
            function(self.context)
        self.model.zero_grad()
        return True

    def _optimiser(self) -> None:
        groups = method_groups(self.method.hook("trainable", self.step), self.model, self.step)
        trained = {id(p) for g in groups for p in g["params"]}
        for p in self.model.parameters():
            p.requires_grad_(id(p) in trained)
        self.fixed = [m for m in self.model.modules() if _is_fixed_norm(m)]
        images = self.node.epoch_images
        self.total = self.train.plan_updates(images) if groups else 0
        self.warmup = self.train.warmup_updates(images)
        if not groups:
            return
        self.optimizer = make_optimiser(self.model, groups, self.train, self.device)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        points = self.config.run.gradient_norms
        self.norms = GradientNorms(points, self.total, self.optimizer, self.scaler, self.progress)
        network: Any = self.model
        if self.config.run.compile:
            torch.compiler.reset()  # it compiles one function for eight networks; a ninth runs uncompiled
            network = torch.compile(network)
        self.prepared = self.accelerator.prepare_model(network)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end, from the checkpoint if there is one; returns the step's cost.

        Raises ``NonFiniteLossError``, and ``InterruptedStepError`` (in the loop: after writing a checkpoint).
        """
        torch.manual_seed(derive(self.node.seed, self.step.index, "train", self.accelerator.process_index))
        self.load_checkpoint()
        if self.warmed_up and self.total:
            self.save_checkpoint()
        if self.progress.update < self.total:
            self._loop()
        with self._timed("end"):
            self._finish()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return self._cost()

    def save_checkpoint(self) -> None:
        """Write a checkpoint. Called by all processes."""
        checkpoint.save(self._state, self.store.checkpoint(self.node.key), self.accelerator)

    def load_checkpoint(self) -> None:
        """Load the checkpoint, if there is one of this training. A step without updates has none."""
        if self.total:
            checkpoint.resume(self._state, self.store.checkpoint(self.node.key), self.accelerator)

    @property
    def _state(self) -> StepState:
        return StepState(
            model=self.model,
            optimizer=self.optimizer,
            scaler=self.scaler,
            generator=self.generator,
            terms=self.terms,
            shared=self.shared,
            observers=tuple(self.observers),
            progress=self.progress,
        )

    def _finish(self) -> None:
        """After the last update: the method's ``end_step``, then that of every term."""
        self.model.eval()
        average_statistics(m for m in self.model.modules() if _is_batch_norm(m) and m not in self.fixed)
        for fuse in self.method.endings(self.step):
            fuse(self.context)
        for term in self.terms.values():
            term.end_step(self.context)
        with self._timed("observer"):
            for term in self.shared.values():
                term.end_step(self.context)

    def _loop(self) -> None:
        began, saved, p = time.perf_counter(), time.perf_counter(), self.progress
        self.context = self._context()  # lets go of a previous network that only the beginning of the step read
        batches = self.step_batches.updates(p.update, self.total)
        names: list[str] = []
        window = torch.zeros(0, device=self.device)
        bad = torch.zeros(0, device=self.device)
        self._train_mode()
        silent = not self.accelerator.is_main_process
        with progress(
            None, self.node.title, unit="update", total=self.total, initial=p.update, leave=False, disable=silent
        ) as bar:
            while p.update < self.total:
                self._set_rate(p.update)
                values = self._update(batches)
                if not names:
                    names = list(values)
                    window, bad = (torch.zeros(len(names), device=self.device) for _ in range(2))
                losses = torch.stack([v.float() for v in values.values()])
                window += losses
                bad = torch.where((bad == 0) & ~losses.isfinite(), float(p.update), bad)
                bar.update()
                if p.update % LOOK and p.update < self.total:
                    continue
                raise_if_bad(dict(zip(names, bad.tolist(), strict=True)))
                shown = dict(zip(names, (window / (p.update % LOOK or LOOK)).tolist(), strict=True))
                window.zero_()
                self._show(bar, shown)
                if not silent:
                    self.store.say_updates(self.node.key, p.update)
                now = time.perf_counter()
                p.seconds["loop"] += now - began
                began = now
                late = now - saved > 60 * self.config.run.checkpoint_minutes
                stopped, late = map(any, zip(*gather((self.stop(), late)), strict=True))
                if stopped:
                    self.save_checkpoint()
                    raise InterruptedStepError
                every = self.config.run.checkpoint_updates
                if p.update < self.total and (late or (every and p.update % every < LOOK)):
                    self.save_checkpoint()
                    saved = time.perf_counter()

    def _update(self, batches: Iterator[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """One optimiser update; the weighted losses by name, detached."""
        sums: dict[str, Tensor] = {}
        parts = self.train.accumulate
        for part in range(parts):
            shown = next(batches)
            last = part == parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                batch = self._batch(*shown)
                losses = self.method.losses(batch)
                self.norms.add(losses, parts)
                with self._timed("observer"), torch.no_grad():
                    for term in self.shared.values():
                        term(batch)
                with backward_explained(self.terms, losses):
                    self.scaler.scale(torch.stack(list(losses.values())).sum() / parts).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        self.scaler.unscale_(self.optimizer)
        self._after_backward()
        self.norms.end(self.terms)
        if self.train.clip:
            nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.train.clip)
        self.scaler.step(self.optimizer)  # skips an update whose gradients overflowed in fp16
        self.scaler.update()
        self.optimizer.zero_grad()
        self.progress.update += 1
        return sums

    def _batch(self, images: Tensor, labels: Tensor, *memory: Tensor) -> Batch:
        """What the terms read: both networks' outputs of a micro-batch. ``memory``: as in ``StepBatches.updates``."""
        with half(self.device, self.precision):
            out = self.prepared(images)
            with torch.no_grad():
                old = None if self.old is None else self.old(images)
        update, parts = self.progress.update, self.train.accumulate
        where = Progress(update, max(1, self.total), update / self.epoch_updates, parts)
        return Batch(
            *(images, labels, out, old, self.step),
            reduce=over_processes,
            generator=self.generator,
            progress=where,
            memory=memory or None,
        )

    def _after_backward(self) -> None:
        """Call every term's ``after_backward``, observers first; not if gradients overflowed in fp16."""
        mine = {n: t for n, t in self.terms.items() if _reads_gradients(t)}
        shared = [t for t in self.shared.values() if _reads_gradients(t)]
        if (mine or shared) and self.scaler.is_enabled():
            gradients = [p.grad for p in parameters(self.optimizer) if p.grad is not None]
            if not torch.stack([g.isfinite().all() for g in gradients]).all():
                return
        for term in mine.values():
            if term.observes:
                term.after_backward(self.model)
        with self._timed("observer"):
            for term in shared:
                term.after_backward(self.model)
        for name, term in mine.items():
            if not term.observes:
                with self.norms.adding(name):
                    term.after_backward(self.model)

    def _set_rate(self, update: int) -> None:
        factor = rate_factor(self.train, update, self.total, self.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.fixed:
            module.eval()

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.progress.seconds[part] += time.perf_counter() - began

    # --- what is shown and kept -----------------------------------------------------------------------------------

    def _show(self, bar: Any, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.progress.losses.setdefault(name, []).append(float(f"{value:.8g}"))  # all that float32 holds
        bar.set_postfix({n: f"{v:.3g}" for n, v in losses.items()}, refresh=False)
        if self.config.run.tracker != "none":
            values = {f"{self.node.title}/{n}": v for n, v in losses.items()}
            self.accelerator.log(values, step=self.progress.update)

    def _cost(self) -> dict[str, Any]:
        """``seconds`` is the whole step; its parts are named. Shared observers spent ``observer_seconds`` of them."""
        p = self.progress
        return {
            "images": p.update * self.train.batch[0],
            "updates": p.update,
            "seconds": round(sum(p.seconds[part] for part in PARTS), 3),
            **{f"{part}_seconds": round(spent, 3) for part, spent in p.seconds.items()},
            "peak_memory_mb": peak_memory(self.device),
            "parameters": sum(x.numel() for x in self.model.parameters()),
            "trained_parameters": sum(x.numel() for x in self.model.parameters() if x.requires_grad),
            "resumed": p.resumed,
        }


def _previous(node: StepNode, method: Method, config: Config, store: Store) -> Any:
    """The network of the previous step, with its weights."""
    assert node.parent is not None
    steps, seed = node.scenario.steps[: node.index], derive(node.seed, "init")
    return trained(config.model, steps, method, seed, store.read_model(node.parent.key)[0])


def _whole_pass(batches: Any, stop: Callable[[], bool], number: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """A pass outside the loop; signals stop it too."""
    for i, batch in enumerate(batches.whole_pass(number), 1):
        yield batch
        if i % LOOK == 0:
            check_stop(stop)


def _reads_gradients(term: Term) -> bool:
    return type(term).after_backward is not Term.after_backward


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_fixed_norm(module: nn.Module) -> bool:
    """A batch normalisation with frozen or no affine parameters: it stays in evaluation mode."""
    return _is_batch_norm(module) and not any(p.requires_grad for p in module.parameters())
