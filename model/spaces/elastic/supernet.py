"""The elastic supernet of NSGANetV2: a once-for-all MobileNetV3 whose sub-networks share their
leading channels.

A sub-network uses the first layers of each stage, the first channels of each layer, and the middle
of each kernel, by way of a learned matrix from each kernel size to the next smaller one. Parameter
names are those of published checkpoints. Axes: B batch. Source: Cai et al., "Once-for-All", ICLR
2020, section 3; Lu et al., "NSGANetV2", ECCV 2020.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.blocks import conv, initialise
from model.layers.depthwise import DepthwiseConv, depthwise_conv
from model.spaces.contracts import Genes
from model.spaces.elastic.network import (
    ACTIVATIONS,
    Block,
    ConvNorm,
    MobileNetV3,
    first_layer,
    gated,
    squeeze_excite,
    squeeze_excite_width,
)
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace, Layer
from utils.engine import DeviceContext
from utils.loader import resize


class ElasticKernel(nn.Module):
    """Depthwise kernels of all sizes: the largest, and a matrix from each size to the next smaller
    one.
    """

    def __init__(self, channels: int, kernels: tuple[int, ...], stride: int):
        super().__init__()
        self.kernels = kernels
        for small, large in pairwise(kernels):
            self.register_parameter(f"{large}to{small}_matrix", nn.Parameter(torch.eye(small**2)))
        self.conv = DepthwiseConv(channels, kernels[-1], stride)

    def kernel(self, size: int, channels: int) -> Tensor:
        """The kernel `[channels, 1, size, size]`: cropped and transformed from size to size, the
        largest first.
        """
        weight = self.conv.weight[:channels]
        sizes = list(self.kernels)
        while sizes[-1] > size:
            large, small = sizes.pop(), sizes[-1]
            inner = slice((large - small) // 2, (large + small) // 2)
            centre = weight[:, :, inner, inner].reshape(channels, -1)
            weight = F.linear(centre, getattr(self, f"{large}to{small}_matrix")).view(
                channels, 1, small, small
            )
        return weight


class ElasticBlock(nn.Module):
    """A layer at its greatest, of which `forward` computes the part that a `Layer` describes."""

    def __init__(self, largest: Layer, kernels: tuple[int, ...]):
        super().__init__()
        middle, out = largest.middle, largest.out_channels
        depth_conv = {
            "conv": ElasticKernel(middle, kernels, largest.stride),
            "bn": _named(bn=nn.BatchNorm2d(middle)),
        }
        if largest.se:
            depth_conv["se"] = squeeze_excite(middle)
        self.mobile_inverted_conv = _named(
            inverted_bottleneck=_conv_norm(largest.in_channels, middle),
            depth_conv=nn.ModuleDict(depth_conv),
            point_linear=_conv_norm(middle, out),
        )

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        parts, act = self.mobile_inverted_conv, ACTIVATIONS[layer.activation]()
        expand, depth, project = (
            parts[name] for name in ("inverted_bottleneck", "depth_conv", "point_linear")
        )
        middle = layer.middle
        y = act(_norm(F.conv2d(x, expand["conv"]["conv"].weight[:middle]), expand["bn"]["bn"]))
        weight = depth["conv"].kernel(layer.kernel, middle)
        y = act(_norm(depthwise_conv(y, weight, layer.stride), depth["bn"]["bn"]))
        if layer.se:
            y = gated(y, *_squeeze_excite_slices(depth["se"], middle))
        y = _norm(F.conv2d(y, project["conv"]["conv"].weight[:, :middle]), project["bn"]["bn"])
        return x + y if layer.residual else y

    @torch.no_grad()
    def hand_down(self, block: Block, layer: Layer) -> None:
        """Give the stand-alone block of `layer` the weights that it has here."""
        mine, theirs, middle = self.mobile_inverted_conv, block.mobile_inverted_conv, layer.middle
        theirs["inverted_bottleneck"].conv.weight.copy_(
            mine["inverted_bottleneck"]["conv"]["conv"].weight[:middle]
        )
        theirs["depth_conv"].conv.weight.copy_(
            mine["depth_conv"]["conv"].kernel(layer.kernel, middle)
        )
        theirs["point_linear"].conv.weight.copy_(
            mine["point_linear"]["conv"]["conv"].weight[:, :middle]
        )
        for name in ("inverted_bottleneck", "depth_conv", "point_linear"):
            _copy_norm(mine[name]["bn"]["bn"], theirs[name].bn)
        if layer.se:
            fc = theirs["depth_conv"].se["fc"]
            targets = (
                fc["reduce"].weight,
                fc["reduce"].bias,
                fc["expand"].weight,
                fc["expand"].bias,
            )
            for target, part in zip(
                targets, _squeeze_excite_slices(mine["depth_conv"]["se"], middle), strict=True
            ):
                target.copy_(part.view_as(target))


def _named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def _conv_norm(in_channels: int, out_channels: int) -> nn.ModuleDict:
    return _named(
        conv=_named(conv=conv(in_channels, out_channels)),
        bn=_named(bn=nn.BatchNorm2d(out_channels)),
    )


def _norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """The first channels of a batch norm, whose running statistics move when training."""
    C = x.shape[1]
    mean, var, weight, bias = (
        part[:C] for part in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return F.batch_norm(x, mean, var, weight, bias, bn.training, bn.momentum, bn.eps)


def _copy_norm(source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        part = getattr(target, name)
        part.copy_(getattr(source, name)[: len(part)])


def _squeeze_excite_slices(se: nn.ModuleDict, channels: int) -> tuple[Tensor, ...]:
    """Weights and biases of the gate of the first `channels`, each matrix with two axes."""
    reduce, expand = se["fc"]["reduce"], se["fc"]["expand"]
    inner = squeeze_excite_width(channels)
    reduced, expanded = (
        reduce.weight[:inner, :channels].flatten(1),
        expand.weight[:channels, :inner].flatten(1),
    )
    return reduced, reduce.bias[:inner], expanded, expand.bias[:channels]


class ElasticSupernet(nn.Module):
    """`supernet(images [B, 3, r, r], architecture) -> logits [B, classes]`."""

    def __init__(self, space: ElasticSpace, rng: torch.Generator | None = None):
        super().__init__()
        self.space = space
        wide, last = space.head_channels
        k, e = space.kernels[-1], space.expansions[-1]
        places = [
            (s, position) for s in range(len(space.stages)) for position in range(space.most_layers)
        ]
        self.first_conv = ConvNorm(conv(3, space.channels[0], 3, space.stem_stride), "h_swish")
        blocks = [
            ElasticBlock(space.layer(s, position, k, e), space.kernels) for s, position in places
        ]
        self.blocks = nn.ModuleList([Block(first_layer(space)), *blocks])
        self.final_expand_layer = ConvNorm(conv(space.channels[-1], wide), "h_swish")
        self.feature_mix_layer = nn.ModuleDict({"conv": conv(wide, last)})
        self.classifier = nn.ModuleDict({"linear": nn.Linear(last, space.classes)})
        initialise(self, rng or torch.Generator().manual_seed(0))

    def forward(self, images: Tensor, architecture: ElasticArchitecture) -> Tensor:
        x = self.blocks[0](self.first_conv(images))
        for block, layer in zip(
            self._active(architecture), self.space.layers(architecture), strict=True
        ):
            x = block(x, layer)
        x = self.final_expand_layer(x).mean(dim=(2, 3), keepdim=True)
        return self.classifier["linear"](F.hardswish(self.feature_mix_layer["conv"](x)).flatten(1))

    def _active(self, architecture: ElasticArchitecture) -> list[ElasticBlock]:
        """The blocks of the first layers of each stage."""
        D = self.space.most_layers
        return [
            self.blocks[1 + stage * D + j]
            for stage, depth in enumerate(architecture.d)
            for j in range(depth)
        ]

    @torch.no_grad()
    def extract(self, architecture: ElasticArchitecture, **options) -> MobileNetV3:
        """The stand-alone network with inherited weights, which computes the same; `options` go to
        `MobileNetV3`.
        """
        network = MobileNetV3.of(self.space, architecture, **options).to(
            self.classifier["linear"].weight.device
        )
        for name in ("first_conv", "final_expand_layer", "feature_mix_layer", "classifier"):
            getattr(network, name).load_state_dict(getattr(self, name).state_dict())
        network.blocks[0].load_state_dict(self.blocks[0].state_dict())
        searched = zip(
            self._active(architecture),
            network.blocks[1:],
            self.space.layers(architecture),
            strict=True,
        )
        for mine, theirs, layer in searched:
            mine.hand_down(theirs, layer)
        return network.train(self.training)


def sandwich_choices(space: ElasticSpace, count: int, rng: torch.Generator) -> Genes:
    """The largest sub-network, the smallest and `count - 2` random ones, at one resolution."""
    draw = np.random.default_rng(rng.initial_seed())
    smallest, largest = space.extremes()
    resolution = draw.integers(len(space.resolutions))
    genes = np.stack([largest, smallest, *space.sample(max(0, count - 2), draw)])
    genes[:, -1] = resolution
    return genes


def sandwich(
    supernet: ElasticSupernet,
    choices: Genes,
    context: DeviceContext,
    images: Tensor,
    labels: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The passes of a training step by the sandwich rule; `choices` are those of one step.

    The largest sub-network learns the labels; the smallest, and random ones, its answers. Source:
    Yu and Huang, "Universally Slimmable Networks", ICCV 2019 (the sandwich rule, in-place
    distillation).
    """
    architectures, answers = [supernet.space.decode(genes) for genes in choices], None
    images = resize(images, architectures[0].r)
    for architecture in architectures:
        with context.autocast():
            logits = supernet(images, architecture)
        yield logits, (labels if answers is None else answers)
        answers = logits.detach().float().softmax(dim=1) if answers is None else answers


def from_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published once-for-all state dict, in either spelling of its keys, in the one used here."""
    newer = re.compile(r"^(blocks\.\d+)\.conv\.")
    return {newer.sub(r"\1.mobile_inverted_conv.", key): value for key, value in weights.items()}
