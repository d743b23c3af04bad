"""Pareto fronts and hypervolumes.

Points are rows of float64 `[n, m]`, and every objective is minimised; those of a search are
(top-1 error in %, cost).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import find_non_dominated


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask `[n]` of the front of `points [n, m]`; equal points are all on it, or none of them."""
    points = np.asarray(points, dtype=np.float64)
    front = np.zeros(len(points), dtype=bool)
    front[find_non_dominated(points)] = True
    return front


def front_by_cost(errors: ArrayLike, costs: ArrayLike) -> NDArray[np.intp]:
    """Indices of the front of `errors [n]` and `costs [n]`, the cheapest first."""
    front = np.flatnonzero(non_dominated(np.column_stack([errors, costs])))
    return front[np.argsort(np.asarray(costs)[front])]


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Share of the box from 0 to `reference [m]` that `points [n, m]` dominate.

    Points that do not dominate the reference point add nothing.
    """
    points, reference = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    return float(HV(ref_point=reference)(points[non_dominated(points)]) / reference.prod())
