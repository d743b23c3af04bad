"""The supernet of a space of blocks, and its stand-alone networks.

Source: Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021 (the
network); Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV
2020 (weights that single paths train).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.layers.blocks import conv, initialise
from model.layers.depthwise import DepthwiseConv
from model.spaces.nasbench_macro.space import BlockSpace, Layer
from model.spaces.paths import PathNetwork, PathSupernet, Shares, mixture


class Bottleneck(nn.Module):
    """Inverted bottleneck with ReLU (Sandler et al., CVPR 2018); a residual where shapes agree.

    y = x + project(depthwise(expand(x))), each part with a batch norm
    """

    def __init__(self, in_channels: int, layer: Layer, channels: int, expansion: int, kernel: int):
        super().__init__()
        middle = expansion * in_channels
        self.expand, self.expand_bn = conv(in_channels, middle), nn.BatchNorm2d(middle)
        self.depthwise = DepthwiseConv(middle, kernel, layer.stride)
        self.depthwise_bn = nn.BatchNorm2d(middle)
        self.project, self.project_bn = conv(middle, channels), nn.BatchNorm2d(channels)
        self.residual = layer.stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_bn(self.expand(x)).relu()
        y = self.depthwise_bn(self.depthwise(y)).relu()
        y = self.project_bn(self.project(y))
        return x + y if self.residual else y


class Shortcut(nn.Module):
    """Identity where the shape changes: a 1x1 convolution of the layer's stride and a batch norm.

    Only the pixels that a stride leaves are convolved, which is the same. PyTorch 2.14 corrupts
    memory in the gradient of 1x1 convolutions with a stride and few channels (2 to 3 at 8x8, an
    AMD CPU, channels last).
    """

    def __init__(self, in_channels: int, layer: Layer, channels: int):
        super().__init__()
        self.stride = layer.stride
        self.conv, self.bn = conv(in_channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :, :: self.stride, :: self.stride]))


class ChoiceLayer(nn.Module):
    """The candidates of a layer that it has weights for: those `offered`, and identity."""

    def __init__(
        self,
        space: BlockSpace,
        layer: Layer,
        channels: tuple[int, int],
        offered: Sequence[str],
        identity: bool,
    ):
        super().__init__()
        self.names, (before, after) = space.names, channels
        pairs = zip(space.names, space.blocks, strict=True)
        self.blocks = nn.ModuleDict(
            {
                name: Bottleneck(before, layer, after, *pair)
                for name, pair in pairs
                if name in offered
            }
        )
        shortcut = layer.is_first and identity
        self.identity = Shortcut(before, layer, after) if shortcut else nn.Identity()

    def forward(self, x: Tensor, shares: list[float | Tensor]) -> Tensor:
        """`shares [K]`: how much each candidate counts, identity last."""
        options = {**self.blocks, "identity": self.identity}
        return mixture(x, shares, (*self.names, "identity"), options.__getitem__)


class _Blocks(nn.Module):
    """Stem, layers, head, classifier; `width` is a factor of all channels but the classes.

    `offered` are the candidate blocks that each layer has; a layer without any is identity.
    """

    def __init__(
        self,
        space: BlockSpace,
        offered: Sequence[Sequence[str]],
        rng: torch.Generator | None = None,
        width: float = 1.0,
    ):
        super().__init__()
        self.space, self.width = space, width
        stem, head = scaled(space.stem_channels, width), scaled(space.head_channels, width)
        self.first = nn.Sequential(conv(3, stem, 3, space.stem_stride), nn.BatchNorm2d(stem))
        self.layers = nn.ModuleList()
        for layer, names in zip(space.layers, offered, strict=True):
            channels = (scaled(layer.in_channels, width), scaled(layer.out_channels, width))
            identity = self.always_identity or not names
            self.layers.append(ChoiceLayer(space, layer, channels, names, identity))
        self.head, self.head_bn = conv(channels[1], head), nn.BatchNorm2d(head)
        self.classifier = nn.Linear(head, space.classes)
        initialise(self, rng or torch.Generator().manual_seed(0))

    always_identity = False

    def stem(self, images: Tensor) -> Tensor:
        """Features `[B, channels, H, W]` that all paths share."""
        return self.first(images).relu()

    def mix(self, features: Tensor, shares: Shares) -> Tensor:
        """Logits from the features of `stem`."""
        for layer, (row,) in zip(self.layers, shares, strict=True):
            features = layer(features, row)
        features = self.head_bn(self.head(features)).relu()
        return self.classifier(features.mean(dim=(2, 3)))


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class BlockNetwork(PathNetwork, _Blocks):
    """`network(images [B, 3, H, W]) -> logits [B, classes]` of one architecture."""


class BlockSupernet(_Blocks, PathSupernet):
    """`supernet(images [B, 3, H, W], path [L, 1, K]) -> logits [B, classes]` of a hard path.

    Args:
        width: it may be narrower than the network of `space`, of which the costs are.
        image_size: that of the images it is trained on.
        affine: whether its batch norms learn scales and shifts; without, these stay 1 and 0.
    """

    network_type = BlockNetwork
    always_identity = True

    def __init__(
        self,
        space: BlockSpace,
        rng: torch.Generator | None = None,
        width: float = 1.0,
        image_size: int | None = None,
        affine: bool = True,
    ):
        super().__init__(space, len(space.layers) * [space.names], rng, width)
        self.image_size = image_size or space.image_size
        if not affine:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)

    def extract(self, path: Tensor, **options) -> BlockNetwork:
        return super().extract(path, width=self.width, **options)
