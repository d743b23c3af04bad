"""The cost of an architecture in closed form, differentiable in the choice probabilities, and the
loss of missing one.

Unit: millions of multiply-adds of convolutions at batch 1; BN and activations do not count, and the
final linear layer only where a space counts it in its base. Source: SGNAS, section 3.3 (the FLOPs
lookup table).
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor, nn

from model.layers.blocks import squeezed_channels
from model.spaces.unified.space import SearchSpace, UnifiedSpace

# Choices of a smaller probability are not computed by the soft unified supernet, and so cost
# nothing (published).
NEGLIGIBLE = 0.01


class CostTable(Protocol):
    """What generators are trained for: `table(paths [..., L, E, K]) -> cost [...]`, differentiable,
    in its `unit`.
    """

    unit: str
    digest: str  # tells tables of one unit apart
    space: SearchSpace

    def __call__(self, paths: Tensor) -> Tensor: ...
    def to(self, device: torch.device) -> "CostTable": ...
    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters of the stand-alone networks of one-hot paths `[..., L, E, K]`,
        `[...]`.
        """

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest cost of an architecture with at least `min_expansion` active
        sub-blocks a layer.
        """


@dataclass(frozen=True)
class CostTerms:
    """What `LookUpTable` adds up, in multiply-adds and parameters; see there.

    Of each choice `[L, K]`; of the convolutions at full expansion `[L]`; by the number of active
    sub-blocks `[L, E + 1]`; and of what all architectures have.
    """

    choice: list[list[int]]
    expand: list[int]
    project: list[int]
    se: list[list[int]]
    base: int
    choice_parameters: list[list[int]]
    other_parameters: list[list[int]]
    base_parameters: int


@singledispatch
def cost_terms(space: SearchSpace) -> CostTerms:
    """The terms of a space; each kind of space registers its own."""
    raise TypeError(f"no costs are known of {type(space).__name__}")


class LookUpTable(nn.Module):
    """`table(paths [..., L, E, K]) -> cost [...]` in millions of multiply-adds.

    With a = active sub-blocks of a layer (the sum of 1 - p[skip]) out of its E:

        cost(layer) = sum p * choice + a / E * ([a > 1.5] * expand + project) + se(a)

    where expand and project are the costs at full expansion. Exact for one-hot paths.
    """

    unit = "M"
    digest = ""

    def __init__(self, space: SearchSpace):
        super().__init__()
        self.space, terms = space, cost_terms(space)
        for name in ("choice", "expand", "project", "se"):
            self._table(name, getattr(terms, name), 1e6)
        self._table("choice_parameters", terms.choice_parameters)
        self._table("other_parameters", terms.other_parameters)
        self._table("expansions", space.expansions.tolist())
        self.base, self.base_parameters = terms.base / 1e6, terms.base_parameters

    def _table(self, name: str, rows: list, unit: float = 1.0) -> None:
        self.register_buffer(
            name, (torch.tensor(rows, dtype=torch.float64) / unit).float(), persistent=False
        )

    def forward(self, paths: Tensor) -> Tensor:
        counted = paths * (paths > NEGLIGIBLE)
        active = self.space.active(paths)
        # Half a sub-block of slack: a sum of probabilities is never exactly 1.
        pointwise = self.expand * (active > 1.5) + self.project
        layers = (
            torch.einsum("...lek,lk->...l", counted, self.choice)
            + active / self.expansions * pointwise
        )
        return self.base + layers.sum(dim=-1) + self._squeeze_excite(active)

    def _squeeze_excite(self, active: Tensor) -> Tensor:
        """Cost of squeeze-excite, linear between whole numbers of active sub-blocks (rounding makes
        it a staircase).
        """
        counts = torch.arange(self.se.shape[1], device=active.device)
        weights = (1 - (active[..., None] - counts).abs()).clamp(min=0)
        return (weights * self.se).sum(dim=(-2, -1))

    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters of the stand-alone networks of one-hot paths `[..., L, E, K]`,
        `[...]`.
        """
        active = self.space.active(paths).round().long()
        layers = torch.arange(active.shape[-1], device=active.device)
        choices = torch.einsum("...lek,lk->...l", paths, self.choice_parameters)
        per_layer = choices + self.other_parameters[layers, active]
        return (per_layer.double().sum(dim=-1) + self.base_parameters) / 1e6

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest cost in M of an architecture with at least `min_expansion` active
        sub-blocks a layer.
        """
        least, most = self(self.space.extremes(min_expansion).to(self.choice.device)).tolist()
        return least, most


@dataclass(frozen=True)
class HardwareLoss:
    """`loss(costs [N], targets [N]) -> [N]`: alpha (miss / unit)^2, times `penalty` where the
    target is exceeded.

    Costs, targets, `tolerance` (no loss within) and `unit` are in M. With `relative`, the miss is a
    share of the target and `unit` has no meaning. Source: SGNAS, equation 6; the published loss is
    absolute.
    """

    alpha: float = 0.0003
    penalty: float = 1.2
    tolerance: float = 0.1
    unit: float = 1.0
    relative: bool = False

    def __call__(self, costs: Tensor, targets: Tensor) -> Tensor:
        miss = costs - targets
        weight = torch.where(miss > 0, self.penalty, 1.0) * (miss.abs() > self.tolerance)
        return self.alpha * weight * (miss / (targets if self.relative else self.unit)) ** 2


@cost_terms.register
def _(space: UnifiedSpace) -> CostTerms:
    E, kernels = space.shape[1], space.kernels
    choice, expand, project, se, choice_parameters, other_parameters = [], [], [], [], [], []
    for spec, (before, after) in zip(space.layers, space.sizes, strict=True):
        C, full = spec.in_channels, spec.in_channels * spec.expansion
        choice.append([C * k * k * after**2 for k in kernels] + [0])
        expand.append(C * full * before**2)
        project.append(full * spec.out_channels * after**2)
        se.append([2 * n * C * squeezed_channels(n * C) * spec.se for n in range(E + 1)])
        choice_parameters.append([C * k * k for k in kernels] + [0])
        other_parameters.append([_parameters_without_depthwise(spec, n) for n in range(E + 1)])
    base, base_parameters = _base_macs(space), _base_parameters(space)
    return CostTerms(
        choice, expand, project, se, base, choice_parameters, other_parameters, base_parameters
    )


def _base_macs(space: UnifiedSpace) -> int:
    """Multiply-adds of stem, first block and head."""
    size, last = space.sizes[0][0], space.sizes[-1][1]
    stem = 3 * 9 * space.stem_channels
    first = space.stem_channels * 9 + space.stem_channels * space.first_channels
    return size**2 * (stem + first) + last**2 * space.layers[-1].out_channels * space.head_channels


def _base_parameters(space: UnifiedSpace) -> int:
    """Parameters of stem, first block, head and classifier, two per normalised channel."""
    stem = 3 * 9 * space.stem_channels + 2 * space.stem_channels
    first = (
        space.stem_channels * 9
        + 2 * space.stem_channels
        + (space.stem_channels + 2) * space.first_channels
    )
    head = (space.layers[-1].out_channels + 2) * space.head_channels
    return stem + first + head + (space.head_channels + 1) * space.classes


def _parameters_without_depthwise(spec, active: int) -> int:
    """Parameters of a stand-alone layer with `active` sub-blocks, but for the depthwise kernels."""
    if active == 0:
        return 0
    C, middle = spec.in_channels, spec.in_channels * active
    expand = (C + 2) * middle if active > 1 else 0
    squeezed = squeezed_channels(middle)
    se = (2 * middle * squeezed + squeezed + middle) * spec.se
    return expand + 2 * middle + se + (middle + 2) * spec.out_channels
