"""A trained step as weights that timm and torchvision load: the encoder of ``timm.create_model``, the head of
``torchvision.models.segmentation.deeplabv3.ASPP``, a 1x1 classifier.

Both heads are one function: torchvision joins the pooled map with the others in front of one projection, which is the
sum of the two projections here. It pools over the whole map, as a window of ``model.pooling`` cells does where it
covers the map.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contseg.benchmark.models.segmenter import NEVER, Segmenter, build_model
from contseg.benchmark.plan.model_config import ModelConfig, backbone_of, check
from contseg.benchmark.plan.timm_networks import PREFIX, timm_network
from contseg.datasets.atomic import replacing
from contseg.datasets.errors import UserError
from contseg.methods.base import HOOKS, Method

HEAD = {"maps.": "convs.", "pool.0.": "convs.4.1.", "pool.1.": "convs.4.2.", "norm.": "project.1."}


def plain_weights(network: Segmenter, method: Method, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by name, and what builds their network: arguments of timm and torchvision, mean and deviation.

    Raises ``UserError`` for a network that these two cannot build, or another prediction rule than the arg max.
    """
    config = check(config)
    if why := _special(network, method, config):
        raise UserError(f"a file of plain weights cannot hold this step: {why}; export a program, FILE.pt2")
    backbone = backbone_of(config.backbone)
    if config.backbone.startswith(PREFIX):
        known = timm_network(config.backbone)
        arguments = {"model_name": known.name, "out_indices": list(known.stages), **known.options}
    else:
        arguments = {"model_name": config.backbone, "out_indices": [4]}
    encoder = {k.removeprefix("net."): v for k, v in network.encoder.state_dict().items()}
    aspp = network.aspp.state_dict()
    joined = torch.cat([aspp.pop("project.weight"), aspp.pop("project_pool.weight")], dim=1)
    head = {_renamed(k): v for k, v in aspp.items()} | {"project.0.weight": joined}
    blocks: Any = network.classifier.blocks
    rows = {what: torch.cat([getattr(block, what) for block in blocks]) for what in ("weight", "bias")}
    if not network.background:
        rows["weight"][0], rows["bias"][0] = 0, NEVER
    parts = {"encoder": encoder, "head": head, "classifier": rows}
    about = {
        "timm": {**arguments, "features_only": True, "output_stride": config.output_stride},
        "torchvision": {"in_channels": backbone.channels, "atrous_rates": [*backbone.rates[config.output_stride]]},
        "mean": [*network.pixels.mean],
        "std": [*network.pixels.std],
        "largest_side": config.pooling * config.output_stride,
    }
    return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}, about


def save(weights: dict[str, Tensor], path: Path, about: dict[str, Any]) -> None:
    """Write a safetensors file, atomically; ``about`` is JSON under the key "about" of its header."""
    from safetensors.torch import save as as_bytes

    data = as_bytes({k: v.detach().cpu().contiguous() for k, v in weights.items()}, {"about": json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _special(network: Segmenter, method: Method, config: ModelConfig) -> str:
    """Why timm and torchvision cannot build the network, "" if they can."""
    if method.predict is not HOOKS["predict"]:
        return f"{method.name} predicts by a rule of its own"
    if config.backbone == "tiny":
        return "neither library has the network `tiny`"
    if config.backbone.startswith(PREFIX) and timm_network(config.backbone).kind != "dilated":
        return f"{config.backbone} needs images of other sizes, or its last map enlarged"
    for name, usual in (("head_activation", "relu"), ("encoder_activation", "relu"), ("dilation", "rest")):
        if getattr(config, name) != usual:
            return f"neither library has model.{name}={getattr(config, name)}"
    if config.norm == "group":
        return "its norms are GroupNorm"
    with torch.device("meta"):
        usual_names = build_model(ModelConfig(config.backbone, config.output_stride, "none", config.norm), [1])
    blocks = {k for k in network.state_dict() if not k.startswith("classifier.blocks.")}
    if blocks != {k for k in usual_names.state_dict() if not k.startswith("classifier.blocks.")}:
        return f"{method.name} builds a network of its own"
    return ""


def _renamed(name: str) -> str:
    start = next(start for start in HEAD if name.startswith(start))
    return HEAD[start] + name.removeprefix(start)
