"""The cost of an architecture in closed form, differentiable in the choice probabilities, and the loss of missing one.

Unit: millions of multiply-adds of convolutions at batch 1; the final linear layer, BN and activations do not count.
Source: SGNAS, section 3.3 (the FLOPs lookup table).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.blocks import squeezed_channels
from model.space import UnifiedSpace

# Choices of a smaller probability are not computed by the soft supernet, and so cost nothing (published constant).
NEGLIGIBLE = 0.01


class LookUpTable(nn.Module):
    """`table(paths [..., L, E, K]) -> cost [...]` in millions of multiply-adds.

    With a = active sub-blocks of a layer (the sum of 1 - p[skip]) out of its E:

        cost(layer) = sum p * depthwise + a / E * ([a > 1.5] * expand + project) + se(a)

    where expand and project are the costs at full expansion. Exact for one-hot paths.
    """

    def __init__(self, space: UnifiedSpace):
        super().__init__()
        self.space = space
        E = space.shape[1]
        depthwise, expand, project, se = [], [], [], []
        depthwise_params, middle_params = [], []
        for spec, (before, after) in zip(space.layers, space.sizes, strict=True):
            C, full = spec.in_channels, spec.in_channels * spec.expansion
            depthwise.append([C * k * k * after**2 for k in space.kernels] + [0])
            expand.append(C * full * before**2)
            project.append(full * spec.out_channels * after**2)
            se.append([2 * n * C * squeezed_channels(n * C) * spec.se for n in range(E + 1)])
            depthwise_params.append([C * k * k for k in space.kernels] + [0])
            middle_params.append([_parameters_without_depthwise(spec, n) for n in range(E + 1)])
        self._table("depthwise", depthwise, 1e6)
        self._table("expand", expand, 1e6)
        self._table("project", project, 1e6)
        self._table("se", se, 1e6)
        self._table("depthwise_params", depthwise_params)
        self._table("middle_params", middle_params)
        self._table("expansions", space.expansions.tolist())
        self.base = _base_macs(space) / 1e6
        self.base_params = _base_parameters(space)

    def _table(self, name: str, rows: list, unit: float = 1.0) -> None:
        self.register_buffer(name, (torch.tensor(rows, dtype=torch.float64) / unit).float(), persistent=False)

    def forward(self, paths: Tensor) -> Tensor:
        counted = paths * (paths > NEGLIGIBLE)
        active = self.space.active(paths)
        # Half a sub-block of slack: a sum of probabilities is never exactly 1.
        pointwise = self.expand * (active > 1.5) + self.project
        layers = torch.einsum("...lek,lk->...l", counted, self.depthwise) + active / self.expansions * pointwise
        return self.base + layers.sum(dim=-1) + self._squeeze_excite(active)

    def _squeeze_excite(self, active: Tensor) -> Tensor:
        """Cost of squeeze-excite, linear between whole numbers of active sub-blocks (rounding makes it a staircase)."""
        counts = torch.arange(self.se.shape[1], device=active.device)
        weights = (1 - (active[..., None] - counts).abs()).clamp(min=0)
        return (weights * self.se).sum(dim=(-2, -1))

    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters of the stand-alone networks of one-hot paths `[..., L, E, K]`, `[...]`."""
        active = self.space.active(paths).round().long()
        layers = torch.arange(active.shape[-1], device=active.device)
        depthwise = torch.einsum("...lek,lk->...l", paths, self.depthwise_params)
        per_layer = depthwise + self.middle_params[layers, active]
        return (per_layer.double().sum(dim=-1) + self.base_params) / 1e6

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest cost in M of an architecture with at least `min_expansion` active sub-blocks a layer."""
        space = self.space
        costs = []
        for pick in (torch.argmin, torch.argmax):
            mask = space.mask[..., :-1]  # kernels only
            bound = float("inf") if pick is torch.argmin else float("-inf")
            kernel = pick(self.depthwise.cpu()[:, None, :-1].expand_as(mask).masked_fill(~mask, bound), dim=-1)
            least = [0 if s.may_vanish and min_expansion <= 1 else s.least_active(min_expansion) for s in space.layers]
            count = torch.tensor(least) if pick is torch.argmin else space.expansions
            active = torch.arange(space.shape[1]) < count[:, None]
            path = torch.nn.functional.one_hot(torch.where(active, kernel, space.shape[2] - 1), space.shape[2]).float()
            costs.append(float(self(path.to(self.depthwise.device))))
        return costs[0], costs[1]


@dataclass(frozen=True)
class HardwareLoss:
    """`loss(costs [N], targets [N]) -> [N]`: alpha (miss / unit)^2, times `penalty` where the target is exceeded.

    Costs, targets, `tolerance` (no loss within) and `unit` are in M. With `relative`, the miss is a share of the target
    and `unit` has no meaning. Source: SGNAS, equation 6; the published loss is absolute.
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


def _base_macs(space: UnifiedSpace) -> int:
    """Multiply-adds of stem, first block and head."""
    size, last = space.sizes[0][0], space.sizes[-1][1]
    stem = 3 * 9 * space.stem_channels
    first = space.stem_channels * 9 + space.stem_channels * space.first_channels
    return size**2 * (stem + first) + last**2 * space.layers[-1].out_channels * space.head_channels


def _base_parameters(space: UnifiedSpace) -> int:
    """Parameters of stem, first block, head and classifier, two per normalised channel."""
    stem = 3 * 9 * space.stem_channels + 2 * space.stem_channels
    first = space.stem_channels * 9 + 2 * space.stem_channels + (space.stem_channels + 2) * space.first_channels
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
