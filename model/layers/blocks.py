"""The building blocks of every network here, under the key names of the published weights.

Shapes: images and features are `[B, C, H, W]`; convolutions have 'same' padding and no bias.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from model.layers.depthwise import DepthwiseConv
from model.layers.pointwise import PointwiseConv
from utils.errors import UserError

ACTIVATIONS = {"relu6": nn.ReLU6, "hswish": nn.Hardswish}


def activation_layer(name: str) -> nn.Module:
    """Build the activation `name`; UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation: {name!r} is unknown; allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()  # in place, autograd would copy its input


def conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    """Build a convolution with 'same' padding and without a bias."""
    if kernel == stride == 1:
        return PointwiseConv(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class ConvBN(nn.Module):
    """Convolution, batch norm and, when given, an activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, activation=None
    ):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = activation_layer(activation) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class MixedDepthwise(nn.Module):
    """A depthwise convolution per sub-block over its own `channels`, then one norm for all."""

    def __init__(self, channels: int, kernels: Sequence[int], stride: int, activation: str):
        super().__init__()
        self.channels = channels
        self.blocks = nn.ModuleList(DepthwiseConv(channels, k, stride) for k in kernels)
        self.bn = nn.BatchNorm2d(channels * len(kernels))
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.blocks, x.split(self.channels, dim=1), strict=True)
        return self.act(self.bn(torch.cat([block(part) for block, part in pairs], dim=1)))


def squeezed_channels(channels: int) -> int:
    """The width inside a squeeze-excite over `channels`."""
    return max(1, channels // 4)


class SqueezeExcite(nn.Module):
    """Channel attention over the middle channels (Hu et al., CVPR 2018).

    y = x * hardsigmoid(excite(relu(squeeze(mean of x over the pixels))))
    """

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze_conv = nn.Conv2d(channels, squeezed_channels(channels), 1)
        self.excite_conv = nn.Conv2d(squeezed_channels(channels), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze_conv(x.mean(dim=(2, 3), keepdim=True)).relu()
        return x * nn.functional.hardsigmoid(self.excite_conv(squeezed))


class InvertedBottleneck(nn.Module):
    """MBConv (Sandler et al., CVPR 2018) with a depthwise kernel of its own per sub-block.

        y = x + project(se(depthwise(expand(x)))), each part but `se` with a batch norm

    The expansion ratio is the number of `kernels`; with one kernel there is no expand convolution.
    `drop_path` is the rate at which training leaves out all but the residual, image by image (Huang
    et al., "Deep networks with stochastic depth", ECCV 2016).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernels: Sequence[int], stride: int = 1,
        residual: bool = False, se: bool = False, activation: str = "relu6", drop_path: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        middle = in_channels * len(kernels)
        expand = len(kernels) > 1
        self.point_wise = ConvBN(in_channels, middle, activation=activation) if expand else None
        self.depthwise = MixedDepthwise(in_channels, kernels, stride, activation)
        self.se = SqueezeExcite(middle) if se else None
        self.point_wise_1 = ConvBN(middle, out_channels)
        self.residual = residual
        drops = residual and drop_path
        self.drop_path = StochasticDepth(drop_path, mode="row") if drops else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.point_wise(x) if self.point_wise is not None else x
        y = self.depthwise(y)
        if self.se is not None:
            y = self.se(y)
        y = self.point_wise_1(y)
        return x + self.drop_path(y) if self.residual else y


def head_stage(in_channels: int, out_channels: int, activation: str) -> nn.Sequential:
    """Build what comes before the global average pool: 1x1 convolution, batch norm, activation."""
    bn = nn.BatchNorm2d(out_channels)
    return nn.Sequential(conv(in_channels, out_channels), bn, activation_layer(activation))


def new_classifier(old: nn.Linear, classes: int, rng: torch.Generator) -> nn.Linear:
    """Build a random classifier to replace `old`, initialised as published."""
    linear = nn.Linear(old.in_features, classes)
    initialise(linear, rng)
    return linear.to(old.weight.device)


def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Initialise as published: convolutions N(0, 2 / (k k C_out)), linear N(0, 1e-4), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            k = part.kernel_size[0]
            part.weight.data.normal_(0, math.sqrt(2 / (k * k * part.out_channels)), generator=rng)
        elif isinstance(part, nn.Linear):
            part.weight.data.normal_(0, 0.01, generator=rng)
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None:
            part.bias.data.zero_()
