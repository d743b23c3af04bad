"""Fronts and hypervolumes against brute force."""

import itertools

import numpy as np
import pytest

from model.nsganetv2.pareto import front_by_cost, hypervolume, non_dominated
from tests.model.nsganetv2.problems import dice


def test_a_front_by_eye():
    points = [[1, 3], [2, 2], [2, 3], [3, 1], [2, 2], [4, 4], [1, 4]]
    assert non_dominated(points).tolist() == [True, True, False, True, True, False, False]
    errors, costs = zip(*points, strict=True)
    front = front_by_cost(errors, costs)
    assert [points[i] for i in front] == [[3, 1], [2, 2], [2, 2], [1, 3]], "the cheapest first"


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_front_is_what_nothing_dominates(m):
    points = dice(120, m, seed=m)
    expected = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert non_dominated(points).tolist() == expected


def test_a_front_of_nothing_is_nothing():
    assert non_dominated(np.empty((0, 2))).shape == (0,)


def test_a_hypervolume_by_eye():
    assert hypervolume([[1, 3], [2, 1]], [4, 4]) == pytest.approx((3 + 6 - 2) / 16)


@pytest.mark.parametrize("m", [2, 3])
def test_a_hypervolume_counts_the_cells_of_a_grid_that_points_dominate(m):
    points = dice(12, m, sides=14, seed=m)  # some are beyond the reference
    cells = itertools.product(*[range(side) for side in (10, 11, 12)[:m]])
    dominated = [any((point <= cell).all() for point in points) for cell in cells]
    assert hypervolume(points, (10, 11, 12)[:m]) == pytest.approx(np.mean(dominated))


def test_a_hypervolume_of_many_points_is_that_of_a_sweep():
    points = np.random.default_rng(0).random((5000, 2)) + 0.05
    area, top = 0.0, 1.01
    for x, y in sorted(points.tolist()):
        if x < 1.01 and y < top:
            area, top = area + (1.01 - x) * (top - y), y
    assert hypervolume(points, [1.01, 1.01]) == pytest.approx(area / 1.01**2)


def test_points_at_or_beyond_the_reference_add_nothing():
    assert hypervolume([[5, 1], [1, 4]], [4, 4]) == 0
    assert hypervolume(np.empty((0, 2)), [4, 4]) == 0
