"""The state of a step under way: everything that the rest of its training depends on, in one safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contseg.benchmark.models.load import load_terms, term_states
from contseg.benchmark.store.files import read_tensors, write_tensors
from contseg.benchmark.train.distributed import gather

if TYPE_CHECKING:
    from contseg.benchmark.train.trainer import StepTrainer

LAYOUT = 2  # of this file: a checkpoint of another layout is not resumed


def save(trainer: StepTrainer) -> None:
    """Write the network, momenta, loss scale, terms, what every process has of its own, and the progress.

    Called by all processes.
    """
    processes = gather(_own(trainer))
    if trainer.accelerator.is_main_process:
        tensors = {f"model/{k}": v for k, v in trainer.model.state_dict().items()}
        tensors |= {f"momentum/{name}": buffer for name, buffer in _momenta(trainer).items()}
        tensors |= {f"terms/{k}": v for k, v in term_states(trainer.terms).items()}
        tensors |= {f"guests/{k}": v for k, v in term_states(trainer.guests).items()}
        tensors |= {f"process/{rank}/{k}": v for rank, own in enumerate(processes) for k, v in own.items()}
        meta = {
            "layout": LAYOUT,
            "progress": vars(trainer.progress),
            "scaler": trainer.scaler.state_dict(),
            "observers": sorted(trainer.observers),
        }
        write_tensors(trainer.store.checkpoint(trainer.node.key), tensors, meta)
    trainer.accelerator.wait_for_everyone()


def resume(trainer: StepTrainer) -> None:
    """Put everything back, if there is a sound checkpoint that the same observers rode on."""
    path = trainer.store.checkpoint(trainer.node.key)
    loaded = read_tensors(path) if path.exists() and trainer.total else None
    if loaded is None:
        return
    tensors, meta = loaded
    if meta.get("layout") != LAYOUT or meta["observers"] != sorted(trainer.observers):
        return
    trainer.model.load_state_dict(_part(tensors, "model"))
    momenta = _momenta(trainer)
    for name, buffer in _part(tensors, "momentum").items():
        momenta[name].copy_(buffer)
    load_terms(trainer.terms, _part(tensors, "terms"), trainer.device)
    load_terms(trainer.guests, _part(tensors, "guests"), trainer.device)
    own = _part(tensors, f"process/{trainer.accelerator.process_index}")
    if own:  # else there are more processes than before
        trainer.model.load_state_dict(_part(own, "buffer"), strict=False)
        torch.set_rng_state(own["rng"])
        trainer.generator.set_state(own["generator"])
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_rng"], trainer.device)
    if meta["scaler"]:
        trainer.scaler.load_state_dict(meta["scaler"])
    spent = trainer.progress.seconds  # to begin once more
    vars(trainer.progress).update(meta["progress"])
    for part, seconds in spent.items():
        trainer.progress.seconds[part] += seconds
    trainer.progress.resumed += 1


def _own(trainer: StepTrainer) -> dict[str, Tensor]:
    """What differs between processes: random states, and the statistics of batch normalisations."""
    own = {"rng": torch.get_rng_state(), "generator": trainer.generator.get_state()}
    if trainer.device.type == "cuda":
        own["cuda_rng"] = torch.cuda.get_rng_state(trainer.device)
    kept = trainer.model.state_dict().keys()
    return own | {f"buffer/{n}": b.cpu() for n, b in trainer.model.named_buffers() if n in kept}


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}


def _momenta(trainer: StepTrainer) -> dict[str, Tensor]:
    """The optimiser's momenta by the parameter's name; none if it has no momentum."""
    state = trainer.optimizer.state
    names = trainer.model.named_parameters()
    return {name: state[p]["momentum_buffer"] for name, p in names if p in state}
