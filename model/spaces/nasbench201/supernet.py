"""The supernet of the NAS-Bench-201 cells, and their stand-alone networks.

Axes: B batch, L edges, K operations. Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of
Reproducible Neural Architecture Search", ICLR 2020 (the network around the cells).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.costs.lookup_table import NEGLIGIBLE
from model.layers.blocks import conv, initialise, new_classifier
from model.spaces.nasbench201.space import CONV_1X1, CONV_3X3, EDGES, NODES, OPERATIONS, CellSpace
from model.spaces.paths import Architecture, PathSupernet, hard_rows

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


class Cell(nn.Module):
    """Four nodes: the input, and three sums of what comes over their edges from nodes before them.

    `offered` names the operations that each edge has weights for.
    """

    def __init__(self, channels: int, offered: list[tuple[str, ...]]):
        super().__init__()
        self.edges = nn.ModuleList()
        for names in offered:
            convolutions = {name: k for name, k in CONVOLUTIONS.items() if name in names}
            self.edges.append(
                nn.ModuleDict(
                    {name: ReLUConvBN(channels, channels, k) for name, k in convolutions.items()}
                )
            )

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
    def _edge(convolutions: nn.ModuleDict, x: Tensor, shares: list) -> Tensor | None:
        skip, pool, *of_convolutions, _ = shares
        parts = [(x, skip)] if _counts(skip) else []
        parts += [(average_pool(x), pool)] if _counts(pool) else []
        named = zip(CONVOLUTIONS, of_convolutions, strict=True)
        parts += [(convolutions[name](x), share) for name, share in named if _counts(share)]
        shared = [y if isinstance(share, float) and share == 1 else share * y for y, share in parts]
        return sum(shared) if shared else None


def _counts(share: float | Tensor) -> bool:
    """Whether an operation must be computed: a share that learns may have to grow from nothing."""
    return isinstance(share, Tensor) or share > NEGLIGIBLE


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
    """Stem, three stages of `cells` cells with reductions between them, classifier."""

    def __init__(
        self,
        space: CellSpace,
        cells: int,
        offered: list[tuple[str, ...]],
        rng: torch.Generator | None,
    ):
        super().__init__()
        self.space, self.cells = space, cells
        widths = [space.channels << stage for stage in range(3)]
        self.first = nn.Sequential(conv(3, widths[0], 3), nn.BatchNorm2d(widths[0]))
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(C, offered) for _ in range(cells)) for C in widths
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

    def through(self, features: Tensor, shares: list[list[float | Tensor]]) -> Tensor:
        """Logits from the features of `stem`, with `shares [L][K]` of the operations."""
        for index, stage in enumerate(self.stages):
            for cell in stage:
                features = cell(features, shares)
            if index < len(self.reductions):
                features = self.reductions[index](features)
        return self.classifier(self.last_bn(features).relu().mean(dim=(2, 3)))


class CellSupernet(_CellStack, PathSupernet):
    """`supernet(images [B, 3, H, W], path [L, 1, K]) -> logits [B, classes]` of a hard path.

    `cells` in each stage may be fewer than those of `space`, of which the costs are; `image_size`
    is that of the images it is trained on.
    """

    def __init__(
        self,
        space: CellSpace,
        rng: torch.Generator | None = None,
        cells: int = 1,
        image_size: int = 32,
    ):
        super().__init__(space, cells, len(EDGES) * [OPERATIONS], rng)
        self.image_size = image_size

    def classify(self, features: Tensor, path: Tensor) -> Tensor:
        return self.through(features, [blocks[0] for blocks in hard_rows(path)])

    @torch.no_grad()
    def extract(self, path: Tensor) -> "CellNetwork":
        """The stand-alone network of a hard path with inherited weights.

        It equals the supernet in evaluation mode.
        """
        network = CellNetwork(self.space, self.space.decode(path), self.cells)
        network, ours = network.to(self.classifier.weight.device), self.state_dict()
        network.load_state_dict({key: ours[key] for key in network.state_dict()})
        return network.train(self.training)


class CellNetwork(_CellStack):
    """`network(images [B, 3, H, W]) -> logits [B, classes]` of one architecture."""

    def __init__(
        self,
        space: CellSpace,
        architecture: Architecture,
        cells: int | None = None,
        rng: torch.Generator | None = None,
    ):
        super().__init__(space, cells or space.cells, list(architecture.kernels), rng)
        self.shares = space.encode(architecture)[:, 0].tolist()

    def forward(self, images: Tensor) -> Tensor:
        return self.through(self.stem(images), self.shares)

    def reset_classifier(self, classes: int, rng: torch.Generator) -> None:
        """A new classifier at random, N(0, 0.01), for `classes`."""
        self.classifier = new_classifier(self.classifier, classes, rng)


class SoftCellSupernet(nn.Module):
    """`soft(images, path) -> logits`: the supernet, differentiable in the path alone.

    Each batch is normalised by its own statistics. The running ones are those of all paths
    together, with which a single path scores unlike it does once its batch norms are re-estimated:
    here that gap would be what is learned.
    """

    def __init__(self, supernet: CellSupernet):
        super().__init__()
        assert not supernet.training, "soft paths run in evaluation mode: call eval() first"
        self.space = supernet.space
        self.supernet = copy.deepcopy(supernet).requires_grad_(False).train()
        for module in self.supernet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0  # nothing is learned of the batches

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        rows = path[:, 0]
        shares = [list(row) for row in rows] if path.requires_grad else rows.tolist()
        return self.supernet.through(self.supernet.stem(images), shares)
