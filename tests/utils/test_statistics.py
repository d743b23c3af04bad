"""Rank correlation and its uncertainty."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from utils.statistics import FEW, kendall, kendall_difference, kendall_tau, spread


def test_tau_is_scipys_bit_for_bit():
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 4, (2, 30, 8)).astype(float)  # with ties
    rows = [kendalltau(*pair).statistic for pair in zip(a, b, strict=True)]
    assert kendall_tau(a, b).tolist() == rows


def test_tau_of_a_constant_is_what_the_caller_wants():
    assert np.isnan(kendall_tau(np.ones(5), np.arange(5)))
    assert kendall_tau(np.arange(5), np.ones(5), constant=0) == 0
    assert kendall_tau([1], [2], constant=0) == 0
    assert np.isnan(kendall_tau([1, 2, 3], [1, 2, np.nan], constant=0))  # NaN is not a constant


def test_one_discordant_pair_of_66():
    order = np.arange(12.0)
    assert kendall(order, order) == pytest.approx((1.0, 1.0, 1.0))
    swapped = order.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    tau, low, high = kendall(order, swapped)
    assert tau == pytest.approx(64 / 66)
    assert low < tau < high <= 1.0


def test_few_samples_have_no_interval():
    tau, low, high = kendall(np.arange(FEW - 1.0), np.arange(FEW - 1.0))
    assert tau == pytest.approx(1.0)
    assert np.isnan(low)
    assert np.isnan(high)


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 20])
def test_intervals_hold_the_truth_about_as_often_as_they_say(count):
    """Pairs of normal numbers of correlation 0.8 have a tau of 2 / pi arcsin 0.8 = 0.590."""
    draw, held, trials = np.random.default_rng(1), 0, 100
    for _ in range(trials):
        a = draw.normal(size=count)
        _, low, high = kendall(a, 0.8 * a + 0.6 * draw.normal(size=count))
        held += low <= 2 / np.pi * np.arcsin(0.8) <= high
    assert 88 <= held <= 99


def test_a_difference_is_paired():
    """What agrees just as much has no difference and no uncertainty; noise has all of both."""
    draw = np.random.default_rng(0)
    a, noise = draw.normal(size=(2, 20))
    assert kendall_difference(a, 3 * a, a + noise) == (0.0, 0.0, 0.0)
    gained, low, high = kendall_difference(a, noise, a)
    assert gained == pytest.approx(1 - kendall_tau(noise, a))
    assert 0 < low < gained < high


def test_spread():
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert np.isnan(spread([1.0]))
