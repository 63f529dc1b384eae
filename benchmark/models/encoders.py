"""Encoders: images (B, 3, H, W) -> features (B, D, h, w) and four stages (B, D_l, h_l, w_l).

The stages are the outputs of the residual stages *before their last activation*, as PLOP and its follow-ups read them.
Here a residual block activates its input instead of its output: the same function as torchvision's, bit by bit, and
the maps between the blocks are those before activation. No hook, no copy.

``layers`` says which parameters are a layer, in the way of timm's ``group_matcher`` (``train.optimiser``).

What an encoder promises of its maps, beside their shapes: ``nonnegative``, that no feature is negative; ``activated``,
that the stages are what the network hands on, after an activation if it has one, and not before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet

SLOPE = 0.01  # MiB, PLOP: inplace-abn's default
LEAKY = partial(F.leaky_relu, negative_slope=SLOPE)
Encoded = tuple[Tensor, tuple[Tensor, ...]]


def build_encoder(name: str, output_stride: int, dilation: str = "rest", activation: str = "relu") -> nn.Module:
    """The encoder ``name`` of ``BACKBONES``, freshly initialised, with BatchNorm.

    ``dilation``, ``activation``: of a ResNet; "leaky" is a leaky ReLU of slope 0.01.
    """
    return Tiny() if name == "tiny" else ResNet(name, output_stride, dilation, activation)


def set_output_stride(
    blocks: Iterable[nn.Module], output_stride: int, before: int = 1, dilation_of: str = "rest"
) -> None:
    """Strides beyond ``output_stride`` become dilation of all that follows (à trous): the same weights, the same values
    on a denser grid. ``before``: the stride in front of the first block.

    Done on finished blocks because torchvision refuses dilation for ResNet-18 and -34; where torchvision allows it
    (ResNet-50, -101), the result is the same network. In MiB's and SDR's body the first block of a dense stage is
    dilated as well: ``dilation_of="all"``.
    """
    stride, dilation = before, 1
    for block in blocks:
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        own = max(c.stride[0] for c in convs)
        dense, after = stride * own > output_stride, dilation * own
        if dense and dilation_of == "all":
            dilation = after
        for conv in convs:
            spatial = conv.kernel_size[0] > 1
            if spatial:
                conv.dilation = (dilation, dilation)
                conv.padding = (dilation * (conv.kernel_size[0] - 1) // 2,) * 2
            if dense and conv.stride[0] > 1:
                conv.stride = (1, 1)
                dilation = after if spatial else dilation  # the rest of the block reads the denser map
        stride = stride if dense else stride * own


class BasicBlock(resnet.BasicBlock):
    """x before activation -> the block's output before activation."""

    first = staticmethod(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return y + (x if self.downsample is None else self.downsample(x))


class Bottleneck(resnet.Bottleneck):
    """x before activation -> the block's output before activation."""

    first = staticmethod(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return y + (x if self.downsample is None else self.downsample(x))


class ResNet(resnet.ResNet):
    """He et al. 2016 as torchvision has it (stride in the 3x3 convolution), under torchvision's parameter names."""

    DEPTHS = {  # noqa: RUF012
        "resnet18": (BasicBlock, [2, 2, 2, 2]),
        "resnet34": (BasicBlock, [3, 4, 6, 3]),
        "resnet50": (Bottleneck, [3, 4, 6, 3]),
        "resnet101": (Bottleneck, [3, 4, 23, 3]),
    }

    nonnegative, activated = True, False
    layers = {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"}  # noqa: RUF012

    def __init__(self, name: str, output_stride: int, dilation: str = "rest", activation: str = "relu") -> None:
        super().__init__(*self.DEPTHS[name])
        del self.avgpool, self.fc
        self.last: Callable[[Tensor], Tensor] = F.relu
        if activation == "leaky":
            self.last, self.nonnegative = LEAKY, False
            for block in (m for m in self.modules() if isinstance(m, (BasicBlock, Bottleneck))):
                block.first, block.relu = LEAKY, nn.LeakyReLU(SLOPE, inplace=True)
        blocks = (b for layer in (self.layer1, self.layer2, self.layer3, self.layer4) for b in layer)
        set_output_stride(blocks, output_stride, before=4, dilation_of=dilation)

    def forward(self, x: Tensor) -> Encoded:
        x = self.maxpool(self.bn1(self.conv1(x)))  # the first block activates: maximum and activation commute
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return self.last(x), tuple(stages)


class Tiny(nn.Module):
    """For the drawn shapes: stride 4, D = 64 after ReLU; a convolution and three residual blocks of basic type."""

    nonnegative, activated = True, False
    layers = {"stem": r"^stem", "blocks": r"^layer(\d+)"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12))
        self.layer1 = _tiny_block(12, 24)
        self.layer2 = _tiny_block(24, 48, stride=2)
        self.layer3 = _tiny_block(48, 64, dilation=2)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet

    def forward(self, x: Tensor) -> Encoded:
        stages = [self.stem(x)]
        for layer in (self.layer1, self.layer2, self.layer3):
            stages.append(layer(stages[-1]))
        return F.relu(stages[-1]), tuple(stages)


def _tiny_block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> BasicBlock:
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    block = BasicBlock(inputs, outputs, stride, shortcut)
    for conv in (block.conv1, block.conv2):
        conv.dilation = conv.padding = (dilation, dilation)
    return block
