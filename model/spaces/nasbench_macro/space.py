"""A choice of block for each layer: the space of NAS-Bench-Macro, and others of its layout.

A path has the axes of `model/spaces/paths.py`: L layers, E = 1, K candidate blocks and identity,
which is the last and plays the part of skip. Identity hands on its input, or, in the first layer of
a stage, is a 1x1 convolution of the stage's stride with a batch norm. Source: Su et al.,
"Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021, section 4 and appendix.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from model.costs.lookup_table import CostTerms
from model.spaces.paths import Architecture, PathSpace
from utils.errors import UserError
from utils.ranges import Channels, Classes, Depth, Pixels, Stride


class Layer(NamedTuple):
    """What all blocks of a layer share; sizes are pixels of a side."""

    in_channels: int
    out_channels: int
    stride: int
    in_size: int
    out_size: int
    is_first: bool  # of its stage: identity is a convolution here


@dataclass(frozen=True)
class BlockSpace(PathSpace):
    """Stages of layers, each of which is one of `blocks`, (expansion ratio, kernel), or identity.

    The defaults are the 6,561 architectures of NAS-Bench-Macro, of which 3,969 differ.
    """

    kind: ClassVar[str] = "nasbench_macro"

    blocks: tuple[tuple[int, int], ...] = ((3, 3), (6, 5))
    widths: tuple[Channels, ...] = (64, 128, 256)
    depths: tuple[Depth, ...] = (2, 3, 3)
    strides: tuple[Stride, ...] = (2, 2, 2)
    stem_channels: Channels = 32
    stem_stride: Stride = 1
    head_channels: Channels = 1280
    image_size: Pixels = 32
    classes: Classes = 10

    def __post_init__(self):
        for expansion, kernel in self.blocks:
            if not (1 <= expansion <= 64 and 1 <= kernel <= 99 and kernel % 2):
                raise UserError(
                    f"space: blocks has ({expansion}, {kernel}); an expansion ratio is from 1 to "
                    "64, a kernel size odd and below 100"
                )
        super().__post_init__()
        if not self.blocks or len(set(self.blocks)) < len(self.blocks) or len(self.blocks) > 9:
            raise UserError("space: blocks must be 1 to 9 different pairs")
        lengths = {len(self.widths), len(self.depths), len(self.strides)}
        if len(lengths) > 1 or not self.widths:
            raise UserError("space: widths, depths and strides need an entry for each stage")
        self.check_parameters()

    # -- the layout ------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Of the candidate blocks, such as e3k3."""
        return tuple(f"e{expansion}k{kernel}" for expansion, kernel in self.blocks)

    @cached_property
    def mask(self) -> Tensor:
        """All is legal."""
        return torch.ones(sum(self.depths), 1, len(self.blocks) + 1, dtype=torch.bool)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in their order, as wide as the network's."""
        found, channels, size = [], self.stem_channels, -(-self.image_size // self.stem_stride)
        for width, depth, stride in zip(self.widths, self.depths, self.strides, strict=True):
            for index in range(depth):
                step = stride if index == 0 else 1
                found.append(Layer(channels, width, step, size, -(-size // step), index == 0))
                channels, size = width, -(-size // step)
        return tuple(found)

    # -- one path for each network ---------------------------------------------------------------

    def canonical(self, index: Tensor) -> Tensor:
        """The numbers of choices `[N, L]` of the same networks with identities last in each stage.

        Behind the first layer of a stage identities hand on their input, so that they commute.
        """
        identity, start, parts = len(self.blocks), 0, []
        for depth in self.depths:
            first, rest = index[:, start : start + 1], index[:, start + 1 : start + depth]
            order = (rest == identity).to(torch.int8).argsort(dim=1, stable=True)
            parts += [first, rest.gather(1, order)]
            start += depth
        return torch.cat(parts, dim=1)

    def digits(self, paths: Tensor) -> list[str]:
        """Those of the canonical forms of hard `paths [N, L, 1, K]`; 0 is identity."""
        index = self.canonical(paths.argmax(dim=-1)[..., 0])
        numbers = (index + 1) % self.shape[2]
        return ["".join(map(str, row)) for row in numbers.tolist()]

    def all(self) -> Tensor:
        """A path `[M, L, 1, K]` of each different network; the last layer changes fastest."""
        choices = torch.arange(len(self.blocks) + 1)
        found = torch.cartesian_prod(*(sum(self.depths) * [choices])).view(-1, sum(self.depths))
        return self.of_index(found[(found == self.canonical(found)).all(dim=1)][..., None])

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` canonical paths `[N, L, 1, K]`; each different network is equally likely.

        Layers drawn one by one, with identities moved last, would seldom reach the last layer of a
        stage (docs/nasbench_macro.md).
        """
        blocks, parts = len(self.blocks), []
        for depth in self.depths:
            first = torch.randint(blocks + 1, (count, 1), generator=rng)
            # of the layers behind the first, the first m are blocks, in blocks ** m ways
            ways = blocks ** torch.arange(depth, dtype=torch.float64)
            m = torch.multinomial(ways, count, replacement=True, generator=rng)
            rest = torch.randint(blocks, (count, depth - 1), generator=rng)
            parts += [first, torch.where(torch.arange(depth - 1) < m[:, None], rest, blocks)]
        return self.of_index(torch.cat(parts, dim=1)[..., None])

    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor:
        index = super().sample_fair(count, rng).argmax(dim=-1)[..., 0]
        return self.of_index(self.canonical(index)[..., None])

    # -- costs -----------------------------------------------------------------------------------

    def cost_terms(self) -> CostTerms:
        """Convolutions and the final linear layer; parameters with batch norms and its bias."""
        macs, parameters = zip(*map(self._layer_terms, self.layers), strict=True)
        stem, last = self.stem_channels, self.layers[-1]
        size, head, classes = self.layers[0].in_size, self.head_channels, self.classes
        return CostTerms(
            choice=list(macs),
            choice_parameters=list(parameters),
            base=27 * stem * size**2 + last.out_channels * head * last.out_size**2 + head * classes,
            base_parameters=29 * stem + (last.out_channels + 2) * head + (head + 1) * classes,
        )

    def _layer_terms(self, layer: Layer) -> tuple[list[int], list[int]]:
        """Multiply-adds and parameters `[K]` of the choices of a layer."""
        macs, parameters = [], []
        before, after = layer.in_size**2, layer.out_size**2
        for expansion, kernel in self.blocks:
            middle = expansion * layer.in_channels
            expand, depthwise = layer.in_channels * middle, kernel**2 * middle
            project = middle * layer.out_channels
            macs.append(expand * before + (depthwise + project) * after)
            norms = 2 * (2 * middle + layer.out_channels)
            parameters.append(expand + depthwise + project + norms)
        shortcut = layer.in_channels * layer.out_channels if layer.is_first else 0
        norm = 2 * layer.out_channels if layer.is_first else 0
        return [*macs, shortcut * after], [*parameters, shortcut + norm]


# -- digits ----------------------------------------------------------------------------------------


def to_digits(space: BlockSpace, architecture: Architecture) -> str:
    """As the benchmark writes it: a digit for each layer, 0 for identity."""
    numbers = {None: 0} | {name: number for number, name in enumerate(space.names, start=1)}
    return "".join(str(numbers[choice]) for (choice,) in architecture.choices)


def from_digits(space: BlockSpace, text: str) -> Architecture:
    """The inverse of `to_digits`; UserError when it is no architecture of the space."""
    if not (text.isascii() and text.isdecimal() and len(text) == sum(space.depths)):
        raise UserError(f"architecture: {text!r} is not written as {sum(space.depths)} digits")
    names = (None, *space.names)
    if max(map(int, text)) >= len(names):
        raise UserError(f"architecture: {text!r} has digits above {len(names) - 1}")
    return Architecture(tuple((names[int(digit)],) for digit in text))
