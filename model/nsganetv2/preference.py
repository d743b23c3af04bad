"""Which networks of a finished search are taken: by a preference, or by their trade-off.

Points are rows of float64 `[n, m]`, all objectives minimised: (top-1 error in %, cost).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymoo.decomposition.asf import ASF
from scipy.spatial.distance import cdist

from model.nsganetv2.pareto import non_dominated
from utils.errors import UserError

# Names that a preference may give to the cost next to top-1.
COST_NAMES = ("flops", "params", "latency", "cpu", "gpu")
# Neighbours on a normalised front lie within this distance (published constant).
NEIGHBOURHOOD = 0.125


@dataclass(frozen=True)
class Preference:
    """An aspiration: top-1 accuracy in %, and the cost that it may have, in the search's unit."""

    top1: float
    cost: float
    cost_name: str

    @classmethod
    def parse(cls, text: str) -> "Preference | None":
        """Read `top1#80+flops#150`, in any order; `None` is no preference.

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
            if len(pairs) == 2 and name in COST_NAMES and 0 <= top1 <= 100 and 0 <= cost < math.inf:
                return cls(top1, cost, name)
        except (KeyError, ValueError):
            pass
        raise UserError(
            f"preference {text!r}: expected None, or two of NAME#NUMBER as in top1#80+flops#150: "
            f"top1 from 0 to 100 and one of {', '.join(COST_NAMES)}, not negative"
        )

    @property
    def weights(self) -> NDArray:
        """Of (error, cost), `[2]`."""
        return np.array([100 - self.top1, self.cost])


def preferred(F: ArrayLike, weights: ArrayLike, n: int) -> NDArray[np.intp]:
    """The n best rows of `F [n, m]`, best first, by the achievement scalarising function.

    That is `max_j F_j / weights_j`, where a weight of 0 counts as 1e-10.
    """
    achievement = ASF().do(np.asarray(F, float), np.asarray(weights, float), _type="many_to_one")
    return np.argsort(achievement, kind="stable")[:n]


def high_tradeoff(F: ArrayLike, n: int) -> NDArray[np.intp]:
    """The n rows of the front `F [n, m]` of the highest trade-off, the highest last.

    The trade-off of a point is the least of its neighbours' (sum of what is lost) / (sum of what is
    gained) by moving there, on objectives normalised to [0, 1], and infinite where no neighbour
    gains anything (Rachmawati and Srinivasan, "Multiobjective Evolutionary Algorithm With
    Controllable Focus on the Knees of the Pareto Front", 2009). Neighbours are the points within
    `NEIGHBOURHOOD`, the point itself among them; where these are fewer than 2 m, the 2 m nearest.
    """
    F = np.asarray(F, dtype=np.float64)
    F = F - F.min(axis=0)
    reach, enough = F.max(axis=0), 2 * F.shape[1]
    F = F / np.where(reach > 0, reach, 1)
    distances = cdist(F, F)
    near = distances <= NEIGHBOURHOOD
    ranks = distances.argsort(axis=1, kind="stable").argsort(axis=1)
    near |= (near.sum(axis=1) < enough)[:, None] & (ranks <= enough)  # rank 0 is the point itself
    change = F - F[:, None]
    lost, gained = change.clip(min=0).sum(axis=2), (-change).clip(min=0).sum(axis=2)
    prices = np.divide(lost, gained, out=np.full_like(lost, np.inf), where=near & (gained > 0))
    return np.argsort(prices.min(axis=1), kind="stable")[max(0, len(F) - n) :]


def choose(
    errors: ArrayLike, costs: ArrayLike, preference: Preference | None, count: int
) -> NDArray[np.intp]:
    """What to take from an archive of `errors [n]` and `costs [n]`: at most count + 1 indices.

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
