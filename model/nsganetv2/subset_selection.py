"""Subset selection: which of the candidates that NSGA-II found are evaluated next.

`select_by_gain` takes those that are expected to raise the hypervolume of the front most.
`select_even_gaps` is the published way (Lu et al., "NSGANetV2", ECCV 2020, algorithm 1): those that
fill the gaps of the front most evenly along its cost. Axes: c candidates, f points of the front.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from model.nsganetv2.pareto import front_by_cost

LEAST_STD = 1e-12  # of an error, so that nothing is divided by 0


@dataclass(frozen=True)
class Candidates:
    """What is known before an evaluation: mean and std of the error in %, and the exact cost.

    All `[c]`; the error is taken for normally distributed.
    """

    mean: ArrayLike
    std: ArrayLike
    cost: ArrayLike

    @property
    def points(self) -> NDArray[np.float64]:
        """Predicted error and cost `[c, 2]`."""
        return np.column_stack([self.mean, self.cost])


def expected_gains(
    candidates: Candidates, front: ArrayLike, reference: ArrayLike
) -> NDArray[np.float64]:
    """The hypervolume `[c]`, in the objectives' units, that candidates are expected to add.

    `front [f, 2]` and `reference [2]` are (error, cost). As costs are known, the expectation has a
    closed form: between neighbours of the front the error to beat is the same, and each such
    interval adds its width, as far as the candidate is cheaper, times the expected improvement on
    that error (Jones, Schonlau and Welch, "Efficient Global Optimization", 1998, equation 15).
    """
    reference = np.asarray(reference, dtype=np.float64)
    mean, std, cost = (
        np.asarray(values, dtype=np.float64)[:, None]
        for values in (candidates.mean, candidates.std, candidates.cost)
    )
    std = np.maximum(std, LEAST_STD)
    front = np.asarray(front, dtype=np.float64).reshape(-1, 2)
    front = front[front_by_cost(*front.T)]
    front = front[(front < reference).all(axis=1)]
    # f + 1 intervals of cost; before the first point only the reference's error is to be beaten
    to_beat = np.append(reference[0], front[:, 0])
    edges = np.concatenate([[0.0], front[:, 1], [reference[1]]])
    widths = (edges[1:] - np.maximum(edges[:-1], cost)).clip(min=0)
    z = (to_beat - mean) / std
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return (widths * std * (z * ndtr(z) + density)).sum(axis=1)


def select_by_gain(
    candidates: Candidates, front: ArrayLike, reference: ArrayLike, count: int
) -> NDArray[np.intp]:
    """Indices `[count]` of candidates, one after another the one of the greatest `expected_gains`.

    Those that were chosen before count as points of the front, at their predicted error, so that
    two of a kind are not both taken. All candidates, if there are no more than `count`.
    """
    points, chosen = candidates.points, []
    for _ in range(min(count, len(points))):
        gains = expected_gains(candidates, np.concatenate([front, points[chosen]]), reference)
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
    return np.array(chosen, dtype=np.intp)


def select_even_gaps(
    costs: ArrayLike, front_costs: ArrayLike, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Indices `[count]` of the candidates `costs [c]` that leave the most even gaps.

    The least standard deviation of the gaps between neighbours among `front_costs [f]` and the
    chosen ones. The paper searches subsets by a genetic algorithm; this is exact, and `rng` only
    decides between candidates of the same cost. All candidates, if there are no more than `count`.
    """
    costs, front_costs = np.asarray(costs, np.float64), np.asarray(front_costs, np.float64)
    if not 0 < count < len(costs):
        return np.arange(len(costs))[:count]
    candidates = rng.permutation(len(costs))
    merged = np.concatenate([front_costs, costs[candidates]])
    order = np.argsort(merged, kind="stable")
    chain = np.array(_most_even_chain(merged[order], order < len(front_costs), count))
    chosen = order[chain] - len(front_costs)
    return np.sort(candidates[chosen[chosen >= 0]])


def _most_even_chain(points: NDArray, fixed: NDArray[np.bool_], count: int) -> list[int]:
    """Indices of all `fixed [N]` and `count` other ascending `points [N]`, of the most even gaps.

    Between given ends the mean gap is given, so that the sum of squared gaps is to be minimised.
    Dynamic programming does: `best[s, j, k]` is the least sum from s to j with k free points, over
    the last point `before` j. No fixed point may be passed over, so s is at most the first of them,
    and the end at least the last.
    """
    N, free = len(points), (~fixed).astype(int)
    last_fixed = np.maximum.accumulate(np.where(fixed, np.arange(N), 0))
    starts = int(fixed.argmax()) + 1 if fixed.any() else N
    best = np.full((starts, N, count + 1), np.inf)
    before = np.zeros(best.shape, dtype=int)
    best[range(starts), range(starts), free[:starts]] = 0
    for j in range(1, N):
        k, i = free[j], last_fixed[j - 1]
        sums = best[:, i:j, : count + 1 - k] + (points[j] - points[i:j, None]) ** 2
        before[:, j, k:] = i + sums.argmin(axis=1)
        best[:, j, k:] = np.minimum(best[:, j, k:], sums.min(axis=1))
    gaps, end = max(1, N - free.sum() + count - 1), last_fixed[-1]
    variance = best[:, end:, count] / gaps - ((points[end:] - points[:starts, None]) / gaps) ** 2
    start, j = np.unravel_index(variance.argmin(), variance.shape)
    chain, k = [int(j + end)], count
    while chain[-1] != start:
        j = chain[-1]
        chain.append(int(before[start, j, k]))
        k -= free[j]
    return chain
