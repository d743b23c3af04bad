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
    """Variances of the linear trend for each unit of squared length, of the bumps and of the noise;
    scales `[d]`.
    """

    linear: float
    bumps: float
    noise: float
    lengths: Array

    @classmethod
    def of(cls, logarithms: Array) -> "Hyperparameters":
        """From their logarithms `[3 + d]`."""
        linear, bumps, noise, *lengths = np.exp(logarithms)
        return cls(linear, bumps, noise, np.array(lengths))

    def gauss(self, a: Array, b: Array) -> Array:
        """`[p, d]`, `[q, d]` -> `[p, q]`, 1 for equal rows."""
        a, b = a / self.lengths, b / self.lengths
        squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
        return np.exp(-0.5 * squared)

    def covariance(self, a: Array, b: Array) -> Array:
        """`[p, d]`, `[q, d]` -> `[p, q]`."""
        return self.linear * (a @ b.T) + self.bumps * self.gauss(a, b)


class RelevanceGaussianProcess:
    """A linear trend and a Gauss kernel with a length scale for each column, and noise.

    The hyperparameters maximise their posterior, under log-normal priors that scale with the spread
    of the rows, so that a few dozen rows fit hundreds of length scales without harm. scikit-learn
    has the same model, but its gradient holds an n x n matrix for each column; here all length
    scales take one product of matrices.
    """

    def __init__(self, iterations: int = 60):
        self.iterations = iterations

    def fit(self, X: Array, y: Array) -> None:
        """Learn `y [n]` from `X [n, d]`, n at least 1."""
        span = np.ptp(X, axis=0)
        self.centre, self.span = X.mean(axis=0), np.where(span > 0, span, 1.0)
        self.mean, self.std = float(y.mean()), float(y.std()) or 1.0
        self.rows, targets = self._rows(X), (y - self.mean) / self.std
        centre, scale = self._prior()

        def loss(logarithms: Array) -> tuple[float, Array]:
            value, gradient = negative_log_likelihood(
                Hyperparameters.of(logarithms), self.rows, targets
            )
            off = (logarithms - centre) / scale
            return value + 0.5 * (off @ off), gradient + off / scale

        bounds = np.stack([centre - 4 * scale, centre + 4 * scale], axis=1)
        found = minimize(
            loss,
            centre,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": self.iterations},
        )
        self.hyper = Hyperparameters.of(found.x)
        self.factor = _factor(self.hyper, self.hyper.covariance(self.rows, self.rows))
        self.weights = cho_solve((self.factor, True), targets)

    def predict(self, X: Array) -> Array:
        """`X [m, d]` -> the expected targets `[m]`."""
        return self.hyper.covariance(self._rows(X), self.rows) @ self.weights * self.std + self.mean

    def deviation(self, X: Array) -> Array:
        """`X [m, d]` -> standard deviations `[m]` of what is predicted, without the noise of an
        evaluation.
        """
        rows = self._rows(X)
        known = solve_triangular(self.factor, self.hyper.covariance(self.rows, rows), lower=True)
        variance = (
            self.hyper.linear * (rows * rows).sum(axis=1)
            + self.hyper.bumps
            - (known * known).sum(axis=0)
        )
        return np.sqrt(np.maximum(variance, LEAST_VARIANCE)) * self.std

    def _rows(self, X: Array) -> Array:
        return (X - self.centre) / self.span

    def _prior(self) -> tuple[Array, Array]:
        """Mean and deviation `[3 + d]` of the logarithms of all hyperparameters.

        Before anything is learned, the trend explains as the bumps, the noise 1 % of that,
        and the bumps of two rows that are as far from each other as rows are on average correlate
        by exp(-2).
        """
        # half the mean squared distance
        spread = max((self.rows * self.rows).sum(axis=1).mean(), LEAST_VARIANCE)
        d = self.rows.shape[1]
        centre = np.log(np.array([1 / spread, 1.0, 0.01, *d * [np.sqrt(spread / 2)]]))
        return centre, np.array([2.0, 1.5, 2.0, *d * [1.0]])


def negative_log_likelihood(
    hyper: Hyperparameters, rows: Array, targets: Array
) -> tuple[float, Array]:
    """Of `targets [n]` at `rows [n, d]`, less a constant, and its gradient `[3 + d]` by the
    logarithms.

    Rasmussen and Williams, equations 2.30 and 5.9. With P the elements of half of `K^-1 - a a^T`
    times those of the bumps, a length scale has `sum_ij P_ij (x_i - x_j)^2 / l^2`, that is `2
    (sum_i (P 1)_i x_i^2 - x^T P x) / l^2`.
    """
    gauss, products = hyper.gauss(rows, rows), rows @ rows.T
    factor = _factor(hyper, hyper.linear * products + hyper.bumps * gauss)
    weights = cho_solve((factor, True), targets)
    value = 0.5 * targets @ weights + np.log(factor.diagonal()).sum()
    inverse = cho_solve((factor, True), np.eye(len(rows)))
    outer = 0.5 * (inverse - np.outer(weights, weights))
    bumps = outer * hyper.bumps * gauss
    lengths = (
        2
        * (bumps.sum(axis=1) @ (rows * rows) - (rows * (bumps @ rows)).sum(axis=0))
        / hyper.lengths**2
    )
    variances = [
        hyper.linear * (outer * products).sum(),
        bumps.sum(),
        hyper.noise * np.trace(outer),
    ]
    return float(value), np.array([*variances, *lengths])


def _factor(hyper: Hyperparameters, covariance: Array) -> Array:
    """The lower Cholesky factor `[n, n]` of the covariance with noise."""
    return cholesky(covariance + (hyper.noise + NOISE_FLOOR) * np.eye(len(covariance)), lower=True)
