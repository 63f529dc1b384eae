"""Train one step: one loop over optimiser updates, resumable at any of them.

Shapes: ``B`` batch of this process, ``H, W`` crop.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from benchmark import checkpoint
from benchmark.config import Config
from benchmark.feed import Feed
from benchmark.load import fresh, grow, load_terms, skeleton
from benchmark.plan import StepNode
from benchmark.processes import any_process, over_processes
from benchmark.seeding import derive
from benchmark.store import Store
from datasets.base import SegmentationDataset
from methods.base import Batch, Method, StepContext, Term

LOOK = 10  # updates between two looks at the device: losses shown, non-finite values noticed, signals heeded


class NonFiniteLossError(Exception):
    """A loss that is not a number: names its term and the update."""


class InterruptedStepError(Exception):
    """SIGTERM or SIGINT was heeded: the checkpoint is written."""


@dataclass
class Progress:
    """How far a step is, beside its tensors: written into every checkpoint."""

    update: int = 0
    seconds: float = 0.0
    observer_seconds: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=dict)
    resumed: int = 0


class StepTrainer:
    """One step of one method on one data set; ``run`` trains it and returns what it cost.

    ``observers`` are the terms that ride along by key: the method's own (the very objects that its terms hold) and
    those of other methods that share this training.
    """

    def __init__(
        self,
        node: StepNode,
        method: Method,
        observers: dict[str, Term],
        parent_states: dict[str, dict[str, Tensor]],
        config: Config,
        dataset: SegmentationDataset,
        store: Store,
        accelerator: Accelerator,
        parent_key: str | None = None,
        stop: Any = lambda: False,
    ) -> None:
        self.node, self.method, self.observers, self.config = node, method, observers, config
        self.store, self.accelerator, self.stop = store, accelerator, stop
        self.step, self.train = node.step, node.train
        self.device = accelerator.device
        self.dtype = torch.float64 if self.train.precision == "double" else torch.float32
        self.feed = Feed(node, config, dataset, accelerator, self.dtype)
        self.terms = method.active(self.step)
        mine = {id(t) for t in self.terms.values()}
        self.guests = {k: t for k, t in observers.items() if id(t) not in mine}
        self._build(parent_key, parent_states)

    # --- before the first update ----------------------------------------------------------------------------------

    def _build(self, parent_key: str | None, parent_states: dict[str, dict[str, Tensor]]) -> None:
        t, steps, method = self.step.index, self.node.scenario.steps, self.method
        seed = derive(self.node.seed, "init")
        if parent_key is None:
            model = fresh(self.config.model, steps[0], method, seed)
            old = None
        else:
            model = skeleton(self.config.model, steps[:t], method, seed)
            model.load_state_dict(self.store.read_model(parent_key)[0])
            old = copy.deepcopy(model).eval().requires_grad_(False) if t > 0 else None
            grow(model, self.step, method)
            method.init(model, self.step)
            load_terms(self.terms, self.store.read_terms(parent_key), self.device)
        for key, term in self.observers.items():
            if key in parent_states:
                term.load_state_dict({k: v.to(self.device) for k, v in parent_states[key].items()})
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.model = model.to(self.device, self.dtype).to(memory_format=layout)
        self.old = None if old is None else old.to(self.device, self.dtype).to(memory_format=layout)
        self.generator = torch.Generator(self.device).manual_seed(derive(self.node.seed, t, "terms"))
        self.context = StepContext(
            self.step, self.model, self.old, self.feed.whole_pass, over_processes, self.node.seed
        )
        for term in self._all_terms():
            term.begin_step(self.context)
        self._optimiser()

    def _optimiser(self) -> None:
        groups = [g for g in self.method.door("trainable", self.step)(self.model, self.step) if len(g["params"])]
        trained = {id(p) for g in groups for p in g["params"]}
        for p in self.model.parameters():
            p.requires_grad_(id(p) in trained)
        self.fixed = [m for m in self.model.modules() if _is_fixed_norm(m)]
        self.total = self.train.plan_updates(len(self.node.view.ids)) if groups else 0
        self.progress = Progress()
        if not groups:
            return
        base = self.train.lr[0]
        self.rates = [base * g.get("lr_scale", 1.0) for g in groups]
        optimizer = torch.optim.SGD(
            [
                {"params": g["params"], "lr": rate, "weight_decay": g.get("weight_decay", self.train.weight_decay)}
                for g, rate in zip(groups, self.rates, strict=True)
            ],
            lr=base,
            momentum=self.train.momentum,
            nesterov=self.train.nesterov and self.train.momentum > 0,
            fused=self.device.type == "cuda" or None,
        )
        network = torch.compile(self.model) if self.config.run.compile else self.model
        self.prepared, self.optimizer = self.accelerator.prepare(network, optimizer)
        if self.old is not None:
            self.prepared_old = self.accelerator.prepare_model(self.old, evaluation_mode=True)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train from where the checkpoint stands, or from the start, to the end; returns the step's cost.

        Raises ``NonFiniteLossError`` (names the term) and ``InterruptedStepError`` (after writing a checkpoint).
        """
        _watch_memory(self.device)
        torch.manual_seed(derive(self.node.seed, self.step.index, "train", self.accelerator.process_index))
        checkpoint.resume(self)
        if self.progress.update < self.total:
            self._loop()
        self.model.eval()
        for fuse in self.method.endings(self.step):
            fuse(self.context)
        for term in self._all_terms():
            term.end_step(self.context)
        return self._cost()

    def _loop(self) -> None:
        began, saved, p = time.perf_counter(), time.perf_counter(), self.progress
        batches = self.feed.updates(p.update, self.total)
        names: list[str] = []
        window = torch.zeros(0, device=self.device)
        bad = torch.zeros(0, device=self.device)
        self._train_mode()
        bar = tqdm(
            total=self.total,
            initial=p.update,
            desc=self.node.title,
            unit="update",
            leave=False,
            disable=not self.accelerator.is_main_process,
        )
        while p.update < self.total:
            self._set_rate(p.update)
            values = self._update(batches)
            if not names:
                names = list(values)
                window, bad = (torch.zeros(len(names), device=self.device) for _ in range(2))
            losses = torch.stack([v.float() for v in values.values()])
            window += losses
            bad = torch.where((bad == 0) & ~losses.isfinite(), p.update + 1.0, bad)
            p.update += 1
            bar.update()
            if p.update % LOOK and p.update < self.total:
                continue
            _raise_if_bad(dict(zip(names, bad.tolist(), strict=True)))
            shown = dict(zip(names, (window / (p.update % LOOK or LOOK)).tolist(), strict=True))
            window.zero_()
            self._show(bar, shown)
            now = time.perf_counter()
            p.seconds, began = p.seconds + now - began, now
            if any_process(self.stop()) and p.update < self.total:
                checkpoint.save(self)
                raise InterruptedStepError
            every = self.config.run.checkpoint_updates
            late = any_process(now - saved > 60 * self.config.run.checkpoint_minutes)
            if p.update < self.total and (late or (every and p.update % every < LOOK)):
                checkpoint.save(self)
                saved = time.perf_counter()
        bar.close()

    def _update(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """One optimiser update; the weighted losses by name, detached."""
        sums: dict[str, Tensor] = {}
        parts = self.train.accumulate
        for part in range(parts):
            images, labels = next(batches)
            last = part == parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                out = self.prepared(images)
                old = None
                if self.method.uses_old(self.step):
                    with torch.no_grad():
                        old = self.prepared_old(images)
                batch = Batch(images, labels, out, old, self.step, over_processes, self.generator)
                losses = self.method.losses(batch)
                with self._observing(), torch.no_grad():
                    for term in self.guests.values():
                        term(batch)
                self.accelerator.backward(torch.stack(list(losses.values())).sum() / parts)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        if self._unscaled():
            with self._observing():
                for term in self._all_terms():
                    if term.observes:
                        term.after_backward(self.model)
            for term in self.terms.values():
                if not term.observes:
                    term.after_backward(self.model)
            if self.train.clip:
                nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums

    def _unscaled(self) -> bool:
        """Divide fp16's loss scale out of the gradients; False if they overflowed and the update is to be skipped."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return True
        self.accelerator.unscale_gradients(self.optimizer)
        found = scaler._per_optimizer_states[id(self.optimizer.optimizer)]["found_inf_per_device"]
        return not any(v.item() for v in found.values())

    def _set_rate(self, update: int) -> None:
        """Poly schedule: lr (1 - update / total)^power."""
        decay = (1 - update / self.total) ** self.train.power
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * decay

    def _train_mode(self) -> None:
        self.model.train()
        for module in self.fixed:
            module.eval()

    def _all_terms(self) -> list[Term]:
        return [*self.terms.values(), *self.guests.values()]

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.progress.observer_seconds += time.perf_counter() - began

    # --- what is shown and kept -----------------------------------------------------------------------------------

    def _show(self, bar: Any, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.progress.losses.setdefault(name, []).append(float(f"{value:.8g}"))  # all that float32 holds
        bar.set_postfix({n: f"{v:.3g}" for n, v in losses.items()}, refresh=False)
        if self.config.run.tracker != "none":
            values = {f"{self.node.title}/{n}": v for n, v in losses.items()}
            self.accelerator.log(values, step=self.progress.update)

    def _cost(self) -> dict[str, Any]:
        p = self.progress
        return {
            "images": p.update * self.train.batch[0],
            "updates": p.update,
            "seconds": round(p.seconds, 3),
            "observer_seconds": round(p.observer_seconds, 3),
            "peak_memory_mb": _peak_memory(self.device),
            "parameters": sum(x.numel() for x in self.model.parameters()),
            "trained_parameters": sum(x.numel() for x in self.model.parameters() if x.requires_grad),
            "resumed": p.resumed,
        }


def _is_fixed_norm(module: nn.Module) -> bool:
    """A batch normalisation that does not train, affine parameters frozen or absent."""
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return batch_norm and not any(p.requires_grad for p in module.parameters())


def _raise_if_bad(first: dict[str, float]) -> None:
    bad = {n: int(u) for n, u in first.items() if u}
    if bad:
        name = min(bad, key=lambda n: bad[n])
        raise NonFiniteLossError(
            f"the loss {name!r} is not finite at update {bad[name]} "
            "(lower train.lr, or set train.clip=1); nothing earlier is lost"
        )


def _watch_memory(device: torch.device) -> None:
    """Let the peak begin anew; on a CPU Linux's ``VmHWM`` of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> float:
    """MiB since ``_watch_memory``: of the device's allocator on a GPU, of this process on a CPU; 0 where unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    return 0.0
