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
from model.spaces.unified.space import Architecture

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
    """Four nodes, each the sum of what comes over its edges from the nodes before; the first is the
    input.

    `offered` names the operations that each edge has weights for.
    """

    def __init__(self, channels: int, offered: list[tuple[str, ...]]):
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleDict({
                name: ReLUConvBN(channels, channels, kernel) for name, kernel in CONVOLUTIONS.items() if name in names
            })
            for names in offered
        )  # fmt: skip

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
        return (
            sum(y if isinstance(share, float) else share * y for y, share in parts)
            if parts
            else None
        )


def _counts(share: float | Tensor) -> bool:
    """Whether an operation must be computed: also one that has no share yet, but is to learn
    whether it should.
    """
    return (isinstance(share, Tensor) and share.requires_grad) or bool(share > NEGLIGIBLE)


class Reduction(nn.Module):
    """The residual block between two stages: half the size, twice the channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, 3, stride=2)
        self.conv_b = ReLUConvBN(out_channels, out_channels, 3)
        self.shortcut = conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(F.avg_pool2d(x, 2, stride=2, ceil_mode=True)) + self.conv_b(
            self.conv_a(x)
        )


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

    def classify(self, features: Tensor, path: Tensor) -> Tensor:
        """Logits `[B, classes]` of a path `[L, 1, K]` from the features of `stem`."""
        rows = path[:, 0]
        hard = not path.requires_grad and bool(((path == 0) | (path == 1)).all())
        return self.through(features, rows.tolist() if hard else [list(row) for row in rows])

    def through(self, features: Tensor, shares: list[list[float | Tensor]]) -> Tensor:
        """As `classify`, with `shares [L][K]` of the operations, as cells take them."""
        for index, stage in enumerate(self.stages):
            for cell in stage:
                features = cell(features, shares)
            if index < len(self.reductions):
                features = self.reductions[index](features)
        return self.classifier(self.last_bn(features).relu().mean(dim=(2, 3)))


class CellSupernet(_CellStack):
    """`supernet(images [B, 3, H, W], path [L, 1, K]) -> logits [B, classes]`, for hard and for soft
    paths.

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

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        return self.classify(self.stem(images), path)

    def frozen(self) -> "SoftCellSupernet":
        """This supernet as it is now, for soft paths; it must be in evaluation mode."""
        assert not self.training, "soft paths run in evaluation mode: call eval() first"
        return SoftCellSupernet(self)

    @torch.no_grad()
    def extract(self, path: Tensor) -> "CellNetwork":
        """The stand-alone network of a one-hot path with inherited weights; in evaluation mode
        equal to it.
        """
        network = CellNetwork(self.space, self.space.decode(path), self.cells).to(
            self.classifier.weight.device
        )
        ours = self.state_dict()
        network.load_state_dict({key: ours[key] for key in network.state_dict()})
        return network.train(self.training)


class CellNetwork(_CellStack):
    """`network(images [B, 3, H, W]) -> logits [B, classes]`: an architecture with the weights it
    needs.
    """

    def __init__(
        self,
        space: CellSpace,
        architecture: Architecture,
        cells: int | None = None,
        rng: torch.Generator | None = None,
    ):
        offered = [
            tuple(choice for choice in row if choice is not None) for row in architecture.choices
        ]
        super().__init__(space, cells or space.cells, offered, rng)
        self.shares = space.encode(architecture)[:, 0].tolist()

    def forward(self, images: Tensor) -> Tensor:
        return self.through(self.stem(images), self.shares)

    def reset_classifier(self, classes: int, rng: torch.Generator) -> None:
        """A new classifier at random, N(0, 0.01), for `classes`."""
        self.classifier = new_classifier(self.classifier, classes, rng)


class SoftCellSupernet(nn.Module):
    """The supernet for soft paths, differentiable in the path alone.

    Each batch is normalised by its own statistics. The running ones are those of all paths
    together, with which a single path scores unlike it does once its batch norms are re-estimated:
    here that gap would be what is learnt.
    """

    def __init__(self, supernet: CellSupernet):
        super().__init__()
        self.space = supernet.space
        self.supernet = copy.deepcopy(supernet).requires_grad_(False).train()
        for norm in (
            module for module in self.supernet.modules() if isinstance(module, nn.BatchNorm2d)
        ):
            norm.momentum = 0.0  # nothing is learnt of the batches

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        return self.supernet(images, path)
