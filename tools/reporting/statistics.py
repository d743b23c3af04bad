"""What few measurements say: rank correlation, its uncertainty, and spread."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RESAMPLES, CONFIDENCE = 2000, 0.95
FEW = 8  # below so many samples, an interval by resampling is far too narrow


def tau_b(a: NDArray, b: NDArray) -> NDArray:
    """Kendall's tau-b along the last axis; not a number where all values of one are the same."""
    order_a, order_b = (np.sign(x[..., :, None] - x[..., None, :]) for x in (a, b))
    pairs_a, pairs_b = ((order**2).sum(axis=(-2, -1)) for order in (order_a, order_b))
    with np.errstate(invalid="ignore"):
        return (order_a * order_b).sum(axis=(-2, -1)) / np.sqrt(pairs_a * pairs_b)


def kendall(a: NDArray, b: NDArray) -> tuple[float, float, float]:
    """Kendall's tau-b of samples `[n]`, and the bounds of its interval; see `interval`."""
    draws = resampled(len(a))
    return float(tau_b(a, b)), *interval(tau_b(a[draws], b[draws]))


def kendall_difference(a: NDArray, other: NDArray, b: NDArray) -> tuple[float, float, float]:
    """By how much more `a` agrees with `b` than `other` does, and the bounds of that; all `[n]`."""
    draws = resampled(len(b))
    gained = tau_b(a[draws], b[draws]) - tau_b(other[draws], b[draws])
    return float(tau_b(a, b) - tau_b(other, b)), *interval(gained)


def resampled(count: int) -> NDArray[np.intp]:
    """Indices `[RESAMPLES, count]` of a bootstrap; none where there are too few samples for one."""
    rng = np.random.default_rng(0)
    return rng.integers(max(count, 1), size=(RESAMPLES if count >= FEW else 0, count))


def interval(values: NDArray) -> tuple[float, float]:
    """The percentiles that hold `CONFIDENCE` of resampled values `[R]`, without those that are not
    a number.
    """
    known = values[~np.isnan(values)]
    tails = (1 - CONFIDENCE) / 2
    return (
        tuple(np.quantile(known, [tails, 1 - tails]).tolist())
        if len(known)
        else (float("nan"),) * 2
    )


def spread(values: Iterable[float]) -> float:
    """Standard deviation of a sample; not a number for one value."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
