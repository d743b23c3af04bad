"""A search that can afford few evaluations: among architectures whose signals are known.

Where a candidate is trained from scratch, each evaluation takes minutes, and sizes and
training-free terms next to nothing. So these are measured of a pool of random architectures first;
a ridge regression learns from each network that was trained how much the signals count
(`model/ranking/combined.py`), and the next ones are those of the pool that are expected to add most
hypervolume. This is the idea of NSGANetV2 (Lu et al., ECCV 2020), with signals for genes.

Axes: P architectures of the pool, G genes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from model.nsganetv2.nsga2_search import EXPLORATION_WEIGHT, Proposal, Search
from model.nsganetv2.pareto import non_dominated
from model.nsganetv2.subset_selection import Candidates, select_by_gain
from model.ranking.combined import (
    FEWEST,
    NORMAL_RANGE,
    Calibration,
    Columns,
    calibrated,
    sum_of_log_ranks,
)
from model.spaces.contracts import Genes

LEAST_SPREAD = 0.1  # of errors in %, so that equal ones do not make all gains 0


@dataclass
class Pool:
    """Different architectures: canonical genes `[P, G]` and their signals `[P]` by name."""

    genes: Genes
    signals: Columns

    def __post_init__(self):
        self.index = {tuple(row): i for i, row in enumerate(self.genes.tolist())}


@dataclass
class PoolSearch(Search):
    """A `Search` whose candidates are those of a pool; see the module.

    `open_pool` is called when the first candidates are wanted.
    """

    open_pool: Callable[[], Pool] = field(kw_only=True)

    @cached_property
    def pool(self) -> Pool:
        return self.open_pool()

    def doe(self, count: int, rng: np.random.Generator, extremes: bool = True) -> Genes:
        """Half of them are of the first fronts by cost and equal log-ranks of all signals.

        They may be answers already. The others are random: from good networks alone the regression
        would learn little.
        """
        penalties = -sum_of_log_ranks(self.pool.signals)
        points = np.column_stack([penalties, self.objective(self.pool.genes)])
        order = rng.permutation(len(points))
        fronts = NonDominatedSorting().do(points[order], return_rank=True)[1]
        promising = order[np.argsort(fronts, kind="stable")[: (count + 1) // 2]]
        others = order[~np.isin(order, promising)]
        chosen = np.concatenate([promising, others])[:count]
        return self.pool.genes[chosen]

    def propose(self, count: int, rng: np.random.Generator) -> Proposal:
        """`count` architectures of the pool, of those that are not in the archive."""
        _, errors, costs = self.arrays()
        left = np.array([self.pool.index[tuple(row)] for row in self._unseen(self.pool.genes)], int)
        learned = self.calibration()
        if learned is None or len(left) == 0:
            return Proposal(self.pool.genes[left[:0]], np.empty(0), "calibrated")
        # from normal scores to errors in %
        trained = [i for i, row in enumerate(self.archive) if row.genes in self.pool.index]
        low, middle, high = np.quantile(errors[trained], [0.25, 0.5, 0.75])
        spread = max((high - low) / NORMAL_RANGE, LEAST_SPREAD)
        predicted = middle - spread * learned.scores[left]
        std = np.full(len(left), EXPLORATION_WEIGHT * spread * learned.deviation)
        points = np.column_stack([errors, costs])
        candidates = Candidates(predicted, std, self.objective(self.pool.genes[left]))
        front = points[non_dominated(points)]
        chosen = select_by_gain(candidates, front, self._reference(points), count)
        return Proposal(self.pool.genes[left[chosen]], predicted[chosen], "calibrated")

    def calibration(self) -> Calibration | None:
        """What the evaluated networks say of the signals; None where these are too few.

        An archive that was started elsewhere may have networks that are not in the pool.
        """
        known = [record for record in self.archive if record.genes in self.pool.index]
        if len(known) < FEWEST:
            return None
        index = [self.pool.index[record.genes] for record in known]
        return calibrated(self.pool.signals, index, -np.array([record.error for record in known]))
