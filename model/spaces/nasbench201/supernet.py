"""The supernet of the NAS-Bench-201 cells, and their stand-alone networks.

Axes: B batch, L edges, K operations. Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of
Reproducible Neural Architecture Search", ICLR 2020 (the network around the cells).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.blocks import conv, initialise
from model.spaces.nasbench201.space import CONV_1X1, CONV_3X3, EDGES, NODES, OPERATIONS, CellSpace
from model.spaces.paths import PathNetwork, PathSupernet, Shares, mixture

CONVOLUTIONS = {CONV_1X1: 1, CONV_3X3: 3}


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.relu()))


def average_pool(x: Tensor) -> Tensor:
    """3x3 with stride 1; pixels outside the map do not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


FIXED = {"skip_connect": nn.Identity(), "avg_pool_3x3": average_pool}  # without weights


class Cell(nn.Module):
    """Four nodes: the input, and three sums of what comes over their edges from nodes before them.

    `offered` names the operations that each edge has weights for.
    """

    def __init__(self, channels: int, offered: Sequence[tuple[str, ...]]):
        super().__init__()
        self.edges = nn.ModuleList()
        for names in offered:
            used = [(name, k) for name, k in CONVOLUTIONS.items() if name in names]
            convolutions = {name: ReLUConvBN(channels, channels, k) for name, k in used}
            self.edges.append(nn.ModuleDict(convolutions))

    def forward(self, x: Tensor, shares: list[list[float | Tensor]]) -> Tensor:
        """`shares [L][K]`: how much each operation counts on each edge, 1 or 0 on a hard path."""
        nodes = [x]
        for node in range(1, NODES):
            over = [
                self._edge(convolutions, nodes[source], share)
                for (to, source), convolutions, share in zip(EDGES, self.edges, shares, strict=True)
                if to == node
            ]
            over = [y for y in over if y is not None]
            nodes.append(sum(over[1:], over[0]) if over else torch.zeros_like(x))
        return nodes[-1]

    @staticmethod
    def _edge(convolutions: nn.ModuleDict, x: Tensor, row: list[float | Tensor]) -> Tensor | None:
        return mixture(x, row, OPERATIONS, lambda name: FIXED.get(name) or convolutions[name])


class Reduction(nn.Module):
    """The residual block between two stages: half the size, twice the channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, 3, stride=2)
        self.conv_b = ReLUConvBN(out_channels, out_channels, 3)
        self.shortcut = conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 2, stride=2, ceil_mode=True)
        return self.shortcut(pooled) + self.conv_b(self.conv_a(x))


class _CellStack(nn.Module):
    """Stem, three stages of `cells` cells with reductions between them, classifier.

    `channels` are those of the first stage. Without them and `cells`, it is the network of `space`.
    """

    def __init__(
        self,
        space: CellSpace,
        offered: Sequence[tuple[str, ...]],
        rng: torch.Generator | None = None,
        cells: int | None = None,
        channels: int | None = None,
    ):
        super().__init__()
        self.space, self.cells = space, cells or space.cells
        self.channels = channels or space.channels
        widths = [self.channels << stage for stage in range(3)]
        self.first = nn.Sequential(conv(3, widths[0], 3), nn.BatchNorm2d(widths[0]))
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(C, offered) for _ in range(self.cells)) for C in widths
        )
        self.reductions = nn.ModuleList(
            [Reduction(widths[0], widths[1]), Reduction(widths[1], widths[2])]
        )
        self.last_bn = nn.BatchNorm2d(widths[2])
        self.classifier = nn.Linear(widths[2], space.classes)
        initialise(self, rng or torch.Generator().manual_seed(0))

    def stem(self, images: Tensor) -> Tensor:
        """Features `[B, channels, H, W]` that all paths share."""
        return self.first(images)

    def blocks(self) -> list[nn.Module]:
        """Stem, cells and reductions in the order of a forward pass."""
        (a, b, c), (ab, bc) = self.stages, self.reductions
        return [self.first, *a, ab, *b, bc, *c]

    def mix(self, features: Tensor, shares: Shares) -> Tensor:
        """Logits from the features of `stem`."""
        shares = [row for (row,) in shares]
        for block in self.blocks()[1:]:
            features = block(features, shares) if isinstance(block, Cell) else block(features)
        return self.classifier(self.last_bn(features).relu().mean(dim=(2, 3)))


class CellNetwork(PathNetwork, _CellStack):
    """`network(images [B, 3, H, W]) -> logits [B, classes]` of one architecture."""


class CellSupernet(_CellStack, PathSupernet):
    """`supernet(images [B, 3, H, W], path [L, 1, K]) -> logits [B, classes]` of a hard path.

    `cells` in each stage, and `channels`, may be fewer than those of `space`, of which the costs
    are; `image_size` is that of the images it is trained on.
    """

    network_type = CellNetwork

    def __init__(
        self,
        space: CellSpace,
        rng: torch.Generator | None = None,
        cells: int | None = None,
        image_size: int = 32,
        channels: int | None = None,
    ):
        super().__init__(space, len(EDGES) * [OPERATIONS], rng, cells, channels)
        self.image_size = image_size

    def extract(self, path: Tensor, **options) -> CellNetwork:
        return super().extract(path, cells=self.cells, channels=self.channels, **options)
