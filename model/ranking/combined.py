"""One score from several signals of a set of networks. N networks, T signals, k trained networks.

No signal is safe alone: which one tells good networks from bad depends on the space. By default all
count alike, by their log-ranks (Lee and Ham, "AZ-NAS", CVPR 2024, section 3.3): a network that is
bad by one signal is bad. Where a few networks have been trained, a ridge regression learns from
them how much each signal counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.ranking.training_free import TERMS
from utils.statistics import kendall_tau
from utils.table import format_table

FALLING = frozenset({"supernet_loss"})  # signals of which less is better
RIDGES = tuple(10.0**power for power in range(-2, 4))  # strengths of the prior that are tried
NORMAL_RANGE = 1.349  # between the quartiles of a standard normal distribution
FARTHEST = 3.0  # standard deviations that the worst value of a signal counts for
FEWEST = 4  # trained networks that a calibration can learn from

# the signals of each way to rank that needs no trained network
WAYS = {
    "training-free": (*TERMS, "cost"),
    "supernet": ("supernet_loss",),
    "combined": (*TERMS, "cost", "supernet_loss"),
}

Columns = dict[str, NDArray]  # the values [N] of each signal


def rising(signals: Columns) -> NDArray:
    """Signals as a matrix `[N, T]` in which more is better."""
    return np.stack([-v if name in FALLING else v for name, v in signals.items()], axis=1)


def ranks(values: NDArray) -> NDArray:
    """Ranks `[N, T]` within each column: 1 is the worst, and equals share their mean rank."""
    less, same = values[:, None] > values, values[:, None] == values
    return less.sum(axis=1) + (same.sum(axis=1) + 1) / 2


def log_ranks(values: NDArray) -> NDArray:
    """`[N, T]` -> `[N, T]`: log(rank / N) within each column."""
    return np.log(ranks(values) / len(values))


def normal_scores(values: NDArray) -> NDArray:
    """Each column as if normally distributed: the quantile of (rank - 1/2) / N."""
    quantiles = torch.from_numpy((ranks(values) - 0.5) / len(values))
    return torch.special.ndtri(quantiles).numpy()


def sum_of_log_ranks(signals: Columns) -> NDArray:
    """The score `[N]` of each network of a set, at most 0: all signals count alike."""
    return log_ranks(rising(signals)).sum(axis=1)


@dataclass(frozen=True)
class FixedScale:
    """Log-ranks that stay what they are when networks are added.

    In place of its rank within a set, a value has its quantile within a normal distribution that a
    first set fixes.

    Args:
        centre: the median of each signal, by its name.
        spread: its interquartile range, in units of that of a standard normal distribution.
    """

    centre: dict[str, float]
    spread: dict[str, float]

    @classmethod
    def of(cls, signals: Columns) -> "FixedScale":
        """The scale that a first set of networks fixes."""
        low, centre, high = np.quantile(rising(signals), [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / NORMAL_RANGE
        names = tuple(signals)
        return cls(
            dict(zip(names, centre.tolist(), strict=True)),
            dict(zip(names, spread.tolist(), strict=True)),
        )

    def penalties(self, signals: Columns) -> NDArray:
        """`[N]`, less is better: the sum over the signals of -log of the quantile.

        A signal that was the same for half of the first set says nothing.
        """
        named = {name: signals[name] for name in self.centre}
        spread = np.array(list(self.spread.values()))
        off = rising(named) - np.array(list(self.centre.values()))
        z = np.where(spread > 0, off / np.where(spread > 0, spread, 1), 0).clip(min=-FARTHEST)
        return -torch.special.log_ndtr(torch.from_numpy(z)).numpy().sum(axis=1)


# -- calibration -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A score learned from k trained networks, and how far each way to rank can be trusted.

    Args:
        scores: `[N]`, more is better.
        tau: Kendall tau with the accuracies of the trained networks: of each signal alone, of
            `equal` log-ranks, and of the `calibrated` score, there each network is predicted by a
            regression that has not seen it.
        trained: k.
        deviation: of those predictions from the normal scores of the accuracies, root mean square.
    """

    scores: NDArray
    tau: dict[str, float]
    trained: int
    deviation: float

    @property
    def best_part(self) -> str:
        """The way to rank with the highest tau, other than the calibrated score."""
        return max((name for name in self.tau if name != "calibrated"), key=self.tau.get)

    @property
    def is_safe(self) -> bool:
        """Whether the calibrated score ranks at least as well as its best part."""
        return self.tau["calibrated"] >= self.tau[self.best_part]

    def report(self) -> str:
        """A table of how well each way to rank agrees with what the trained networks reached."""
        tau = sorted(self.tau.items(), key=lambda item: -item[1])
        columns = ["ranked by", f"Kendall tau, {self.trained} trained networks"]
        said = format_table(columns, [[name, f"{value:.3f}"] for name, value in tau])
        if self.is_safe:
            return said
        part = self.best_part
        return f"{said}\nwarning: {part} alone ranks better than calibrated; trust {part}"


def calibrated(signals: Columns, trained: Sequence[int], accuracies: NDArray) -> Calibration:
    """Learn the score of N networks from those at the indices `trained [k]`.

    Raises:
        ValueError: with fewer than `FEWEST` of them.
    """
    if len(trained) < FEWEST:
        raise ValueError(f"{len(trained)} trained networks; a calibration needs {FEWEST}")
    X, y = features(signals)[trained], normal_scores(np.asarray(accuracies, float)[:, None])[:, 0]
    parts = dict(zip(signals, rising(signals)[trained].T, strict=True))
    parts["equal"] = sum_of_log_ranks(signals)[trained]
    tau = {name: float(kendall_tau(part, y, constant=0)) for name, part in parts.items()}
    left_out = np.array([predicted_without(i, X, y) for i in range(len(y))])
    tau["calibrated"] = float(kendall_tau(left_out, y, constant=0))
    deviation = float(np.sqrt(np.mean((left_out - y) ** 2)))
    return Calibration(features(signals) @ fitted(X, y), tau, len(trained), deviation)


def features(signals: Columns) -> NDArray:
    """`[N, 2 T]`, of mean 0 and deviation 1: normal scores are straight in the middle of a set, and
    log-ranks weigh its worst networks. A signal that is the same for all networks is 0.
    """
    values = rising(signals)
    both = np.concatenate([normal_scores(values), log_ranks(values)], axis=1)
    both = both - both.mean(axis=0)
    deviation = both.std(axis=0)
    return both / np.where(deviation > 0, deviation, 1)


def ridge(X: NDArray, y: NDArray, strength: float) -> NDArray:
    """Weights w that minimise |y - X w|^2 + strength |w - c|^2, towards equal weights c.

    c is the one weight that suits all columns best, and not negative.
    """
    total = X.sum(axis=1)
    c = max(0.0, float(total @ y) / max(float(total @ total), 1e-12))
    prior = np.full(X.shape[1], c)
    A = X.T @ X + strength * np.eye(X.shape[1])
    return prior + np.linalg.solve(A, X.T @ (y - X @ prior))


def fitted(X: NDArray, y: NDArray) -> NDArray:
    """The weights of the `ridge` whose strength predicts networks best that it has not seen."""
    errors = [sum(_errors_left_out(X, y, strength)) for strength in RIDGES]
    return ridge(X, y, RIDGES[int(np.argmin(errors))])


def predicted_without(i: int, X: NDArray, y: NDArray) -> float:
    """The score of network i by all the others."""
    return float(X[i] @ fitted(np.delete(X, i, axis=0), np.delete(y, i)))


def _errors_left_out(X: NDArray, y: NDArray, strength: float) -> list[float]:
    others = [(np.delete(X, i, axis=0), np.delete(y, i)) for i in range(len(y))]
    return [float(y[i] - X[i] @ ridge(*rest, strength)) ** 2 for i, rest in enumerate(others)]
