"""What few measurements tell: rank correlation, its uncertainty, and spread."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES, CONFIDENCE = 2000, 0.95
FEW = 8  # below so many samples, an interval by resampling is far too narrow
NAN = float("nan")


def kendall_tau(a: ArrayLike, b: ArrayLike, constant: float = NAN) -> NDArray:
    """Kendall's tau-b along the last axis, bit for bit as SciPy computes it, but for many rows.

    Args:
        a, b: samples `[..., n]`.
        constant: what stands for tau where all values of `a`, or of `b`, are the same.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    order_a, order_b = (np.sign(x[..., :, None] - x[..., None, :]) for x in (a, b))
    # each pair is there twice; `untied` pairs differ, `agreeing` is concordant minus discordant
    untied_a, untied_b = ((order**2).sum(axis=(-2, -1)) / 2 for order in (order_a, order_b))
    agreeing = (order_a * order_b).sum(axis=(-2, -1)) / 2
    with np.errstate(invalid="ignore"):
        tau = np.clip(agreeing / np.sqrt(untied_a) / np.sqrt(untied_b), -1, 1)
    return np.where((untied_a == 0) | (untied_b == 0), constant, tau)


def kendall(a: NDArray, b: NDArray) -> tuple[float, float, float]:
    """Kendall's tau-b of samples `[n]`, and the bounds of its `interval`."""
    draws = resampled(len(a))
    return float(kendall_tau(a, b)), *interval(kendall_tau(a[draws], b[draws]))


def kendall_difference(a: NDArray, other: NDArray, b: NDArray) -> tuple[float, float, float]:
    """By how much more `a` agrees with `b` than `other` does, and the bounds of that; all `[n]`."""

    def difference(rows: NDArray | slice) -> NDArray:
        return kendall_tau(a[rows], b[rows]) - kendall_tau(other[rows], b[rows])

    return float(difference(slice(None))), *interval(difference(resampled(len(b))))


def resampled(count: int) -> NDArray[np.intp]:
    """Indices `[RESAMPLES, count]` of a bootstrap; no rows where there are too few samples."""
    rng = np.random.default_rng(0)
    return rng.integers(max(count, 1), size=(RESAMPLES if count >= FEW else 0, count))


def interval(values: NDArray) -> tuple[float, float]:
    """The percentiles that hold `CONFIDENCE` of resampled values `[R]`; NaN values do not count."""
    known, tail = values[~np.isnan(values)], (1 - CONFIDENCE) / 2
    return tuple(np.quantile(known, [tail, 1 - tail]).tolist()) if len(known) else (NAN, NAN)


def spread(values: Iterable[float]) -> float:
    """Standard deviation of a sample; NaN for one value."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else NAN
