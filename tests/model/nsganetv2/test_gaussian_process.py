"""The Gaussian process against the textbook's formulas, and what it learns of relevance."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from model.nsganetv2.gaussian_process import (
    NOISE_FLOOR,
    Hyperparameters,
    RelevanceGaussianProcess,
    negative_log_likelihood,
)


def draws(*size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def covariance_of_pairs(hyper, a, b):
    """One pair of rows after another, as it is written down."""

    def covariance(p, q):
        gauss = np.exp(-0.5 * sum(((p - q) / hyper.length_scales) ** 2))
        return hyper.linear * p @ q + hyper.signal * gauss

    return np.array([[covariance(p, q) for q in b] for p in a])


def test_the_likelihood_is_that_of_a_normal_distribution_and_its_gradient_that_of_differences():
    rows, targets, at = draws(12, 4), draws(12, seed=1), 0.5 * draws(7, seed=2)
    hyper = Hyperparameters.from_logarithms(at)
    covariance = covariance_of_pairs(hyper, rows, rows) + (hyper.noise + NOISE_FLOOR) * np.eye(12)
    known = -multivariate_normal(cov=covariance).logpdf(targets) - 6 * np.log(2 * np.pi)
    value, gradient = negative_log_likelihood(hyper, rows, targets)
    np.testing.assert_allclose(value, known)

    def value_at(x):
        return negative_log_likelihood(Hyperparameters.from_logarithms(x), rows, targets)[0]

    numeric = approx_fprime(at, value_at, 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_predictions_are_those_of_a_conditional_normal_distribution():
    X, y, at = draws(15, 3), draws(15, seed=1), draws(4, 3, seed=2)
    model = RelevanceGaussianProcess()
    model.fit(X, y)
    rows, new = ((part - X.mean(axis=0)) / np.ptp(X, axis=0) for part in (X, at))
    noise = (model.hyper.noise + NOISE_FLOOR) * np.eye(15)
    inverse = np.linalg.inv(covariance_of_pairs(model.hyper, rows, rows) + noise)
    across = covariance_of_pairs(model.hyper, new, rows)
    mean = across @ inverse @ (y - y.mean()) + y.mean()
    np.testing.assert_allclose(model.predict(at), mean, rtol=1e-6)
    variance = np.diag(covariance_of_pairs(model.hyper, new, new) - across @ inverse @ across.T)
    np.testing.assert_allclose(model.predict_std(at), np.sqrt(variance) * y.std(), rtol=1e-6)


def test_it_finds_the_columns_that_matter_among_many_that_do_not():
    X = np.random.default_rng(0).integers(0, 2, (120, 60)).astype(float)

    def target(rows):
        return rows[:, 3] * rows[:, 7] + 0.5 * rows[:, 11]

    model = RelevanceGaussianProcess()
    model.fit(X[:80], target(X[:80]))
    shortest = np.argsort(model.hyper.length_scales)[:2]
    assert set(shortest) == {3, 7}, "the product is no plane; the rest is"
    assert np.abs(model.predict(X[80:]) - target(X[80:])).max() < 0.15


def test_the_std_is_small_at_known_rows_and_large_far_away():
    X, far = draws(30, 2), np.array([[9.0, -9.0]])
    model = RelevanceGaussianProcess()
    model.fit(X, np.sin(3 * X[:, 0]))
    assert model.predict_std(X).max() < 0.2 < model.predict_std(far)[0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_units_of_columns_and_targets_change_nothing(scale):
    X, y, at = draws(20, 3), draws(20, seed=1), draws(5, 3, seed=2)
    plain, scaled = RelevanceGaussianProcess(), RelevanceGaussianProcess()
    plain.fit(X, y)
    scaled.fit(X * [scale, 1, 1], y * scale + 7)
    expected = plain.predict(at) * scale + 7
    np.testing.assert_allclose(scaled.predict(at * [scale, 1, 1]), expected, rtol=1e-4)
