"""Expected gains of hypervolume and even gaps, against brute force."""

import itertools

import numpy as np
import pytest

from model.nsganetv2.pareto import hypervolume
from model.nsganetv2.subset_selection import (
    Candidates,
    expected_gains,
    select_by_gain,
    select_even_gaps,
)
from tests.model.nsganetv2.problems import dice

REFERENCE, NOTHING = np.array([10.0, 12.0]), np.empty((0, 2))

# -- expected hypervolume --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("cost", [1.0, 4.0, 7.5, 11.0])
def test_the_expected_gain_is_the_mean_over_drawn_errors(error, cost):
    # two are not on it
    front = np.array([[8.0, 3.0], [6.0, 5.0], [4.0, 9.0], [7.0, 9.5], [11.0, 1.0]])
    expected = expected_gains(Candidates([error], [0.8], [cost]), front, REFERENCE)[0]
    drawn, before = np.random.default_rng(0).normal(error, 0.8, 500), hypervolume(front, REFERENCE)
    gains = [hypervolume([*front, (one, cost)], REFERENCE) - before for one in drawn]
    mean, standard_error = np.array([np.mean(gains), np.std(gains) / 500**0.5]) * REFERENCE.prod()
    assert abs(expected - mean) < 4 * standard_error + 1e-3


def test_with_a_std_of_0_the_expected_gain_is_the_gain():
    front, points = dice(6, 2) + 1, dice(20, 2, seed=1) + 0.5
    before = hypervolume(front, REFERENCE)
    known = [hypervolume([*front, point], REFERENCE) - before for point in points]
    sure = Candidates(points[:, 0], np.zeros(20), points[:, 1])
    expected = expected_gains(sure, front, REFERENCE)
    np.testing.assert_allclose(expected, np.array(known) * REFERENCE.prod(), atol=1e-9)


def test_an_empty_front_and_candidates_beyond_the_reference_are_no_special_case():
    candidates = Candidates([4.0, 4.0, 40.0], np.zeros(3), [3.0, 13.0, 3.0])
    gains = expected_gains(candidates, NOTHING, REFERENCE)
    np.testing.assert_allclose(gains, [6 * 9, 0, 0], atol=1e-9)


def test_candidates_are_selected_for_what_they_add_to_each_other():
    candidates = Candidates([4.0, 4.0, 6.0, 9.0], np.zeros(4), [6.0, 6.1, 2.0, 11.0])
    chosen = select_by_gain(candidates, NOTHING, REFERENCE, 2)
    assert chosen.tolist() == [2, 0], "the twin of the first adds nothing"
    assert sorted(select_by_gain(candidates, NOTHING, REFERENCE, 9)) == [0, 1, 2, 3]


def test_a_large_std_makes_a_candidate_that_is_no_better_worth_trying():
    gains = expected_gains(Candidates([5.0] * 2, [0.0, 1.0], [5.0] * 2), [[5.0, 5.0]], REFERENCE)
    assert gains[0] < 1e-9 < gains[1]


# -- even gaps -------------------------------------------------------------------------------------


def unevenness(front, chosen):
    return np.diff(np.sort(np.concatenate([front, chosen]))).std()


def evolved(front, costs, count, rng, population=100, generations=60):
    """The best unevenness that a plain genetic algorithm on subsets finds.

    One in, one out; the better half survives.
    """
    subsets = np.array([rng.permutation(len(costs))[:count] for _ in range(population)])
    for _ in range(generations):
        children = subsets.copy()
        for child in children:
            child[rng.integers(count)] = rng.choice(np.setdiff1d(np.arange(len(costs)), child))
        both = np.concatenate([subsets, children])
        order = np.argsort([unevenness(front, costs[subset]) for subset in both])
        subsets = both[order[:population]]
    return unevenness(front, costs[subsets[0]])


def test_the_middle_of_a_gap_is_its_most_even_filling():
    chosen = select_even_gaps([1, 5, 6, 9], [0, 10], 1, np.random.default_rng(0))
    assert chosen.tolist() == [1]


@pytest.mark.parametrize("seed", range(40))
def test_the_subset_is_the_most_even_of_all(seed):
    rng = np.random.default_rng(seed)
    c, count = int(rng.integers(2, 11)), int(rng.integers(1, 6))
    # inside, outside and equal
    costs, front = rng.integers(0, 40, c) / 4, rng.integers(2, 9, rng.integers(0, 5)) * 1.0
    count = max(2 - len(front), min(count, c - 1))
    chosen = select_even_gaps(costs, front, count, rng)
    assert len(set(chosen.tolist())) == count
    subsets = itertools.combinations(range(c), count)
    least = min(unevenness(front, costs[list(subset)]) for subset in subsets)
    assert unevenness(front, costs[chosen]) == pytest.approx(least, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_genetic_algorithm_finds_a_more_even_subset(seed):
    rng = np.random.default_rng(seed)
    costs, front = rng.uniform(90, 750, 40), rng.uniform(120, 700, 30)  # the size that a search has
    chosen = select_even_gaps(costs, front, 8, rng)
    assert unevenness(front, costs[chosen]) <= evolved(front, costs, 8, rng) + 1e-9


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_too_few_candidates_are_all_of_them(count):
    chosen = select_even_gaps([3.0, 1.0, 2.0], [0.0, 4.0], count, np.random.default_rng(0))
    assert len(chosen) == min(count, 3)
    assert set(chosen.tolist()) <= {0, 1, 2}


def test_the_subset_follows_its_random_stream():
    streams = map(np.random.default_rng, (*range(9), 0))
    chosen = [select_even_gaps([5.0] * 6, [0, 10], 1, rng).tolist() for rng in streams]
    assert chosen[0] == chosen[-1]
    assert len({index for (index,) in chosen}) > 1, "candidates of the same cost take turns"
