"""The cost of an architecture in closed form, differentiable in the choice probabilities.

Unit: millions of multiply-adds of convolutions at batch 1; BN and activations do not count, and the
final linear layer only where a space counts it in its base. Source: SGNAS, section 3.3 (the FLOPs
lookup table). Axes: L layers, E sub-blocks of a layer, K choices of a sub-block.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

# Choices of a smaller probability are not computed by the soft supernet: they cost nothing
# (published).
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class CostTerms:
    """What `LookUpTable` adds up, in multiply-adds and parameters; see there.

    Of each choice `[L, K]`; of the convolutions at full expansion `[L]`; by the number of active
    sub-blocks `[L, E + 1]`; and of what all architectures have. What is None is zero.
    """

    choice: list[list[int]]
    choice_parameters: list[list[int]]
    base: int
    base_parameters: int
    expand: list[int] | None = None
    project: list[int] | None = None
    se: list[list[int]] | None = None
    other_parameters: list[list[int]] | None = None


class PricedSpace(Protocol):
    """What a lookup table needs of a space of paths."""

    shape: tuple[int, int, int]
    expansions: Tensor

    def cost_terms(self) -> CostTerms: ...
    def active(self, path: Tensor) -> Tensor: ...
    def extremes(self, min_expansion: int) -> Tensor: ...


class LookUpTable(nn.Module):
    """`table(paths [..., L, E, K]) -> cost [...]` in millions of multiply-adds.

    With a = active sub-blocks of a layer (the sum of 1 - p[skip]) out of its E:

        cost(layer) = sum p * choice + a / E * ([a > 1.5] * expand + project) + se(a)

    where expand and project are the costs at full expansion. Exact for one-hot paths.
    """

    unit = "M"
    digest = ""

    def __init__(self, space: PricedSpace):
        super().__init__()
        self.space, terms = space, space.cost_terms()
        L, E, _ = space.shape
        by_layer, by_count = L * [0], L * [(E + 1) * [0]]
        self._table("choice", terms.choice, 1e6)
        self._table("expand", terms.expand or by_layer, 1e6)
        self._table("project", terms.project or by_layer, 1e6)
        self._table("se", terms.se or by_count, 1e6)
        self._table("choice_parameters", terms.choice_parameters)
        self._table("other_parameters", terms.other_parameters or by_count)
        self._table("expansions", space.expansions.tolist())
        self.base, self.base_parameters = terms.base / 1e6, terms.base_parameters

    def _table(self, name: str, rows: list, unit: float = 1.0) -> None:
        values = (torch.tensor(rows, dtype=torch.float64) / unit).float()
        self.register_buffer(name, values, persistent=False)

    def forward(self, paths: Tensor) -> Tensor:
        counted = paths * (paths > NEGLIGIBLE)
        active = self.space.active(paths)
        # Half a sub-block of slack: a sum of probabilities is never exactly 1.
        pointwise = self.expand * (active > 1.5) + self.project
        layers = torch.einsum("...lek,lk->...l", counted, self.choice)
        layers = layers + active / self.expansions * pointwise
        return self.base + layers.sum(dim=-1) + self._squeeze_excite(active)

    def _squeeze_excite(self, active: Tensor) -> Tensor:
        """Cost of squeeze-excite, linear between whole numbers of active sub-blocks."""
        counts = torch.arange(self.se.shape[1], device=active.device)
        weights = (1 - (active[..., None] - counts).abs()).clamp(min=0)
        return (weights * self.se).sum(dim=(-2, -1))

    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters of the networks of one-hot paths `[..., L, E, K]`, `[...]`."""
        active = self.space.active(paths).round().long()
        layers = torch.arange(active.shape[-1], device=active.device)
        choices = torch.einsum("...lek,lk->...l", paths, self.choice_parameters)
        per_layer = choices + self.other_parameters[layers, active]
        return (per_layer.double().sum(dim=-1) + self.base_parameters) / 1e6

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest cost in M with at least `min_expansion` active sub-blocks a layer."""
        least, most = self(self.space.extremes(min_expansion).to(self.choice.device)).tolist()
        return least, most
