"""A trained step's network by key, for use elsewhere::

from benchmark.load import load_step
model, predict = load_step("results", "3f9a1c2e")     # images (B, 3, H, W), normalised -> class map (B, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.config import Config, _section
from benchmark.model import Segmenter, build_model
from benchmark.model_config import ModelConfig
from benchmark.store import Store, read_tensors
from datasets.errors import UserError
from datasets.scenario import Step
from methods.base import Method, Term
from methods.registry import build_method, load_plugins

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pictures in 0..1


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 with ImageNet's mean and standard deviation, on the device where they lie."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std


def skeleton(config: ModelConfig, steps: Sequence[Step], method: Method, seed: int) -> Segmenter:
    """The network after these steps, grown and built step by step, with initial weights."""
    if len(steps) > 1:
        config = replace(config, weights="none")  # a parent's weights take their place
    model = build_model(config, [steps[0].n_new], seed)
    method.build(model, steps[0])
    for step in steps[1:]:
        grow(model, step, method)
    return model


def grow(model: Any, step: Step, method: Method) -> None:
    """A block for the new classes, then the method's ``build`` door."""
    model.classifier.grow(step.n_new)
    method.build(model, step)


def load_terms(terms: dict[str, Term], flat: dict[str, Tensor], device: torch.device) -> None:
    """Give terms their state back from ``term-name:attribute`` entries."""
    for name, term in terms.items():
        mine = {k.removeprefix(f"{name}:"): v.to(device) for k, v in flat.items() if k.startswith(f"{name}:")}
        if mine:
            term.load_state_dict(mine)


def term_states(terms: dict[str, Term]) -> dict[str, Tensor]:
    """All state of terms, flat."""
    return {f"{n}:{k}": v for n, t in terms.items() for k, v in t.state_dict().items()}


def load_step(out: str | Path, key: str) -> tuple[Segmenter, Callable[[Tensor], Tensor]]:
    """The network of a trained step, in evaluation mode, and a function from images to class maps (channels).

    ``key`` is a record's ``step_key`` or its first digits. Raises ``UserError`` if the step is not in the cache of
    ``out``, or its file is damaged.
    """
    store = Store(Path(out))
    found = sorted(store.cache.glob(f"{key[:2]}/{key}*/model.safetensors"))
    if len(found) != 1:
        what = "no trained step" if not found else f"{len(found)} trained steps"
        raise UserError(
            f"{what} under {store.cache} with a key that begins with {key!r}: see `run_benchmark.py cache list`"
        )
    loaded = read_tensors(found[0])
    if loaded is None:
        raise UserError(f"{found[0]} is damaged: run the grid again, it trains what is missing")
    tensors, meta = loaded
    load_plugins(*meta["plugins"])
    method = build_method(meta["method"])
    steps = [Step(s["index"], s["setup"], tuple(s["old_classes"]), tuple(s["new_classes"])) for s in meta["steps"]]
    model = skeleton(
        replace(_section(ModelConfig, "model", meta["model"], str(found[0])), weights="none"), steps, method, 0
    )
    model.load_state_dict(tensors)
    terms = method.active(steps[-1])
    for path in (found[0].with_name("terms.safetensors"), *_observers(found[0].parent, meta)):
        state = read_tensors(path) if path.exists() else None
        if state is not None:
            load_terms(terms, state[0], torch.device("cpu"))
    model.eval().requires_grad_(False)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        prediction: Tensor = method.predict(model(images), (images.shape[-2], images.shape[-1]))
        return prediction

    return model, predict


def _observers(folder: Path, meta: dict[str, Any]) -> list[Path]:
    return [folder / f"observer-{key}.safetensors" for key in meta.get("observers", {})]


__all__ = ["Config", "grow", "load_step", "load_terms", "normalise", "skeleton", "term_states"]
