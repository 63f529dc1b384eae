"""The optimiser of a step: which parameter trains at which rate, with which decay, and the rate of each update.

A method's groups (``trainable``) say what trains, with factors of their own. They are divided further where the
configuration asks for more: by the layer of the encoder (``train.layer_decay``), and with AdamW by what has no weight
decay. SGD without layer factors keeps the method's groups as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from contseg.benchmark.plan.config import TrainConfig
from contseg.methods import code
from contseg.methods.faults import MethodError

BETA2 = 0.999  # torch's default, and that of the recipes in docs/networks.md
GROUP = ("params", "lr_scale", "weight_decay")  # what a method may say of a group


def method_groups(trainable: Callable[..., Any], model: Any, step: Any) -> list[dict[str, Any]]:
    """The groups of the hook ``trainable``, without empty ones. ``MethodError``: what it gives is none.

    As torch does, it takes parameters from any iterator, and a single one too.
    """
    made = trainable(model, step)
    if fault := _no_groups(made):
        raise MethodError(f"trainable {fault} ({code.place(trainable)})")
    groups = [{**g, "params": [p] if isinstance(p := g["params"], Tensor) else list(p)} for g in made]
    known, seen = {id(p) for p in model.parameters()}, set[int]()
    for group in groups:
        if fault := next(filter(None, (_no_parameter(p, known, seen) for p in group["params"])), ""):
            raise MethodError(f"trainable {fault} ({code.place(trainable)})")
        seen.update(map(id, group["params"]))
    return [g for g in groups if g["params"]]


def _no_groups(made: Any) -> str:
    example = "give a list of groups, [{'params': list(model.parameters())}]"
    if not isinstance(made, (list, tuple)):
        return f"gives a {type(made).__name__}: {example}"
    for group in made:
        if not isinstance(group, dict) or not isinstance(group.get("params"), Iterable):
            return f"gives a list with a {type(group).__name__}{' without params' * isinstance(group, dict)}: {example}"
        if other := next((key for key in group if key not in GROUP), None):
            return f"gives a group with {other!r}: it has {', '.join(GROUP)}; lr_scale is a factor on train.lr"
    return ""


def _no_parameter(p: Any, known: Collection[int], seen: Collection[int]) -> str:
    if not isinstance(p, Tensor):
        return f"gives params with a {type(p).__name__}: give parameters, as model.parameters() does"
    if id(p) not in known:
        return "gives a parameter that is not the network's: put its module into model.heads, in `build`"
    return f"gives a parameter of shape {tuple(p.shape)} in two groups: put it into one" if id(p) in seen else ""


def make_optimiser(
    model: Any, groups: Iterable[dict[str, Any]], train: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """SGD or AdamW for a method's groups, each at the rate of an update without schedule and warm-up."""
    divided = parameter_groups(model, groups, train)
    fused = device.type == "cuda" or None
    if train.optimizer == "adamw":
        return torch.optim.AdamW(divided, lr=train.lr[0], betas=(train.momentum, BETA2), fused=fused)
    nesterov = train.nesterov and train.momentum > 0
    optimiser = torch.optim.SGD(divided, lr=train.lr[0], momentum=train.momentum, nesterov=nesterov, fused=fused)
    if train.momentum:
        # zeros: a buffer that torch's fused step makes itself stays uninitialised if the first gradients overflow
        for p in parameters(optimiser):
            optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimiser


def parameter_groups(model: Any, groups: Iterable[dict[str, Any]], train: TrainConfig) -> list[dict[str, Any]]:
    """The groups of the optimiser: ``params``, ``lr``, ``weight_decay``.

    A rate is ``train.lr`` times the method's factor (``lr_scale``) times the layer's (``layer_factors``). With AdamW
    ``undecayed`` parameters have no weight decay; SGD decays all that a method does not except, as MiB and PLOP do.
    """
    factors = layer_factors(model.encoder, train.layer_decay) if train.layer_decay < 1 else {}
    free = undecayed(model) if train.optimizer == "adamw" else set()
    divided: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for n, group in enumerate(groups):
        rate = train.lr[0] * group.get("lr_scale", 1.0)
        decay = group.get("weight_decay", train.weight_decay)
        for p in group["params"]:
            factor, none = factors.get(id(p), 1.0), id(p) in free
            part = {"params": [], "lr": rate * factor, "weight_decay": 0.0 if none else decay}
            divided.setdefault((n, factor, none), part)["params"].append(p)
    return list(divided.values())


def layer_factors(encoder: Any, decay: float) -> dict[int, float]:
    """By ``id``: decay^(L - l) for a parameter of layer l = 0 .. L - 1 of the encoder; all else has the factor 1.

    Layers are those of timm's ``group_matcher``: the stem is layer 0, and each block one more. It is timm's
    ``param_groups_layer_decay`` with ASPP and classifier in the place of the network's own classifier, the last layer.
    First in BEiT (Bao et al., ICLR 2022, arXiv 2106.08254).
    """
    layers = layer_numbers(encoder)
    n = max(layers.values()) + 1
    return {id(p): decay ** (n - layers[name]) for name, p in encoder.named_parameters()}


def layer_numbers(encoder: Any) -> dict[str, int]:
    """The layer of each of the encoder's parameters, by its name."""
    from timm.models import group_parameters

    names = {name: _own_name(encoder, name) for name, _ in encoder.named_parameters()}
    whole = SimpleNamespace(named_parameters=lambda: [(own, None) for own in names.values()])
    found = group_parameters(whole, encoder.layers, reverse=True)
    return {name: found[own] for name, own in names.items()}


def undecayed(model: Any) -> set[int]:
    """By ``id``: what has no weight decay with AdamW.

    Vectors and numbers (biases, norms, layer scales), and what timm excepts in a network: positions, class tokens,
    relative position biases (``no_weight_decay``). It is timm's rule; mmsegmentation's recipes of Swin and ViT except
    norms and positions, but decay biases.
    """
    named: set[str] = getattr(model.encoder, "undecayed", set())
    excepted = {id(p) for name, p in model.encoder.named_parameters() if _own_name(model.encoder, name) in named}
    return excepted | {id(p) for p in model.parameters() if p.ndim < 2}


def _own_name(encoder: Any, name: str) -> str:
    return encoder.own_name(name) if hasattr(encoder, "own_name") else name


def rate_factor(train: TrainConfig, update: int, total: int, warmup: int) -> float:
    """The factor on all rates at an update, 0 to ``total`` - 1.

    The schedule is ``poly``, (1 - update / total)^power, or ``cosine``, (1 + cos(pi update / total)) / 2 (Loshchilov
    and Hutter, ICLR 2017, without restarts). In the first ``warmup`` updates it is multiplied by 1 / (``warmup`` + 1),
    2 / (``warmup`` + 1), ...: mmcv's linear warm-up multiplies the schedule too, from nearly 0 on.
    """
    if train.schedule == "cosine":
        decay = (1 + math.cos(math.pi * update / total)) / 2
    else:
        decay = (1 - update / total) ** train.power
    return decay if update >= warmup else decay * (update + 1) / (warmup + 1)


def parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of an optimiser, in its order."""
    return [p for g in optimiser.param_groups for p in g["params"]]


# --- its state in a checkpoint -------------------------------------------------------------------------------------


def state_tensors(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Momenta and moments, ``kind/parameter``; a parameter that had no gradient yet may have none."""
    named = model.named_parameters()
    return {f"{kind}/{name}": t for name, p in named if p in optimiser.state for kind, t in optimiser.state[p].items()}


def load_state(optimiser: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put ``state_tensors`` back, in the layout of their parameters; the groups stay as they are."""
    named = dict(model.named_parameters())
    names = {id(p): name for name, p in named.items()}
    numbers = {names[id(p)]: i for i, p in enumerate(parameters(optimiser))}
    states: dict[int, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        kind, _, name = place.partition("/")
        found = tensor if kind == "step" else torch.empty_like(named[name]).copy_(tensor)
        states.setdefault(numbers[name], {})[kind] = found
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
