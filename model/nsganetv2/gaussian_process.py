"""A Gaussian process that learns which columns matter, from few rows of many columns.

Axes: n rows (architectures) to fit, m to predict, d columns. Source: Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, sections 2.2 and 5.1 (automatic relevance
determination).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

NOISE_FLOOR = 1e-4  # of the variance of the targets; keeps the covariance matrix invertible
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Hyperparameters:
    """Variances of the linear trend (per squared length), the Gauss kernel and the noise.

    `length_scales [d]` are those of the Gauss kernel: the longer, the less a column matters.
    """

    linear: float
    signal: float
    noise: float
    length_scales: Array

    @classmethod
    def from_logarithms(cls, logarithms: Array) -> "Hyperparameters":
        """In the order of the fields, `[3 + d]`."""
        linear, signal, noise, *length_scales = np.exp(logarithms)
        return cls(linear, signal, noise, np.array(length_scales))

    def gauss(self, a: Array, b: Array) -> Array:
        """`[p, d]`, `[q, d]` -> `[p, q]`, 1 for equal rows."""
        a, b = a / self.length_scales, b / self.length_scales
        squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
        return np.exp(-0.5 * squared)

    def covariance(self, a: Array, b: Array) -> Array:
        """`[p, d]`, `[q, d]` -> `[p, q]`, without noise."""
        return self.linear * (a @ b.T) + self.signal * self.gauss(a, b)


class RelevanceGaussianProcess:
    """A linear trend, a Gauss kernel with a length scale for each column, and noise.

    The hyperparameters maximise their posterior, under log-normal priors that scale with the spread
    of the rows, so that a few dozen rows fit hundreds of length scales without harm. scikit-learn
    has the same model, but its gradient holds an n x n matrix for each column; here all length
    scales take one product of matrices.
    """

    def __init__(self, iterations: int = 60):
        self.iterations = iterations

    def fit(self, X: Array, y: Array) -> None:
        """Learn `y [n]` from `X [n, d]`, n at least 1."""
        # Priors and bounds hold for any unit of columns and targets once these are scaled.
        span = np.ptp(X, axis=0)
        self.centre, self.span = X.mean(axis=0), np.where(span > 0, span, 1.0)
        self.y_mean, self.y_std = float(y.mean()), float(y.std()) or 1.0
        self.rows, targets = self._scaled(X), (y - self.y_mean) / self.y_std
        centre, scale = self._prior()

        def loss(logarithms: Array) -> tuple[float, Array]:
            hyper = Hyperparameters.from_logarithms(logarithms)
            value, gradient = negative_log_likelihood(hyper, self.rows, targets)
            off = (logarithms - centre) / scale
            return value + 0.5 * (off @ off), gradient + off / scale

        # From the prior's mode uphill to a mode of the posterior, at most 4 stds away.
        bounds = np.stack([centre - 4 * scale, centre + 4 * scale], axis=1)
        options = {"maxiter": self.iterations}
        found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        # The Cholesky factor and K^-1 y are all that predictions need (algorithm 2.1).
        self.hyper = Hyperparameters.from_logarithms(found.x)
        self.factor = _factor(self.hyper, self.hyper.covariance(self.rows, self.rows))
        self.weights = cho_solve((self.factor, True), targets)

    def predict(self, X: Array) -> Array:
        """`X [m, d]` -> the posterior mean of the targets `[m]` (equation 2.25)."""
        covariance = self.hyper.covariance(self._scaled(X), self.rows)
        return covariance @ self.weights * self.y_std + self.y_mean

    def predict_std(self, X: Array) -> Array:
        """`X [m, d]` -> the posterior std `[m]`, without an evaluation's noise (equation 2.26)."""
        rows, hyper = self._scaled(X), self.hyper
        known = solve_triangular(self.factor, hyper.covariance(self.rows, rows), lower=True)
        prior = hyper.linear * (rows * rows).sum(axis=1) + hyper.signal
        return np.sqrt(np.maximum(prior - (known * known).sum(axis=0), LEAST_VARIANCE)) * self.y_std

    def _scaled(self, X: Array) -> Array:
        return (X - self.centre) / self.span

    def _prior(self) -> tuple[Array, Array]:
        """Mean and std `[3 + d]` of the logarithms of all hyperparameters.

        Before anything is learned, the trend explains as much as the Gauss kernel, the noise 1 % of
        that, and the Gauss kernel of two rows that are as far from each other as rows are on
        average is exp(-2).
        """
        # half the mean squared distance
        spread = max((self.rows * self.rows).sum(axis=1).mean(), LEAST_VARIANCE)
        d = self.rows.shape[1]
        centre = np.log(np.array([1 / spread, 1.0, 0.01, *d * [np.sqrt(spread / 2)]]))
        return centre, np.array([2.0, 1.5, 2.0, *d * [1.0]])


def negative_log_likelihood(
    hyper: Hyperparameters, rows: Array, targets: Array
) -> tuple[float, Array]:
    """Of `targets [n]` at `rows [n, d]`, less a constant, and its gradient by the logarithms.

    Rasmussen and Williams, equations 2.30 and 5.9. The gradient is `[3 + d]`. With P the elements
    of half of `K^-1 - a a^T` times those of the Gauss kernel, a length scale has
    `sum_ij P_ij (x_i - x_j)^2 / l^2`, that is `2 (sum_i (P 1)_i x_i^2 - x^T P x) / l^2`.
    """
    gauss, products = hyper.gauss(rows, rows), rows @ rows.T
    factor = _factor(hyper, hyper.linear * products + hyper.signal * gauss)
    weights = cho_solve((factor, True), targets)
    value = 0.5 * targets @ weights + np.log(factor.diagonal()).sum()
    inverse = cho_solve((factor, True), np.eye(len(rows)))
    outer = 0.5 * (inverse - np.outer(weights, weights))
    P = outer * hyper.signal * gauss
    distances = P.sum(axis=1) @ (rows * rows) - (rows * (P @ rows)).sum(axis=0)
    lengths = 2 * distances / hyper.length_scales**2
    linear, noise = hyper.linear * (outer * products).sum(), hyper.noise * np.trace(outer)
    return float(value), np.array([linear, P.sum(), noise, *lengths])


def _factor(hyper: Hyperparameters, covariance: Array) -> Array:
    """The lower Cholesky factor `[n, n]` of the covariance with noise."""
    return cholesky(covariance + (hyper.noise + NOISE_FLOOR) * np.eye(len(covariance)), lower=True)
