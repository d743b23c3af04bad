"""Which architectures of an archive are worth having: front, hypervolume, even subsets, and what a
preference picks.

Points are rows of float64 `[n, m]`, and every objective is minimised; those of a search are (top-1
error in %, cost). Source: Lu et al., "NSGANetV2: Evolutionary Multi-Objective Surrogate-Assisted
Neural Architecture Search", ECCV 2020.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymoo.indicators.hv import HV
from scipy.special import ndtr

from utils.errors import UserError

# Names that a preference may give to the cost beside top-1.
COST_NAMES = ("flops", "params", "latency", "cpu", "gpu")
# Neighbours on a normalised front lie within this distance (published constant).
NEIGHBOURHOOD = 0.125


@dataclass(frozen=True)
class Preference:
    """An aspiration: top-1 accuracy in %, and the cost (in the unit of the search) that it may
    have.
    """

    top1: float
    cost: float
    cost_name: str

    @classmethod
    def parse(cls, text: str) -> "Preference | None":
        """`top1#80+flops#150`, in any order; `None` is no preference.

        The published release takes the first number for top-1 whatever its name:
        `flops#150+top1#78` meant an error of -50 % at a cost of 78, and so the cheapest
        architectures. Here names count.
        """
        if text.strip().lower() == "none":
            return None
        try:
            pairs = [part.split("#") for part in text.split("+")]
            values = {name.strip(): float(number) for name, number in pairs}
            top1 = values.pop("top1")
            ((name, cost),) = values.items()
        except (KeyError, ValueError):
            raise _not_a_preference(text) from None
        if (
            len(pairs) != 2
            or name not in COST_NAMES
            or not 0 <= top1 <= 100
            or not 0 <= cost < math.inf
        ):
            raise _not_a_preference(text)
        return cls(top1, cost, name)

    @property
    def weights(self) -> NDArray:
        """Of (error, cost), `[2]`."""
        return np.array([100 - self.top1, self.cost])


def _not_a_preference(text: str) -> UserError:
    allowed = f"top1 from 0 to 100 and one of {', '.join(COST_NAMES)}, not negative"
    return UserError(
        f"preference {text!r}: expected None, or two of NAME#NUMBER as in top1#80+flops#150: {allowed}"
    )


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask `[n]` of the members of the front of `points [n, m]`; equal points stand or fall
    together.
    """
    points = np.asarray(points, dtype=np.float64)
    front = np.ones(len(points), dtype=bool)
    for i in range(len(points)):
        if front[i]:
            rest = points[front]
            front[front] = (rest < points[i]).any(axis=1) | (rest == points[i]).all(axis=1)
    return front


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Share of the box from 0 to `reference [m]` that `points [n, m]` dominate; points beyond it
    add nothing.
    """
    points, reference = (
        np.asarray(points, dtype=np.float64),
        np.asarray(reference, dtype=np.float64),
    )
    inside = points[(points < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return float(HV(ref_point=reference)(inside[non_dominated(inside)]) / reference.prod())


def expected_gains(
    errors: ArrayLike,
    deviations: ArrayLike,
    costs: ArrayLike,
    front: ArrayLike,
    reference: ArrayLike,
) -> NDArray[np.float64]:
    """By how much candidates are expected to raise the hypervolume of `front [f, 2]`: `[c]`, in the
    objectives' units.

    A candidate's error is normal, with mean `errors [c]` and standard deviation `deviations [c]`;
    its cost `costs [c]` is known. So the expectation is closed: between neighbours of the front the
    error to beat is the same, and each such interval adds its width, as the candidate is
    cheaper, times the expected improvement on that error (Jones, Schonlau and Welch, "Efficient
    Global Optimization", 1998, equation 15).
    """
    errors, costs, reference = (
        np.asarray(values, dtype=np.float64) for values in (errors, costs, reference)
    )
    deviations = np.maximum(np.asarray(deviations, dtype=np.float64), 1e-12)[:, None]
    front = np.asarray(front, dtype=np.float64).reshape(-1, 2)
    front = front[(front < reference).all(axis=1) & non_dominated(front)]
    front = front[np.argsort(front[:, 1])]
    to_beat = np.append(reference[0], front[:, 0])
    edges = np.concatenate([[0.0], front[:, 1], [reference[1]]])
    widths = (edges[1:] - np.maximum(edges[:-1], costs[:, None])).clip(min=0)
    better = (to_beat - errors[:, None]) / deviations
    return (
        widths
        * deviations
        * (better * ndtr(better) + np.exp(-0.5 * better**2) / math.sqrt(2 * math.pi))
    ).sum(axis=1)


def most_expected(
    errors: ArrayLike,
    deviations: ArrayLike,
    costs: ArrayLike,
    front: ArrayLike,
    reference: ArrayLike,
    count: int,
) -> NDArray[np.intp]:
    """`count` candidates (all, if there are fewer), each of the greatest `expected_gains` when
    those before it are what is predicted of them: `[count]`.
    """
    points, chosen = np.column_stack([errors, costs]), []
    for _ in range(min(count, len(points))):
        gains = expected_gains(
            errors, deviations, costs, np.concatenate([front, points[chosen]]), reference
        )
        gains[chosen] = -1.0
        chosen.append(int(gains.argmax()))
    return np.array(chosen, dtype=np.intp)


def spread_subset(
    costs: ArrayLike, front_costs: ArrayLike, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """`count` of the candidates `costs [c]` that fill the gaps of the front `front_costs [f]` most
    evenly: `[count]`.

    The least standard deviation of the gaps between neighbours of both together. The paper's subset
    selection is a genetic algorithm; this is exact, and `rng` only decides between candidates of
    the same cost. With no more than `count` candidates it is all of them.
    """
    costs, front_costs = (
        np.asarray(costs, dtype=np.float64),
        np.asarray(front_costs, dtype=np.float64),
    )
    if not 0 < count < len(costs):
        return np.arange(len(costs))[:count]
    candidates = rng.permutation(len(costs))
    merged = np.concatenate([front_costs, costs[candidates]])
    order = np.argsort(merged, kind="stable")
    chain = np.array(_evenest_chain(merged[order], order < len(front_costs), count))
    chosen = order[chain] - len(front_costs)
    return np.sort(candidates[chosen[chosen >= 0]])


def _evenest_chain(points: NDArray, fixed: NDArray[np.bool_], count: int) -> list[int]:
    """Ascending `points [N]` with all that are `fixed [N]` and `count` others, of the least
    deviation of gaps.

    Between given ends the mean gap is given, and the sum of squared gaps is left, which dynamic
    programming minimises: `best[s, j, k]` is the least sum from s to j with k free points, over the
    last point before j. No fixed point is passed over, so that s is at most the first of them, and
    the end at least the last.
    """
    N, free = len(points), (~fixed).astype(int)
    last_fixed = np.maximum.accumulate(np.where(fixed, np.arange(N), 0))
    starts = int(fixed.argmax()) + 1 if fixed.any() else N
    best, before = (
        np.full((starts, N, count + 1), np.inf),
        np.zeros((starts, N, count + 1), dtype=int),
    )
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


def preferred(F: ArrayLike, weights: ArrayLike, n: int) -> NDArray[np.intp]:
    """The n best rows of `F [n, m]` by the achievement scalarising function `max_j F_j /
    weights_j`, best first.
    """
    weights = np.asarray(weights, dtype=np.float64)
    achievement = (np.asarray(F, dtype=np.float64) / np.where(weights == 0, 1e-10, weights)).max(
        axis=1
    )
    return np.argsort(achievement, kind="stable")[:n]


def high_tradeoff(F: ArrayLike, n: int) -> NDArray[np.intp]:
    """The n rows of the front `F [n, m]` that their neighbours improve on at the highest price, the
    highest last.

    The price of a point is the least of its neighbours' (sum of what is lost) / (sum of what is
    gained), on objectives normalised to [0, 1]: the trade-off of Rachmawati and Srinivasan,
    "Multiobjective Evolutionary Algorithm With Controllable Focus on the Knees of the Pareto
    Front", 2009.
    """
    F = np.asarray(F, dtype=np.float64)
    F = F - F.min(axis=0)
    reach = F.max(axis=0)
    F = F / np.where(reach > 0, reach, 1)
    prices = np.array([_price(F, i) for i in range(len(F))])
    return np.argsort(prices, kind="stable")[max(0, len(F) - n) :]


def _price(F: NDArray, i: int) -> float:
    """What leaving row i of the normalised front `F [n, m]` costs; infinite where no neighbour
    gains anything.
    """
    distances, enough = np.linalg.norm(F - F[i], axis=1), 2 * F.shape[1]
    near = np.flatnonzero(distances <= NEIGHBOURHOOD)
    if len(near) < enough:
        near = np.argsort(distances, kind="stable")[: enough + 1]  # the nearest is the point itself
    change = F[near] - F[i]
    lost, gained = change.clip(min=0).sum(axis=1), (-change).clip(min=0).sum(axis=1)
    return (lost[gained > 0] / gained[gained > 0]).min(initial=np.inf)


def choose(
    errors: ArrayLike, costs: ArrayLike, preference: Preference | None, count: int
) -> NDArray[np.intp]:
    """What to take from an archive of `errors [n]` and `costs [n]`: at most count + 1 indices into
    it.

    On its front the `count` nearest to the preference (best first) or of the highest trade-off
    (highest last), and then the most accurate one, unless it is among them.
    """
    F = np.column_stack([errors, costs]).astype(np.float64)
    front = np.flatnonzero(non_dominated(F))
    front = front[np.lexsort(F[front].T[::-1])]  # ascending error
    if preference is None:
        picked = high_tradeoff(F[front], count)
    else:
        picked = preferred(F[front], preference.weights, count)
    return front[picked if 0 in picked else np.append(picked, 0)]
