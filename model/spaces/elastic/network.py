"""The stand-alone network of an elastic architecture: a MobileNetV3 under the key names of
once-for-all checkpoints.

`net.config` is the published description of such a network; both published spellings are read, the
older one is written. Source: Howard et al., "Searching for MobileNetV3", ICCV 2019; Lu et al.,
"NSGANetV2", ECCV 2020.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from model.layers.blocks import conv, initialise, new_classifier
from model.layers.depthwise import DepthwiseConv
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace, Layer, make_divisible

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, None: nn.Identity}


class ConvNorm(nn.Module):
    """A convolution, its batch norm and an activation."""

    def __init__(self, convolution: nn.Conv2d, activation: str | None):
        super().__init__()
        self.conv = convolution
        self.bn = nn.BatchNorm2d(convolution.out_channels)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


def squeeze_excite_width(channels: int) -> int:
    return make_divisible(channels // 4)


def squeeze_excite(channels: int) -> nn.ModuleDict:
    """The two layers of a squeeze-excite gate; see `gated`."""
    inner = squeeze_excite_width(channels)
    fc = nn.ModuleDict(
        {"reduce": nn.Conv2d(channels, inner, 1), "expand": nn.Conv2d(inner, channels, 1)}
    )
    return nn.ModuleDict({"fc": fc})


def gated(
    x: Tensor, reduced: Tensor, reduced_bias: Tensor, expanded: Tensor, expanded_bias: Tensor
) -> Tensor:
    """Squeeze-excite: `x [B, C, H, W]` times a gate per channel, by weights `[C / 4, C]` and `[C, C
    / 4]`.
    """
    inner = nn.functional.linear(x.mean(dim=(2, 3)), reduced, reduced_bias).relu()
    return (
        x
        * nn.functional.hardsigmoid(nn.functional.linear(inner, expanded, expanded_bias))[
            :, :, None, None
        ]
    )


class DepthConv(ConvNorm):
    """The depthwise convolution of a layer, with squeeze-excite behind it when the layer has it."""

    def __init__(self, layer: Layer):
        super().__init__(DepthwiseConv(layer.middle, layer.kernel, layer.stride), layer.activation)
        if layer.se:
            self.se = squeeze_excite(layer.middle)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if not hasattr(self, "se"):
            return x
        reduce, expand = self.se["fc"]["reduce"], self.se["fc"]["expand"]
        return gated(
            x, reduce.weight.flatten(1), reduce.bias, expand.weight.flatten(1), expand.bias
        )


class Block(nn.Module):
    """An inverted bottleneck with its residual; one of expansion ratio 1 has no expanding
    convolution.
    """

    def __init__(self, layer: Layer, drop_path: float = 0.0):
        super().__init__()
        parts = {
            "depth_conv": DepthConv(layer),
            "point_linear": ConvNorm(conv(layer.middle, layer.out_channels), None),
        }
        if layer.expansion > 1:
            expand = ConvNorm(conv(layer.in_channels, layer.middle), layer.activation)
            parts = {"inverted_bottleneck": expand, **parts}
        self.mobile_inverted_conv = nn.ModuleDict(parts)
        self.residual = layer.residual
        self.drop_path = (
            StochasticDepth(drop_path, mode="row")
            if layer.residual and drop_path
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in self.mobile_inverted_conv.values():
            y = part(y)
        return x + self.drop_path(y) if self.residual else y


class MobileNetV3(nn.Module):
    """`network(images [B, 3, r, r]) -> logits [B, classes]`.

    `layers` are all inverted bottlenecks, the first, fixed one included. `dropout` acts before the
    classifier; `drop_path` is the rate that the last block would have, and falls linearly to 0 at
    the first.
    """

    def __init__(
        self,
        stem_channels: int,
        stem_stride: int,
        layers: Sequence[Layer],
        head_channels: tuple[int, int],
        classes: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.layers, self.head_channels = tuple(layers), head_channels
        wide, last = head_channels
        self.first_conv = ConvNorm(conv(3, stem_channels, 3, stem_stride), "h_swish")
        self.blocks = nn.Sequential(
            *(Block(layer, drop_path * index / len(layers)) for index, layer in enumerate(layers))
        )
        self.final_expand_layer = ConvNorm(conv(layers[-1].out_channels, wide), "h_swish")
        self.feature_mix_layer = nn.ModuleDict({"conv": conv(wide, last)})
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.ModuleDict({"linear": nn.Linear(last, classes)})
        initialise(self, rng or torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, space: ElasticSpace, architecture: ElasticArchitecture, **options) -> "MobileNetV3":
        """The network of an architecture, with weights of its own; `options` are dropout,
        drop_path, rng.
        """
        layers = [first_layer(space), *space.layers(architecture)]
        return cls(
            space.channels[0],
            space.stem_stride,
            layers,
            space.head_channels,
            space.classes,
            **options,
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.final_expand_layer(self.blocks(self.first_conv(images)))
        x = self.feature_mix_layer["conv"](x.mean(dim=(2, 3), keepdim=True))
        return self.classifier["linear"](self.dropout(nn.functional.hardswish(x).flatten(1)))

    def reset_classifier(self, classes: int, rng: torch.Generator) -> None:
        """A new classifier at random, N(0, 0.01), for `classes`."""
        self.classifier["linear"] = new_classifier(self.classifier["linear"], classes, rng)


def first_layer(space: ElasticSpace) -> Layer:
    """The fixed block behind the stem."""
    return Layer(space.channels[0], space.channels[0], 3, 1, 1, "relu", False)
