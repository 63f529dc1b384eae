"""The network: encoder -> ASPP -> a 1x1 classifier that grows by a block a step (DeepLab-V3, Chen et al. 2017).

Shapes: ``B`` batch, ``C`` seen classes, ``D`` channels of the encoder, ``E`` channels in front of the classifier,
``H, W`` image, ``h, w`` feature map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.models.pixels import Pixels
from contseg.benchmark.plan.model_config import ModelConfig, backbone_of, check
from contseg.benchmark.plan.timm_networks import PREFIX
from contseg.datasets.errors import UserError
from contseg.methods.base import SegOutput
from contseg.methods.modules import drawn_from


def build_model(config: ModelConfig, groups: Sequence[int], seed: int = 0) -> Segmenter:
    """The network with initial weights. ``groups``: logit channels by step, background in the first.

    Initialisation is a function of ``seed`` alone, and of its number for each block of the classifier; torch's global
    generator is left as it was. Raises ``UserError`` where the weights cannot be had.
    """
    from contseg.benchmark.models.encoders import build_encoder
    from contseg.benchmark.models.weights import fetch_weights, load_weights

    config = check(config)
    file = fetch_weights(config)
    backbone = backbone_of(config.backbone)
    hidden, width = backbone.aspp
    of_timm = config.backbone.startswith(PREFIX)
    with drawn_from(seed, "encoder and ASPP"):
        if of_timm:
            from contseg.benchmark.models.timm_encoder import TimmEncoder

            encoder: nn.Module = TimmEncoder(config.backbone, config.output_stride, file)
        else:
            encoder = build_encoder(config.backbone, config.output_stride, config.dilation, config.encoder_activation)
        rates = backbone.rates[config.output_stride]
        aspp = ASPP(backbone.channels, hidden, width, rates, config.pooling, activation=config.head_activation)
    classifier = IncrementalClassifier(width, groups, seed)
    model = Segmenter(encoder, aspp, classifier)
    model.pixels = Pixels(backbone.mean, backbone.std)
    set_norm(model, config.norm)
    for module in encoder.modules():
        if config.norm_momentum and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = config.norm_momentum
    if file is not None and not of_timm:
        load_weights(encoder, file, aspp, classifier.blocks[0] if len(groups) == 1 else None)
    return model


class Segmenter(nn.Module):
    """Images (B, 3, H, W), normalised -> ``SegOutput`` at the resolution of the encoder.

    ``heads``: what a method's ``build`` hook adds beside the classifier; each reads the embedding (B, E, h, w), its
    output is ``SegOutput.extra[name]``. ``pixels``: how its images are normalised. ``background=False``: channel 0 has
    the constant logit ``NEVER`` and no part in softmax, sigmoid and arg max.
    """

    pixels = Pixels()
    background = True

    def __init__(self, encoder: nn.Module, aspp: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.aspp, self.classifier = encoder, aspp, classifier
        self.heads = nn.ModuleDict()

    def forward(self, images: Tensor) -> SegOutput:
        features, stages = self.encoder(images)
        embedding = self.aspp(features)
        extra = {name: head(embedding) for name, head in self.heads.items()}
        logits = self.classifier(embedding)
        if not self.background:
            logits = torch.cat([torch.full_like(logits[:, :1], NEVER), logits[:, 1:]], dim=1)
        return SegOutput(logits, features, embedding, stages, extra)


NEVER = -1e4  # its exponential is 0 in float64 too; finite, so that 0 times it is 0, also in float16


class IncrementalClassifier(nn.Module):
    """Embedding (B, E, h, w) -> logits (B, C, h, w), by one 1x1 convolution a step: ``blocks[t]`` has N_t rows.

    A block is drawn as torch draws it, from ``seed`` and its number: the same rows whenever it is added.
    """

    def __init__(self, channels: int, groups: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.channels, self.seed = channels, seed
        self.blocks = nn.ModuleList()
        for n in groups:
            self.grow(n)

    def grow(self, n: int) -> None:
        """Add a block for ``n`` new classes, beside the present ones (device and type)."""
        with drawn_from(self.seed, f"classifier block {len(self.blocks)}"):
            block = nn.Conv2d(self.channels, n, 1)
        beside = next(self.parameters(), block.weight)
        self.blocks.append(block.to(beside.device, beside.dtype))

    def forward(self, embedding: Tensor) -> Tensor:
        return torch.cat([block(embedding) for block in self.blocks], dim=1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.01),  # MiB: inplace-abn's default slope
    "none": nn.Identity,
}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling as in MiB (modules/deeplab.py): features (B, D, h, w) -> embedding (B, E, h, w).

    A 1x1 and some dilated 3x3 convolutions side by side, ``maps``, each with its norm; image pooling is projected by
    itself and added. Pooling is global in training and a sliding window of ``pooling`` cells a side otherwise, so
    that a test image larger than the training crop is pooled as a crop was. ``activation``: one of ``ACTIVATIONS``;
    MiB has leaky ReLU, SDR's release none. ``nonnegative``: whether no element of the embedding is negative.
    """

    def __init__(
        self, channels: int, hidden: int, width: int, rates: Sequence[int], pooling: int, *, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.pooling, self.nonnegative = pooling, activation == "relu"
        self.activate = ACTIVATIONS[activation]()
        self.maps = nn.ModuleList([nn.Sequential(_conv(channels, hidden, 1), nn.BatchNorm2d(hidden))])
        for rate in rates:
            self.maps.append(nn.Sequential(_conv(channels, hidden, 3, rate), nn.BatchNorm2d(hidden)))
        self.project = _conv(hidden * len(self.maps), width, 1)
        self.pool = nn.Sequential(_conv(channels, hidden, 1), nn.BatchNorm2d(hidden), ACTIVATIONS[activation]())
        self.project_pool = _conv(hidden, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        maps = self.project(self.activate(torch.cat([m(features) for m in self.maps], dim=1)))
        if self.training or self.pooling == 0:
            pooled = features.mean((2, 3), keepdim=True)  # broadcast; unlike adaptive pooling deterministic on a GPU
        else:
            pooled = self.window(features, self.pooling)
        return self.activate(self.norm(maps + self.project_pool(self.pool(pooled))))

    def window(self, features: Tensor, side: int) -> Tensor:
        """``sliding_mean``; ``models.export`` has one for sizes that are not known yet."""
        return sliding_mean(features, side)


def sliding_mean(x: Tensor, side: int) -> Tensor:
    """Means over ``side`` x ``side`` windows, clamped to the map: (B, D, h, w) -> (B, D, h, w).

    Windows lie wholly inside; cells near the border take the nearest window's mean. Where the map is no larger
    than the window, that is the global mean everywhere.
    """
    h, w = min(side, x.shape[-2]), min(side, x.shape[-1])
    means = F.avg_pool2d(x, (h, w), stride=1)
    return F.pad(means, ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2), mode="replicate")


def _conv(inputs: int, outputs: int, size: int, rate: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, bias=False)
    nn.init.xavier_normal_(conv.weight, nn.init.calculate_gain("relu"))  # MiB modules/deeplab.py
    return conv


def set_norm(model: nn.Module, norm: str) -> None:
    """Turn every BatchNorm of a fresh ``model`` into ``norm``, in place.

    "sync": statistics over all processes; in one process it is BatchNorm. It refuses to run on a CPU. "frozen":
    statistics and affine parameters are constants (MiB's ``fix_bn``). "group": GroupNorm, 32 groups where that divides.
    """
    if norm == "sync" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if not torch.cuda.is_available():
            raise UserError("model.norm=sync needs GPUs where there are several processes: set frozen, group or batch")
        _each_norm(model, _synchronised)
    elif norm == "frozen":
        _each_norm(model, _frozen)
    elif norm == "group":
        _each_norm(model, _grouped)


def _each_norm(model: nn.Module, change: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, change(child))


def _has_activation(norm: Any) -> bool:
    """Whether it is timm's ``BatchNormAct2d``, which activates what it has normalised."""
    return hasattr(norm, "act")


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    if not _has_activation(norm):
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-any-return]
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(norm)  # type: ignore[no-any-return]


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    frozen: nn.Module
    if _has_activation(norm):
        from timm.layers import freeze_batch_norm_2d

        frozen = freeze_batch_norm_2d(norm)
    else:
        from torchvision.ops import FrozenBatchNorm2d

        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
        frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    frozen.register_forward_hook(_in_the_inputs_type)
    return frozen


def _in_the_inputs_type(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The frozen norms of torchvision and timm make float32 of bf16 and fp16."""
    return output.to(inputs[0].dtype)


def _grouped(norm: Any) -> nn.Module:
    """Wu and He 2018: 32 groups; where that does not divide, the most that do."""
    groups = nn.GroupNorm(math.gcd(32, norm.num_features), norm.num_features, norm.eps)
    return nn.Sequential(groups, norm.drop, norm.act) if _has_activation(norm) else groups
