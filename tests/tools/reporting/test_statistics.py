"""Rank correlation and its uncertainty."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from tools.reporting.statistics import FEW, kendall, kendall_difference, spread, tau_b


def test_tau_b_is_scipys():
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 4, (2, 30, 8)).astype(float)  # with ties
    assert np.allclose(
        tau_b(a, b), [kendalltau(*pair).statistic for pair in zip(a, b, strict=True)]
    )
    assert np.isnan(tau_b(np.ones(5), np.arange(5.0)))


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
    """What agrees just as much has no difference, and no uncertainty of one; what says nothing has
    all of it.
    """
    draw = np.random.default_rng(0)
    a, noise = draw.normal(size=(2, 20))
    assert kendall_difference(a, 3 * a, a + noise) == (0.0, 0.0, 0.0)
    gained, low, high = kendall_difference(a, noise, a)
    assert gained == pytest.approx(1 - tau_b(noise, a))
    assert 0 < low < gained < high


def test_spread():
    assert spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert np.isnan(spread([1.0]))
