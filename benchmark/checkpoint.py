"""The state of a step under way: everything that the rest of its training depends on, in one safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmark.load import load_terms, term_states
from benchmark.processes import gather
from benchmark.store import read_tensors, write_tensors

if TYPE_CHECKING:
    from benchmark.trainer import StepTrainer


def save(trainer: StepTrainer) -> None:
    """Write model, momenta, loss scale, terms, every process's random state, and the progress. Called by all."""
    states = gather(torch.get_rng_state())
    if trainer.accelerator.is_main_process:
        tensors = {f"model/{k}": v for k, v in trainer.model.state_dict().items()}
        tensors |= {f"momentum/{i}": buffer for i, buffer in enumerate(_momenta(trainer.optimizer))}
        tensors |= {f"terms/{k}": v for k, v in term_states(trainer.terms).items()}
        tensors |= {f"guests/{k}": v for k, v in term_states(trainer.guests).items()}
        tensors |= {f"rng/{rank}": state for rank, state in enumerate(states)}
        tensors["generator"] = trainer.generator.get_state()
        if trainer.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state()
        scaler = trainer.accelerator.scaler
        meta = {
            "progress": vars(trainer.progress),
            "scaler": scaler.state_dict() if scaler else None,
            "observers": sorted(trainer.observers),
        }
        write_tensors(trainer.store.checkpoint(trainer.node.key), tensors, meta)
    trainer.accelerator.wait_for_everyone()


def resume(trainer: StepTrainer) -> None:
    """Put everything back, if there is a sound checkpoint that the same observers rode on."""
    path = trainer.store.checkpoint(trainer.node.key)
    loaded = read_tensors(path) if path.exists() and trainer.total else None
    if loaded is None or loaded[1].get("observers") != sorted(trainer.observers):
        return
    tensors, meta = loaded
    trainer.model.load_state_dict(_part(tensors, "model"))
    for i, buffer in _part(tensors, "momentum").items():
        p = _parameters(trainer.optimizer)[int(i)]
        trainer.optimizer.state[p]["momentum_buffer"] = buffer.to(p.device, p.dtype)
    load_terms(trainer.terms, _part(tensors, "terms"), trainer.device)
    load_terms(trainer.guests, _part(tensors, "guests"), trainer.device)
    rng = _part(tensors, "rng").get(str(trainer.accelerator.process_index))
    if rng is not None:
        torch.set_rng_state(rng)
    trainer.generator.set_state(tensors["generator"])
    if "cuda_rng" in tensors and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_rng"])
    if meta["scaler"] and trainer.accelerator.scaler:
        trainer.accelerator.scaler.load_state_dict(meta["scaler"])
    for name, value in meta["progress"].items():
        setattr(trainer.progress, name, value)
    trainer.progress.resumed += 1


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [p for g in optimizer.param_groups for p in g["params"]]


def _momenta(optimizer: Any) -> list[Tensor]:
    state = optimizer.state
    return [state[p]["momentum_buffer"] for p in _parameters(optimizer) if "momentum_buffer" in state[p]]
