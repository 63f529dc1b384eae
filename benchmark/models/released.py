"""The names that released code gives to weights, as the names of this suite: MiB, PLOP and their follow-ups, SDR.

Both are DeepLab-V3 of the same tensors. Sources: ``MiB@3da2fe3`` (models/resnet.py, modules/residual.py,
modules/deeplab.py, segmentation_module.py; PLOP has the same names), ``SDR@f1c6d12`` (net/resnet_atrous.py,
segmentation_module.py), inplace_abn's ImageNet file ``resnet101_iabn_sync.pth.tar``, which is MiB's body by itself.

| released | here |
|---|---|
| ``body.mod1.conv1``, ``body.mod1.bn1`` | ``encoder.conv1``, ``encoder.bn1`` |
| ``body.mod2.block1.convs.conv1`` ... ``body.mod5`` | ``encoder.layer1.0.conv1`` ... ``encoder.layer4`` |
| ``....proj_conv``, ``....proj_bn`` | ``....downsample.0``, ``....downsample.1`` |
| ``body.conv1``, ``body.layer1.0.conv1`` ... (SDR) | ``encoder.`` and the same |
| ``head.map_convs.0`` ... ``3``; a quarter each of ``head.map_bn`` | ``aspp.maps.0.0`` ... ; ``aspp.maps.0.1`` ... |
| ``head.global_pooling_conv``, ``head.global_pooling_bn`` | ``aspp.pool.0``, ``aspp.pool.1`` |
| ``head.red_conv``, ``head.pool_red_conv``, ``head.red_bn`` | ``aspp.project``, ``aspp.project_pool``, ``aspp.norm`` |
| ``cls.0``, ``cls.1`` ... | the rows of the classifier |

In-place ABN multiplies by |gamma| + 1e-5 (inplace_abn, src/inplace_abn_cpu.cpp), a BatchNorm by gamma: files with
``mod1`` get that value as their gamma. SDR's default network has plain norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-5  # of inplace_abn
MAPS = 4  # parallel maps of the ASPP, whose norms are one in released code

_BODY = (
    (r"^mod1\.", ""),
    (r"^mod(\d+)\.block(\d+)\.", lambda m: f"layer{int(m[1]) - 1}.{int(m[2]) - 1}."),
    (r"\.convs\.", "."),
    (r"\.proj_conv\.", ".downsample.0."),
    (r"\.proj_bn\.", ".downsample.1."),
)
_HEAD = (
    (r"^map_convs\.(\d+)\.", r"maps.\1.0."),
    (r"^global_pooling_conv\.", "pool.0."),
    (r"^global_pooling_bn\.", "pool.1."),
    (r"^red_conv\.", "project."),
    (r"^pool_red_conv\.", "project_pool."),
    (r"^red_bn\.", "norm."),
)


@dataclass(frozen=True)
class Parts:
    """Weights by part, under the names of this suite. ``aspp`` and ``rows`` are empty in a file of an encoder.

    ``rows``: "weight" (C, E, 1, 1) and "bias" (C,) of all classes. ``leaky``: trained by in-place ABN's leaky ReLU.
    """

    encoder: dict[str, Tensor]
    aspp: dict[str, Tensor]
    rows: dict[str, Tensor]
    leaky: bool


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of released code."""
    return any(name.startswith(("body.", "mod1.")) for name in state)


def parts_of(state: Mapping[str, Tensor]) -> Parts:
    """The parts of a state dict under released names. What has no counterpart keeps its name, among the encoder's."""
    leaky = any(re.match(r"(body\.)?mod1\.", name) for name in state)
    if leaky:
        state = {k: v.abs() + EPSILON if _is_gamma(k, state) else v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    body = {k.removeprefix("body."): v for k, v in state.items() if not k.startswith(("head.", "cls.", "classifier."))}
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    aspp = {_renamed(k, _HEAD): v for k, v in head.items() if not k.startswith("map_bn.")}
    for name, norm in head.items():
        if name.startswith("map_bn."):
            field = name.removeprefix("map_bn.")
            aspp |= {f"maps.{i}.1.{field}": quarter for i, quarter in enumerate(norm.chunk(MAPS))}
    groups = sorted({int(found[1]) for k in state if (found := re.match(r"cls\.(\d+)\.", k))})
    rows = {
        what: torch.cat([state[f"cls.{g}.{what}"] for g in groups])
        for what in ("weight", "bias")
        if groups and all(f"cls.{g}.{what}" in state for g in groups)
    }
    return Parts({_renamed(k, _BODY): v for k, v in body.items()}, aspp, rows, leaky)


def _is_gamma(name: str, state: Mapping[str, Tensor]) -> bool:
    return name.endswith(".weight") and f"{name.removesuffix('weight')}running_mean" in state


def _renamed(name: str, rules: tuple[tuple[str, object], ...]) -> str:
    for pattern, to in rules:
        name = re.sub(pattern, to, name)  # type: ignore[call-overload]
    return name
