"""A trained step's network by key, for use elsewhere::

from contseg.benchmark.models.load import load_step
model, predict = load_step("results", "3f9a1c2e")  # images (B, 3, H, W), uint8 -> class map (B, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from contseg.benchmark.models.segmenter import Segmenter, build_model
from contseg.benchmark.plan.config import read_section
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.store.files import LostStateError, Store, read_tensors
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Step
from contseg.methods.base import Method, Term, describe
from contseg.methods.code import place
from contseg.methods.faults import MethodError
from contseg.methods.registry import build_method, load_plugins

M = TypeVar("M", bound=nn.Module)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fresh(config: ModelConfig, step: Step, method: Method, seed: int) -> Segmenter:
    """The network in which step 0 begins, with the configured weights of its encoder."""
    model = build_model(config, [step.n_new], seed)
    model.background = step.background
    _build(model, step, method)
    return model


def skeleton(config: ModelConfig, steps: Sequence[Step], method: Method, seed: int) -> Segmenter:
    """The network after these steps, grown and built step by step, for weights that are kept: none are fetched."""
    model = fresh(replace(config, weights="none"), steps[0], method, seed)
    for step in steps[1:]:
        grow(model, step, method)
    return model


def trained(
    config: ModelConfig, steps: Sequence[Step], method: Method, seed: int, weights: dict[str, Tensor]
) -> Segmenter:
    """The network after these steps with its kept weights, in their precision."""
    model = skeleton(config, steps, method, seed)
    load_weights(model, weights)
    return model


def grow(model: Any, step: Step, method: Method) -> None:
    """A block for the new classes, if there are any, then the method's ``build`` hook."""
    if step.n_new:
        model.classifier.grow(step.n_new)
    _build(model, step, method)


def _build(model: Any, step: Step, method: Method) -> None:
    """Call the method's ``build`` hook of the step. ``MethodError`` for one that makes another network."""
    hook = method.hook("build", step)
    made = hook(model, step)
    if made is not None and made is not model:
        what = f"build gives a {type(made).__name__}, which nobody uses"
        raise MethodError(f"{what}: change the network that it is given, in place ({place(hook)})")


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put kept weights into a network, which takes their precision."""
    model.to(next(w.dtype for w in weights.values() if w.is_floating_point()))
    model.load_state_dict(weights)


def half(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to what ``train.precision`` names, or none: for the pass through a network, and nothing after it."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)


def on_device(model: M, device: torch.device) -> M:
    """The network on the device; channels last in memory where that is a GPU."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def for_batches(model: M, device: torch.device) -> M:
    """The network on the device, its weights in the layout of a training batch: channels last in memory.

    A convolution would otherwise copy its weights in every pass, forward and back, and their gradient once more.
    Kernels of one place or of one channel lie alike in both layouts. On a CPU they keep their strides, by which torch
    chooses an algorithm: with others the last bits change.
    """
    model = on_device(model, device)
    for p in model.parameters():
        if p.ndim == 4 and p.shape[1] > 1 and p.shape[2:].numel() > 1:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def load_terms(terms: dict[str, Term], flat: dict[str, Tensor], device: torch.device) -> None:
    """Give terms their state back from ``term-name:attribute`` entries."""
    for name, term in terms.items():
        mine = {k.removeprefix(f"{name}:"): v.to(device) for k, v in flat.items() if k.startswith(f"{name}:")}
        if mine:
            term.load_state_dict(mine)


def term_states(terms: dict[str, Term]) -> dict[str, Tensor]:
    """All state of terms, flat."""
    return {f"{n}:{k}": v for n, t in terms.items() for k, v in t.state_dict().items()}


def load_step(
    out: str | Path, key: str, method: str = "", device: str | torch.device = "cpu"
) -> tuple[Segmenter, Callable[[Tensor], Tensor]]:
    """The network of a trained step, in evaluation mode, and a function from images to class maps (channels).

    ``key`` is a record's ``step_key`` or its first digits; ``method`` the one whose prediction rule is wanted, where
    several share the step (default: that of the first). The network, and what its prediction rule reads, are on
    ``device`` and in the precision of training; the function brings images there, and normalises those of bytes as
    the network was trained (``model.pixels``). Raises ``UserError`` if the step is
    not in the cache of ``out``, or its file is damaged.
    """
    model, built = load_trained(out, key, method, device)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = model.pixels.normalise(images.to(device))
        out = model(images.to(next(model.parameters())))
        prediction: Tensor = built.predict(out, (images.shape[-2], images.shape[-1]))
        return prediction

    return model, predict


def load_trained(
    out: str | Path, key: str, method: str = "", device: str | torch.device = "cpu", plugins: bool = True
) -> tuple[Segmenter, Method]:
    """The network of a trained step as ``load_step`` gives it, and its method, with the states of its terms.

    ``plugins=False``: the code that the file names is not run.
    """
    device = torch.device(device)
    store = Store(Path(out))
    key = whole_key(store, key)
    try:
        tensors, meta = store.read_model(key)
        terms_state = store.read_terms(key)
    except LostStateError as lost:
        raise UserError(f"{lost}: run the grid again with a new --out, which trains it") from None
    if plugins:
        load_plugins(*meta["plugins"])
    built = build_method(method or meta["method"])
    steps = [
        Step(s["index"], s["setup"], tuple(s["old_classes"]), tuple(s["new_classes"]), s.get("background", True))
        for s in meta["steps"]
    ]
    config = read_section(ModelConfig, "model", meta["model"], str(store.model(key)))
    model = trained(config, steps, built, 0, tensors)
    terms = built.active(steps[-1])
    load_terms(terms, terms_state, device)
    for term in terms.values():
        if term.observes and (state := _observed(store.step(key), term)):
            term.load_state_dict({k: v.to(device) for k, v in state.items()})
    return on_device(model, device).eval().requires_grad_(False), built


def whole_key(store: Store, key: str) -> str:
    """The key of the trained step that begins with these digits. Raises ``UserError`` unless there is one."""
    found = sorted(store.cache.glob(f"{key[:2]}/{key}*/model.safetensors"))
    if len(found) != 1:
        what = "no trained step" if not found else f"{len(found)} trained steps"
        raise UserError(f"{what} under {store.cache} with a key that begins with {key!r}: see `contseg cache list`")
    return found[0].parent.name


def meta_of(out: str | Path, key: str) -> dict[str, Any]:
    """What was stored with the weights of a step. Raises ``UserError`` as ``load_step`` does."""
    store = Store(Path(out))
    try:
        return store.meta(whole_key(store, key))
    except LostStateError as lost:
        raise UserError(f"{lost}: run the grid again with a new --out, which trains it") from None


def channels_of(meta: dict[str, Any]) -> tuple[int, ...]:
    """The label of each channel of a stored step, background first."""
    last = meta["steps"][-1]
    return (0, *last["old_classes"], *last["new_classes"])


def _observed(folder: Path, term: Term) -> dict[str, Tensor] | None:
    """The state of a shared observer of a step, found by what it is: methods may name it differently."""
    sound = [loaded for path in sorted(folder.glob("observer-*.safetensors")) if (loaded := read_tensors(path))]
    states = {meta["sha256"]: state for state, meta in sound if meta.get("is") == describe(term)}
    if len(states) > 1:
        raise UserError(
            f"{folder} holds {len(states)} different states of {type(term).__name__}, of methods that begin it at "
            "different steps or setups: run them into folders of their own"
        )
    return next(iter(states.values()), None)
