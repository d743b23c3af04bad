"""Generated architectures that miss what is asked of them, repaired by the least change.

Axes: M candidates, L layers, E sub-blocks, K choices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.spaces.contracts import CostTable


@dataclass(frozen=True)
class Demand:
    """What an architecture must meet: within `tolerance` (a share) of `target`, or with `at_most`
    not above it.

    `max_params` M of parameters may not be exceeded either; None: any number.
    """

    target: float
    tolerance: float = 0.005
    at_most: bool = False
    max_params: float | None = None

    def miss(self, table: CostTable, paths: Tensor) -> Tensor:
        """How far each of `paths [M, L, E, K]` is from the demand, as a share `[M]`; 0 where it is
        met.
        """
        excess = table(paths).double() / self.target - 1
        miss = excess.clamp(min=0) if self.at_most else (excess.abs() - self.tolerance).clamp(min=0)
        if self.max_params is not None:
            miss = miss + (table.parameters_m(paths) / self.max_params - 1).clamp(min=0)
        return miss


@torch.no_grad()
def repair(
    table: CostTable,
    logits: Tensor,
    path: Tensor,
    demand: Demand,
    width: int = 64,
    most_changes: int = 40,
) -> tuple[Tensor, bool]:
    """The path nearest `path [L, E, K]` that meets the demand, and whether it does.

    A beam search over single changes. Fewest changes win; among as many, those that the generator
    was least sure of: the change of `logits [L, E, K]` is least. Where nothing within
    `most_changes` meets the demand, the path that comes nearest to it.
    """
    beam = path[None]
    nearest, least = path, float(demand.miss(table, beam))
    for _ in range(most_changes):
        if least == 0:
            return nearest, True
        candidates = torch.cat([table.space.neighbours(one) for one in beam]).unique(dim=0)
        misses = demand.miss(table, candidates)
        regret = (logits * (path - candidates)).sum(dim=(1, 2, 3)).double()
        met = misses == 0
        if met.any():
            return candidates[regret.masked_fill(~met, float("inf")).argmin()], True
        order = misses.argsort()[:width]
        beam = candidates[order]
        if float(misses[order[0]]) < least:
            nearest, least = beam[0], float(misses[order[0]])
    return nearest, least == 0
