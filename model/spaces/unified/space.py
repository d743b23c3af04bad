"""The SGNAS space: layers of sub-blocks, each with a kernel size or skipped, and what they cost.

The layout of a path is that of `model/spaces/paths.py`: K - 1 kernel sizes in ascending order, then
skip. Source: Huang and Chu, "Searching by Generating", CVPR 2021, section 3 (the unified block).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from model.costs.lookup_table import CostTerms
from model.layers.blocks import squeezed_channels
from model.spaces.paths import Architecture, PathSpace
from model.spaces.unified import fair_sampling
from utils.errors import UserError
from utils.ranges import (
    Channels,
    Classes,
    Expansion,
    KernelSize,
    Natural,
    Pixels,
    Ranged,
    Stride,
)


@dataclass(frozen=True)
class LayerSpec(Ranged):
    """One searchable layer: up to `expansion` sub-blocks, each with a kernel or skipped.

    A sub-block has `in_channels` channels. A layer that `may_vanish` may skip all of them.
    """

    what = "layer: "

    in_channels: Channels
    out_channels: Channels
    stride: Stride
    expansion: Expansion
    kernels: tuple[KernelSize, ...]
    skip: bool = True
    may_vanish: bool = False
    se: bool = False

    def __post_init__(self):
        super().__post_init__()
        shown = f"layer: kernels are {list(self.kernels)}"
        if not self.kernels or any(k % 2 == 0 for k in self.kernels):
            raise UserError(f"{shown}; they must be odd, positive numbers")
        if len(set(self.kernels)) < len(self.kernels):
            raise UserError(f"{shown}; each may stand there once")
        if self.may_vanish and not (self.residual and self.skip):
            raise UserError("layer: only a layer with a residual and a skip choice may vanish")

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def least_active(self, min_expansion: int) -> int:
        """Fewest sub-blocks that a proposed path activates here."""
        return min(min_expansion, self.expansion) if self.skip else self.expansion


@dataclass(frozen=True)
class UnifiedSpace(PathSpace):
    """A stem, a first block, `layers` to search, and a head.

    `image_size` is in pixels; `min_expansion` is the fewest active sub-blocks in a layer of a
    proposed path.
    """

    kind: ClassVar[str] = "unified"

    layers: tuple[LayerSpec, ...]
    image_size: Pixels
    classes: Classes
    stem_channels: Channels = 32
    stem_stride: Annotated[int, "at least 1 and at most 2"] = 2
    first_channels: Channels = 16
    head_channels: Channels = 1280
    min_expansion: Natural = 2

    def __post_init__(self):
        super().__post_init__()
        if not self.layers:
            raise UserError("space: it has no searchable layer")
        widths = (self.first_channels, *(layer.out_channels for layer in self.layers))
        for index, layer in enumerate(self.layers):
            if layer.in_channels != widths[index]:
                raise UserError(
                    f"space: layer {index} takes {layer.in_channels} channels, but gets "
                    f"{widths[index]} from before it"
                )
        self.check_parameters()

    def fits(self, other: PathSpace) -> bool:
        return super().fits(other) and self.layers == other.layers

    # -- the layout of a path --------------------------------------------------------------------

    @cached_property
    def names(self) -> tuple[int, ...]:
        """All kernel sizes of the space in ascending order."""
        return tuple(sorted({k for layer in self.layers for k in layer.kernels}))

    @property
    def kernels(self) -> tuple[int, ...]:
        return self.names

    @cached_property
    def expansions(self) -> Tensor:
        return torch.tensor([layer.expansion for layer in self.layers])

    @cached_property
    def exists(self) -> Tensor:
        return torch.arange(int(self.expansions.max())) < self.expansions[:, None]

    @cached_property
    def may_vanish(self) -> Tensor:
        return torch.tensor([layer.may_vanish for layer in self.layers])

    @cached_property
    def allowed(self) -> Tensor:
        """Kernels of the layer, and skip where it has that choice.

        A layer may lose its first sub-block, since warm-up trains such paths.
        """
        offered = torch.tensor([[k in layer.kernels for k in self.names] for layer in self.layers])
        kernels = offered[:, None, :] & self.exists[:, :, None]
        skips = torch.tensor([layer.skip for layer in self.layers])[:, None] | ~self.exists
        return torch.cat([kernels, skips[:, :, None]], dim=2)

    @cached_property
    def mask(self) -> Tensor:
        """Where a layer may not vanish, the first sub-block of a proposed path may not skip."""
        mask = self.allowed.clone()
        mask[:, 0, -1] &= self.may_vanish
        return mask

    @cached_property
    def kernel_counts(self) -> Tensor:
        """int64 `[L]`: number of kernel sizes of each layer."""
        return torch.tensor([len(layer.kernels) for layer in self.layers])

    @cached_property
    def kernel_index(self) -> Tensor:
        """int64 `[L, most kernels]`: number of a layer's own j-th kernel in ascending order."""
        rows = [[self.names.index(k) for k in sorted(layer.kernels)] for layer in self.layers]
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Side of the feature map in pixels before and after each layer ('same' padding)."""
        size, sizes = -(-self.image_size // self.stem_stride), []
        for layer in self.layers:
            after = -(-size // layer.stride)
            sizes.append((size, after))
            size = after
        return tuple(sizes)

    # -- paths -----------------------------------------------------------------------------------

    def least_active(self, min_expansion: int) -> Tensor:
        return torch.tensor([layer.least_active(min_expansion) for layer in self.layers])

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return fair_sampling.uniform_paths(self, count, rng)

    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor:
        return fair_sampling.fair_paths(self, count, rng)

    def extremes(self, min_expansion: int = 1) -> Tensor:
        """The paths of least and greatest cost, with at least `min_expansion` active sub-blocks."""
        least = self.least_active(min_expansion)
        least = torch.where(self.may_vanish & (min_expansion <= 1), 0, least)
        largest = self.kernel_index.gather(1, self.kernel_counts[:, None] - 1)
        paths = []
        for kernel, count in ((self.kernel_index[:, :1], least), (largest, self.expansions)):
            active = torch.arange(self.shape[1]) < count[:, None]
            paths.append(self.of_index(torch.where(active, kernel, self.shape[2] - 1)))
        return torch.stack(paths)

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        for index, (row, spec) in enumerate(zip(architecture.choices, self.layers, strict=True)):
            if not spec.may_vanish and all(choice is None for choice in row):
                raise UserError(
                    f"architecture: layer {index} skips every sub-block, but may not vanish"
                )

    # -- costs -----------------------------------------------------------------------------------

    def cost_terms(self) -> CostTerms:
        """Of convolutions at batch 1; parameters include batch norms and the classifier."""
        choice, expand, project, se = [], [], [], []
        choice_parameters, other_parameters = [], []
        counts = range(self.shape[1] + 1)
        for spec, (before, after) in zip(self.layers, self.sizes, strict=True):
            C, full = spec.in_channels, spec.in_channels * spec.expansion
            choice.append([C * k * k * after**2 for k in self.names] + [0])
            expand.append(C * full * before**2)
            project.append(full * spec.out_channels * after**2)
            se.append([2 * n * C * squeezed_channels(n * C) * spec.se for n in counts])
            choice_parameters.append([C * k * k for k in self.names] + [0])
            other_parameters.append([_parameters_without_depthwise(spec, n) for n in counts])
        return CostTerms(
            choice=choice,
            expand=expand,
            project=project,
            se=se,
            base=self._base_macs(),
            choice_parameters=choice_parameters,
            other_parameters=other_parameters,
            base_parameters=self._base_parameters(),
        )

    def _base_macs(self) -> int:
        """Multiply-adds of stem, first block and head."""
        size, last = self.sizes[0][0], self.sizes[-1][1]
        stem = 3 * 9 * self.stem_channels
        first = self.stem_channels * 9 + self.stem_channels * self.first_channels
        head = self.layers[-1].out_channels * self.head_channels
        return size**2 * (stem + first) + last**2 * head

    def _base_parameters(self) -> int:
        """Parameters of stem, first block, head and classifier, two per normalised channel."""
        width = self.stem_channels
        stem = 3 * 9 * width + 2 * width
        first = width * 9 + 2 * width + (width + 2) * self.first_channels
        head = (self.layers[-1].out_channels + 2) * self.head_channels
        return stem + first + head + (self.head_channels + 1) * self.classes


def _parameters_without_depthwise(spec: LayerSpec, active: int) -> int:
    """Parameters of a stand-alone layer with `active` sub-blocks, without depthwise kernels."""
    if active == 0:
        return 0
    C, middle = spec.in_channels, spec.in_channels * active
    expand = (C + 2) * middle if active > 1 else 0
    squeezed = squeezed_channels(middle)
    se = (2 * middle * squeezed + squeezed + middle) * spec.se
    return expand + 2 * middle + se + (middle + 2) * spec.out_channels
