"""Which network is asked for, and which initial weights: what a step's key says of the model.

No torch here: this file is on the way of ``--help`` and of ``plan``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from contseg.benchmark.plan.timm_networks import PREFIX, timm_network, whole_network
from contseg.datasets.errors import UserError, unknown
from contseg.methods.identity import added_field
from contseg.methods.ranges import Number

Three: TypeAlias = tuple[float, ...]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of images in 0..1


@dataclass(frozen=True)
class Backbone:
    """A row of ``BACKBONES``: D, the output strides it can have (its own first), the ASPP's rates for each of them,
    the ASPP's (hidden, output) channels, what names its trained weights (torchvision's file, ``name-sha256[:8].pth``),
    and mean and standard deviation, in 0..1, by which the images are normalised that these weights know."""

    channels: int
    rates: Mapping[int, tuple[int, ...]]
    aspp: tuple[int, int] = (256, 256)  # MiB modules/deeplab.py
    imagenet: str | None = None
    mean: Three = MEAN
    std: Three = STD


# Chen et al. 2017, "Rethinking Atrous Convolution" (DeepLab-V3), section 4.1. MiB's release has 32 in place of 36.
_DEEPLAB = {16: (6, 12, 18), 8: (12, 24, 36)}

# The V1 weights: those of SDR's time. V2 is a better network trained by another recipe; pass it as a file.
BACKBONES = {
    "resnet18": Backbone(512, _DEEPLAB, imagenet="resnet18-f37072fd.pth"),
    "resnet34": Backbone(512, _DEEPLAB, imagenet="resnet34-b627a593.pth"),
    "resnet50": Backbone(2048, _DEEPLAB, imagenet="resnet50-0676ba61.pth"),
    "resnet101": Backbone(2048, _DEEPLAB, imagenet="resnet101-63fe2227.pth"),
    "tiny": Backbone(64, {4: (2, 4)}, aspp=(24, 48)),  # for the drawn shapes: 145 thousand parameters
}


def backbone_of(name: str) -> Backbone:
    """The row of ``BACKBONES``, or what timm says of ``timm:NAME``. ``UserError`` for an unknown name."""
    if name.startswith(PREFIX):
        network = timm_network(name)
        return Backbone(
            network.channels, network.rates, imagenet=network.weights or None, mean=network.mean, std=network.std
        )
    if name not in BACKBONES:
        raise unknown("backbone", name, [*BACKBONES, f"{PREFIX}NAME"])
    return BACKBONES[name]


@dataclass(frozen=True)
class ModelConfig:
    """DeepLab-V3. Which combinations there are: `contseg list backbones`."""

    backbone: Annotated[
        str,
        Meta(
            description="see `list backbones`, or `timm:NAME` for a network of timm; SDR, MiB and PLOP have resnet101"
        ),
    ] = "resnet101"
    output_stride: Annotated[
        Number, Meta(description="8 or 16 (`tiny`: 4); 0: the backbone's own, 16 in SDR, MiB and PLOP")
    ] = 0
    weights: Annotated[
        str,
        Meta(
            description='"imagenet" (or what timm has), "none", the path of a file, or "auto": trained if there are any'
        ),
    ] = "auto"
    norm: Annotated[
        Literal["sync", "batch", "frozen", "group"],
        Meta(description="batch statistics over all processes (SDR, MiB, PLOP), of each one, kept; or GroupNorm"),
    ] = "sync"
    pooling: Annotated[
        Number,
        Meta(description="cells on a side of the ASPP's pooling window at test (MiB: 512 / 16); 0: the whole map"),
    ] = 32
    norm_momentum: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="a batch's share in the encoder's statistics (SDR: 3e-4); 0: the backbone's own, 0.1",
        ),
    ] = added_field(0.0)
    head_activation: Annotated[
        Literal["relu", "leaky", "none"],
        Meta(description="in the ASPP: ReLU, leaky ReLU of slope 0.01 (MiB), or none, an affine head (SDR)"),
    ] = added_field("relu")
    dilation: Annotated[
        Literal["rest", "all"],
        Meta(
            description="dilated blocks of a ResNet's dense stage: all but the first (torchvision), or all (SDR, MiB)"
        ),
    ] = added_field("rest")
    encoder_activation: Annotated[
        Literal["relu", "leaky"],
        Meta(description="in a ResNet of torchvision: ReLU (SDR), or leaky ReLU of slope 0.01 (MiB, PLOP)"),
    ] = added_field("relu")


def check(config: ModelConfig) -> ModelConfig:
    """The same network with every "auto" spelled out. Raises ``UserError`` for a network that cannot be had."""
    backbone = backbone_of(config.backbone)
    stride = config.output_stride or next(iter(backbone.rates))
    if stride not in backbone.rates:
        strides = " or ".join(map(str, sorted(backbone.rates)))
        raise UserError(f"model.output_stride={stride}: {config.backbone} has {strides}")
    weights = config.weights
    if weights == "auto":
        weights = "imagenet" if backbone.imagenet and config.norm != "group" else "none"
    if weights == "imagenet" and backbone.imagenet is None:
        raise UserError(f"model.weights=imagenet: there are none for {config.backbone}; set model.weights=none")
    if weights == "imagenet" and config.norm == "group":
        raise UserError("model.weights=imagenet were trained with BatchNorm: set model.norm=sync or model.weights=none")
    if config.dilation == "all" and not config.backbone.startswith("resnet"):
        raise UserError(f"model.dilation=all: only torchvision's ResNets have it, not {config.backbone}")
    if config.encoder_activation != "relu" and not config.backbone.startswith("resnet"):
        raise UserError(
            f"model.encoder_activation={config.encoder_activation}: only torchvision's ResNets have it, "
            f"not {config.backbone}"
        )
    return replace(config, output_stride=stride, weights=weights)


def check_layers(backbone: str) -> None:
    """``UserError`` if it is not known which layers a network has (``train.optimiser``)."""
    backbone_of(backbone)
    if backbone.startswith(PREFIX) and not hasattr(whole_network(backbone), "group_matcher"):
        raise UserError(f"train.layer_decay: timm does not say which layers {backbone} has; set train.layer_decay=1")


def left_out(config: Any, field: Field[Any]) -> bool:
    """Whether a key, or a record, leaves the field out: one that was added later, at its default."""
    return bool(field.metadata.get("added")) and getattr(config, field.name) == field.default


def local_weights(config: ModelConfig) -> Path | None:
    """The user's own file, if ``config.weights`` names one. Raises ``UserError`` if it is not there."""
    if config.weights in ("auto", "imagenet", "none"):
        return None
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise UserError(f"model.weights={config.weights}: no such file (or one of: auto, imagenet, none)")
    return path


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """The model's part of a step's key: all fields spelled out, and the SHA-256 of the initial weights.

    Of ImageNet weights only the file's name is needed, since it bears the digits; a copy of that very file given by
    its path is the same initialisation, so it has the same identity.
    """
    config = check(config)
    path, backbone = local_weights(config), backbone_of(config.backbone)
    if path is None:
        weights = "none" if config.weights == "none" else f"imagenet/{backbone.imagenet}"
    else:
        stat = path.stat()
        digest = _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)
        official = backbone.imagenet
        same = official is not None and f"-{digest[:8]}." in official
        weights = f"imagenet/{official}" if same else f"sha256/{digest}"
    return {
        "backbone": architecture(config.backbone),
        "output_stride": config.output_stride,
        "weights": weights,
        "norm": config.norm,
        "pooling": config.pooling,
        **({"mean": [*backbone.mean], "std": [*backbone.std]} if config.backbone.startswith(PREFIX) else {}),
        **{
            f.name: value
            for f in fields(config)
            if f.metadata.get("added") and (value := getattr(config, f.name)) != f.default
        },
    }


def architecture(backbone: str) -> str:
    """The network's name without the tag of its weights."""
    return PREFIX + timm_network(backbone).name if backbone.startswith(PREFIX) else backbone


@lru_cache
def _sha256(path: Path, size: int, mtime: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
