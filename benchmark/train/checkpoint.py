"""The checkpoint of a step: everything that the rest of its training depends on, in one safetensors file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contseg.benchmark.models.load import load_terms, term_states
from contseg.benchmark.store.files import read_tensors, write_tensors
from contseg.benchmark.train.distributed import gather
from contseg.benchmark.train.optimiser import load_state, state_tensors
from contseg.datasets.errors import UserError
from contseg.methods.base import Term

LAYOUT = 4  # of this file: a checkpoint of another layout is not resumed
PARTS = ("begin", "loop", "end")  # of a step: networks and ``begin_step``; the updates; fusion and ``end_step``


@dataclass
class StepProgress:
    """How far a step is: updates done, and what the record says of them.

    ``seconds`` by part of the step; "observer" is the time that shared observers took of it. ``losses`` are the means
    that were displayed, by name. ``gradient_norms`` are those of ``watch.GradientNorms``: ``updates``, and by term its
    ``weights`` and ``norms``. ``resumed`` counts how often the step was resumed.
    """

    update: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*PARTS, "observer"), 0.0))
    losses: dict[str, list[float]] = field(default_factory=dict)
    gradient_norms: dict[str, Any] = field(default_factory=dict)
    resumed: int = 0


@dataclass(frozen=True)
class StepState:
    """What changes while a step trains. ``terms`` by name; ``shared`` are the shared observers, by key.

    ``observers`` are the keys of all observers of the training, the method's own included: a checkpoint of other
    observers is not resumed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    generator: torch.Generator
    terms: dict[str, Term]
    shared: dict[str, Term]
    observers: tuple[str, ...]
    progress: StepProgress

    @property
    def device(self) -> torch.device:
        return self.generator.device


def save(state: StepState, path: Path, accelerator: Any) -> None:
    """Write the state, with the random numbers and buffers of every process. Called by all processes."""
    processes = gather(_own(state))
    if accelerator.is_main_process:
        tensors = {f"model/{k}": v for k, v in state.model.state_dict().items()}
        tensors |= {f"optimizer/{k}": v for k, v in state_tensors(state.optimizer, state.model).items()}
        tensors |= {f"terms/{k}": v for k, v in term_states(state.terms).items()}
        tensors |= {f"shared/{k}": v for k, v in term_states(state.shared).items()}
        tensors |= {f"process/{rank}/{k}": v for rank, own in enumerate(processes) for k, v in own.items()}
        meta = {
            "layout": LAYOUT,
            "progress": vars(state.progress),
            "scaler": state.scaler.state_dict(),
            "observers": sorted(state.observers),
        }
        write_tensors(path, tensors, meta)
    accelerator.wait_for_everyone()


def read(path: Path, observers: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and metadata of an intact checkpoint of the same observers; ``None`` if there is none.

    Called by all processes. ``UserError`` in all of them unless they read the same: each would train its own network.
    """
    loaded = read_tensors(path) if path.exists() else None
    if loaded is not None and (loaded[1].get("layout") != LAYOUT or loaded[1]["observers"] != sorted(observers)):
        loaded = None
    found = gather("none" if loaded is None else f"update {loaded[1]['progress']['update']}")
    if len(set(found)) > 1:
        raise UserError(
            f"{path}: the processes read different checkpoints ({', '.join(found)}): a shared file system may lag "
            "behind; run again in a minute"
        )
    return loaded


def resume(state: StepState, path: Path, accelerator: Any) -> None:
    """Put the state back, if there is an intact checkpoint of the same observers; else leave it as it is."""
    loaded = read(path, state.observers)
    if loaded is None:
        return
    tensors, meta = loaded
    state.model.load_state_dict(_part(tensors, "model"))
    load_state(state.optimizer, state.model, _part(tensors, "optimizer"))
    load_terms(state.terms, _part(tensors, "terms"), state.device)
    load_terms(state.shared, _part(tensors, "shared"), state.device)
    own, first = (_part(tensors, f"process/{rank}") for rank in (accelerator.process_index, 0))
    alike = ("cuda_rng" in first) == (state.device.type == "cuda")  # neither reads the other's random states
    if alike:
        state.generator.set_state((own or first)["generator"])  # of terms, which draw the same in every process
    if own:  # else there are more processes than before
        state.model.load_state_dict(_part(own, "buffer"), strict=False)
        torch.set_rng_state(own["rng"])
        if alike and state.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_rng"], state.device)
    if meta["scaler"]:
        state.scaler.load_state_dict(meta["scaler"])
    progress = state.progress
    spent = progress.seconds  # by this process, before it resumed
    vars(progress).update(meta["progress"])
    for part, seconds in spent.items():
        progress.seconds[part] += seconds
    progress.resumed += 1


def _own(state: StepState) -> dict[str, Tensor]:
    """What differs between processes: random states, and the statistics of batch normalisations."""
    own = {"rng": torch.get_rng_state(), "generator": state.generator.get_state()}
    if state.device.type == "cuda":
        own["cuda_rng"] = torch.cuda.get_rng_state(state.device)
    kept = state.model.state_dict().keys()
    return own | {f"buffer/{n}": b.cpu() for n, b in state.model.named_buffers() if n in kept}


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
