"""Encoders of timm (Wightman, https://github.com/huggingface/pytorch-image-models): hundreds of networks by name.

Images (B, 3, H, W) -> features (B, D, h, w) and four stages (B, D_l, h_l, w_l), as in ``models.encoders``, but a stage
is what the network hands on, after its own activation if it has one (``models.encoders`` gives it before).
Which networks serve, and how, is in ``plan.timm_networks``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.models.encoders import Encoded
from contseg.benchmark.models.weights import read_timm_weights
from contseg.benchmark.plan.timm_networks import create, timm_network, whole_network


class TimmEncoder(nn.Module):
    """The encoder ``timm:NAME`` with the weights of ``file``, or freshly initialised by timm's own rules.

    Stochastic depth, which some networks have by default, is off: an update is a function of its images.
    Features may be negative. Raises ``UserError`` for weights of another network.
    """

    nonnegative, activated = False, True

    def __init__(self, backbone: str, output_stride: int, file: Path | None = None) -> None:
        super().__init__()
        from timm.layers import DropPath

        self.backbone = backbone
        network = timm_network(backbone)
        trained: dict[str, Any] = {}
        state = {} if file is None else read_timm_weights(backbone, file)
        if state:
            trained = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state, "custom_load": False}}
        with _without_the_head(backbone, state):
            self.net = create(network, output_stride, **trained)
        for module in self.net.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.multiple = network.multiple
        self.enlarges = network.kind == "pyramid" and network.stride > output_stride
        self.channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")

    @property
    def layers(self) -> Any:
        """Which parameters are a layer, as timm groups them."""
        return whole_network(self.backbone).group_matcher(coarse=False)

    @property
    def undecayed(self) -> set[str]:
        """Parameters that timm never decays, beside vectors: positions, class tokens, relative position biases."""
        whole = whole_network(self.backbone)
        return set(whole.no_weight_decay()) if hasattr(whole, "no_weight_decay") else set()

    def own_name(self, name: str) -> str:
        """A parameter's name in the whole network: what gives features has other names for its outermost modules."""
        name = name.removeprefix("net.").removeprefix("model.")
        first, dot, rest = name.partition(".")
        return self._outermost.get(first, first) + dot + rest

    @cached_property
    def _outermost(self) -> dict[str, str]:
        return {name.replace(".", "_"): name for name, _ in whole_network(self.backbone).named_modules()}

    def forward(self, images: Tensor) -> Encoded:
        stages = tuple(self.net(self.fit(images)))
        if self.channels_last:
            stages = tuple(stage.permute(0, 3, 1, 2) for stage in stages)
        features = stages[-1]
        if self.enlarges:  # to the stage before, of half the stride
            features = F.interpolate(features, stages[-2].shape[-2:], mode="bilinear", align_corners=False)
        return features, stages

    def fit(self, images: Tensor) -> Tensor:
        """Images whose sides are multiples of the network's patches: enlarged where they are not."""
        sides = [-(-n // self.multiple) * self.multiple for n in images.shape[-2:]]
        if sides == [*images.shape[-2:]]:
            return images
        return F.interpolate(images, sides, mode="bilinear", align_corners=False)


@contextlib.contextmanager
def _without_the_head(backbone: str, state: Mapping[str, Tensor]) -> Iterator[None]:
    """timm logs which tensors of ``state`` the encoder has no place for: not if all are of the whole network's head."""
    logger = logging.getLogger("timm.models._builder")

    def others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unexpected keys (")

    if state and state.keys() <= whole_network(backbone).state_dict().keys():
        logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
