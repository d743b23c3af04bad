"""The elastic space of NSGANetV2: depth, width, kernel, resolution of a once-for-all MobileNetV3.

An architecture is a row of integers, its *genes*: per stage the index of its depth, then those of
the kernel and of the expansion ratio of each layer it could have, and at the end that of the
resolution. Genes of layers that the depth leaves out are not expressed; they are 0 in canonical
genes. Costs are closed forms over many rows at once.

Axes: N architectures, G genes, S stages, D the greatest depth. Source: Cai et al., "Once-for-All",
ICLR 2020; Lu et al., "NSGANetV2", ECCV 2020, section 3.1.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.ranges import (
    Channels,
    Classes,
    Depth,
    Expansion,
    KernelSize,
    Pixels,
    Ranged,
    Stride,
    Width,
    check_parameters,
    within,
)

Genes = NDArray[np.int64]
MOST_STAGES = "at least 1 and at most 64"


@dataclass(frozen=True)
class ElasticArchitecture:
    """Kernel sizes and expansion ratios of all layers; depths of the stages; resolution."""

    ks: tuple[int, ...]
    e: tuple[int, ...]
    d: tuple[int, ...]
    r: int

    def to_json(self) -> dict:
        """The published `net.subnet` record."""
        return {"ks": list(self.ks), "e": list(self.e), "d": list(self.d), "r": self.r}


@dataclass(frozen=True)
class Layer:
    """One layer of a stand-alone network: an inverted bottleneck."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    expansion: int
    activation: str
    se: bool
    fixed_middle: int | None = None

    @property
    def middle(self) -> int:
        """Channels inside: by the expansion ratio, unless `fixed_middle` says."""
        return self.fixed_middle or _middle(self.in_channels, self.expansion)

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True)
class ElasticSpace(Ranged):
    """Base widths (times `width`, to multiples of 8) of stem, stages and head, and what may vary.

    The defaults are the published space for ImageNet.
    """

    kind: ClassVar[str] = "elastic"
    what = "space: "

    stem_channels: Channels = 16
    stages: tuple[Channels, ...] = (24, 40, 80, 112, 160)
    strides: tuple[Stride, ...] = (2, 2, 2, 1, 2)
    activations: tuple[str, ...] = ("relu", "relu", "h_swish", "h_swish", "h_swish")
    se: tuple[bool, ...] = (False, True, False, True, True)
    head: tuple[Channels, Channels] = (960, 1280)
    stem_stride: Stride = 2
    kernels: tuple[KernelSize, ...] = (3, 5, 7)
    expansions: tuple[Expansion, ...] = (3, 4, 6)
    depths: tuple[Depth, ...] = (2, 3, 4)
    resolutions: tuple[Pixels, ...] = tuple(range(192, 257, 4))
    width: Width = 1.0
    classes: Classes = 1000

    def __post_init__(self):
        super().__post_init__()
        for name in ("strides", "activations", "se"):
            if len(getattr(self, name)) != len(self.stages):
                raise UserError(
                    f"space: {name} has {len(getattr(self, name))} entries for "
                    f"{len(self.stages)} stages"
                )
        for name in ("kernels", "expansions", "depths", "resolutions"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise UserError(
                    f"space: {name} are {list(values)}; they must be positive and ascend"
                )
        if not within(len(self.stages), MOST_STAGES):
            raise UserError(f"space: it has {len(self.stages)} stages; it must be {MOST_STAGES}")
        if not {"relu", "relu6", "h_swish"}.issuperset(self.activations):
            raise UserError(
                f"space: activations are {list(self.activations)}; allowed are relu, relu6, h_swish"
            )
        if self.expansions[0] < 2:
            raise UserError(f"space: expansions are {list(self.expansions)}; the least is 2")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UserError(f"space: kernels are {list(self.kernels)}; they must be odd")
        for channels in (*self.channels, *self.head_channels):
            if not within(channels, Channels.__metadata__[0]):
                allowed = Channels.__metadata__[0]
                raise UserError(f"space: at this width it has {channels} channels, not {allowed}")
        check_parameters(self.costs(self.extremes()[1:])[1][0])

    # -- widths ------------------------------------------------------------------------------------

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Output channels of stem and stages `[1 + S]`."""
        return tuple(
            make_divisible(base * self.width) for base in (self.stem_channels, *self.stages)
        )

    @cached_property
    def head_channels(self) -> tuple[int, int]:
        return make_divisible(self.head[0] * self.width), make_divisible(self.head[1] * self.width)

    def layer(self, stage: int, position: int, kernel: int, expansion: int) -> Layer:
        """A layer of a stage; its first one takes the stride and the channels from before."""
        before, out = self.channels[stage], self.channels[stage + 1]
        stride = 1 if position else self.strides[stage]
        activation, se = self.activations[stage], self.se[stage]
        return Layer(out if position else before, out, kernel, stride, expansion, activation, se)

    def layers(self, architecture: ElasticArchitecture) -> list[Layer]:
        """The searched layers of a stand-alone network, in order."""
        positions = [
            (stage, position)
            for stage, depth in enumerate(architecture.d)
            for position in range(depth)
        ]
        layers = zip(positions, architecture.ks, architecture.e, strict=True)
        return [self.layer(*position, kernel, expansion) for position, kernel, expansion in layers]

    # -- genes -------------------------------------------------------------------------------------

    @property
    def most_layers(self) -> int:
        """D: layers of the deepest stage."""
        return self.depths[-1]

    @cached_property
    def largest_genes(self) -> Genes:
        """The greatest value of each gene `[G]`; the least is 0."""
        D = self.most_layers
        depth, kernel, expansion = len(self.depths), len(self.kernels), len(self.expansions)
        stage = [depth - 1] + D * [kernel - 1] + D * [expansion - 1]
        return np.array(len(self.stages) * stage + [len(self.resolutions) - 1])

    @cached_property
    def _expressed_at(self) -> NDArray[np.bool_]:
        """`[depths, 1 + 2 D]`: which genes of a stage count at a depth."""
        layers = np.arange(self.most_layers) < np.array(self.depths)[:, None]
        return np.concatenate([np.ones((len(self.depths), 1), dtype=bool), layers, layers], axis=1)

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        """`[N, G]`: which genes count; not those of layers that the depth leaves out."""
        of_stages = self._expressed_at[self._stages(genes)[:, :, 0]].reshape(genes[:, :-1].shape)
        return np.concatenate([of_stages, np.ones((len(genes), 1), dtype=bool)], axis=1)

    def canonical(self, genes: Genes) -> Genes:
        """`[N, G]` with 0 for all genes that are not expressed."""
        return genes * self.expressed(genes)

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        """Canonical genes `[count, G]` of random architectures: every gene uniform."""
        return self.canonical(
            rng.integers(0, self.largest_genes + 1, size=(count, len(self.largest_genes)))
        )

    def extremes(self) -> Genes:
        """The smallest and the largest architecture `[2, G]`."""
        return self.canonical(np.stack([np.zeros_like(self.largest_genes), self.largest_genes]))

    def encode(self, architecture: ElasticArchitecture) -> list[int]:
        """Canonical genes `[G]`; UserError when the architecture is not of this space."""
        genes, first = [], 0
        try:
            if len(architecture.d) != len(self.stages):
                raise ValueError(f"it has {len(architecture.d)} stages")
            for depth in architecture.d:
                padding = (self.most_layers - depth) * [0]
                layers = slice(first, first + depth)
                genes.append(self.depths.index(depth))
                genes += [self.kernels.index(k) for k in architecture.ks[layers]] + padding
                genes += [self.expansions.index(e) for e in architecture.e[layers]] + padding
                first += depth
            if not first == len(architecture.ks) == len(architecture.e):
                lengths = f"{len(architecture.ks)} kernels, {len(architecture.e)} ratios"
                raise ValueError(f"{first} layers have {lengths}")
            return [*genes, self.resolutions.index(architecture.r)]
        except ValueError as error:
            raise UserError(f"architecture: not one of this space ({error})") from None

    def decode(self, genes) -> ElasticArchitecture:
        """The architecture of one row of genes `[G]`, canonical or not."""
        genes = np.asarray(genes, dtype=np.int64)
        ks, es, ds = [], [], []
        for stage in self._stages(genes[None])[0].tolist():
            depth = self.depths[stage[0]]
            ds.append(depth)
            ks += [self.kernels[i] for i in stage[1 : 1 + depth]]
            es += [self.expansions[i] for i in stage[1 + self.most_layers :][:depth]]
        return ElasticArchitecture(tuple(ks), tuple(es), tuple(ds), self.resolutions[genes[-1]])

    def _stages(self, genes: Genes) -> Genes:
        """`[N, G]` as `[N, S, 1 + 2 D]`, without the resolution."""
        return genes[:, :-1].reshape(len(genes), len(self.stages), 1 + 2 * self.most_layers)

    # -- costs -------------------------------------------------------------------------------------

    def costs(self, genes: Genes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Multiply-adds and parameters `[N]` of stand-alone networks at their resolutions.

        Counted as published: convolutions, linear layers, one multiplication for each number that
        an h-swish or a squeeze-excite gate scales, and the means of pools; batch norms count no
        multiply-adds.
        """
        size = -(-np.array(self.resolutions)[genes[:, -1]] // self.stem_stride)
        stem = self.channels[0]
        macs = size**2 * stem * (27 + 1 + 9 + stem)
        parameters = np.full(len(genes), stem * (27 + 2 + 9 + 2 + stem + 2))
        for stage, position, rows in self.positions(genes):
            there, kernel, expansion = rows
            layers = [
                [self.layer(stage, position, k, e) for e in self.expansions] for k in self.kernels
            ]
            costs = np.array([[self._layer_costs(layer) for layer in row] for row in layers])
            costs = costs[kernel, expansion] * there[:, None]
            after = -(-size // self.strides[stage]) if position == 0 else size
            times = np.stack([size**2, after**2, after, np.ones_like(size)], axis=1)
            macs = macs + (costs[:, :4] * times).sum(axis=1)
            parameters, size = parameters + costs[:, 4], after
        (wide, last), out = self.head_channels, self.channels[-1]
        macs = macs + wide * (size**2 * (out + 1) + size + 1) + last * (wide + 1 + self.classes)
        return macs, parameters + wide * (out + 2) + last * (wide + self.classes) + self.classes

    def positions(self, genes: Genes) -> Iterator[tuple[int, int, tuple[Genes, Genes, Genes]]]:
        """Each layer that can be: stage, position, and (is there, kernel, expansion), all `[N]`."""
        stages, D = self._stages(genes), self.most_layers
        for stage in range(len(self.stages)):
            depth = np.array(self.depths)[stages[:, stage, 0]]
            for position in range(D):
                there = (position < depth).astype(np.int64)
                kernel, expansion = stages[:, stage, [1 + position, 1 + D + position]].T
                yield stage, position, (there, kernel, expansion)

    @staticmethod
    def _layer_costs(layer: Layer) -> tuple[int, int, int, int, int]:
        """Multiply-adds per pixel before and after the stride, per row, and once; parameters."""
        middle, swish = layer.middle, int(layer.activation == "h_swish")
        squeezed = make_divisible(middle // 4) if layer.se else 0
        before = middle * (layer.in_channels + swish)
        after = middle * (layer.kernel**2 + swish + int(layer.se) + layer.out_channels)
        once = middle + 2 * middle * squeezed if layer.se else 0
        parameters = (
            middle * (layer.in_channels + layer.kernel**2 + layer.out_channels + 4)
            + 2 * layer.out_channels
        )
        parameters += (2 * middle + 1) * squeezed + middle if layer.se else 0
        return before, after, middle if layer.se else 0, once, parameters

    def to_dict(self) -> dict:
        """Plain values, as JSON and checkpoints hold them."""
        return json.loads(json.dumps(asdict(self)))


class ElasticTable:
    """`table(genes [N, G]) -> multiply-adds [N]` in millions, each at its own resolution."""

    unit, digest = "M", ""

    def __init__(self, space: ElasticSpace):
        self.space = space

    def __call__(self, genes: Genes) -> NDArray:
        return self.space.costs(np.asarray(genes))[0] / 1e6

    def parameters_m(self, genes: Genes) -> NDArray:
        """Millions of parameters `[N]`."""
        return self.space.costs(np.asarray(genes))[1] / 1e6

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Cost in M of the smallest and of the largest architecture."""
        least, most = self(self.space.extremes()).tolist()
        return least, most


def _middle(channels: int, expansion: int) -> int:
    return channels if expansion == 1 else make_divisible(round(channels * expansion))


def make_divisible(value: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least itself, and never less than 90 % of `value`."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest
