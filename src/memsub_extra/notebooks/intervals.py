"""Intervals of means, differences and ratios over independent units.

mean_interval(alignments)                               # a value a caption
difference_interval(before, after, paired=True)         # of mean(before) - mean(after)
ratio_interval(after, before, paired=True)              # of mean(after) / mean(before)
auc_interval(0.97, 28, 28), jackknife_interval(value, left_out), difference_of(a, b), ratio_of(a, b)

A unit is what was sampled independently: a caption with all of its images, not each image. Outcomes (bool) have
intervals that have a width at 0 of n and n of n, where a bootstrap has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from memsub.measure.intervals import interval

RESAMPLES = 2000
"""Of a bootstrap."""
Values: TypeAlias = Sequence[float] | np.ndarray | pd.Series
Estimate = tuple[float, float, float]
"""Value, lower and upper bound."""


def mean_interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean: Wilson's for outcomes (bool), a bootstrap for numbers; NaN for fewer than two values."""
    values = np.asarray(values)
    if values.dtype == bool:
        return interval(int(values.sum()), len(values), level)
    return _bootstrap([values], lambda x, axis: x.mean(axis), paired=False, level=level)


def difference_interval(a: Values, b: Values, *, paired: bool, level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(a) - mean(b): a bootstrap; for outcomes (bool) of Wilson's intervals by `difference_of`.

    Args:
        a: a value a unit.
        b: the same of what it is compared with.
        paired: whether a[i] and b[i] belong to one unit, such as one caption sampled from two models.

    Raises:
        ValueError: paired values of different numbers.
    """
    a, b = _checked(a, b, paired)
    if a.dtype == b.dtype == bool:
        return difference_of(_rate(a, level), _rate(b, level), _correlation(a, b) if paired else 0.0)
    return _bootstrap([a, b], lambda x, y, axis: x.mean(axis) - y.mean(axis), paired, level)


def ratio_interval(a: Values, b: Values, *, paired: bool, level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(a) / mean(b): a bootstrap; for outcomes (bool) of Wilson's intervals by `ratio_of`.

    Args and errors as of `difference_interval`.
    """
    a, b = _checked(a, b, paired)
    if a.dtype == b.dtype == bool:
        return ratio_of(_rate(a, level), _rate(b, level), _correlation(a, b) if paired else 0.0)
    return _bootstrap([a, b], lambda x, y, axis: x.mean(axis) / y.mean(axis), paired, level)


def difference_of(a: Estimate, b: Estimate, correlation: float = 0.0) -> tuple[float, float]:
    """Interval of a - b from the intervals of both (MOVER: Zou 2007; of independent rates: Newcombe 1998)."""
    (p, low_p, high_p), (q, low_q, high_q) = a, b
    below, above = _spread(p - low_p, high_q - q, correlation), _spread(high_p - p, q - low_q, correlation)
    return float(p - q) - below, float(p - q) + above


def ratio_of(a: Estimate, b: Estimate, correlation: float = 0.0) -> tuple[float, float]:
    """Interval of a / b, b not negative, from the intervals of both (MOVER-R: Donner and Zou 2012).

    The bounds are the ratios R at which the interval of a - R b ends at zero. The upper one is infinite if b may be
    zero.
    """
    (p, low_p, high_p), (q, low_q, high_q) = a, b
    bounds = []
    for sign, end_p, end_q in ((-1, low_p, high_q), (1, high_p, low_q)):
        # R² end_q (2q - end_q) - 2 R middle + end_p (2p - end_p) = 0
        middle = p * q - correlation * (p - end_p) * (end_q - q)
        square, constant = end_q * (2 * q - end_q), end_p * (2 * p - end_p)
        root = np.sqrt(max(0.0, middle**2 - square * constant))
        if abs(square) > 1e-12:
            bounds.append((middle + sign * root) / square)
        else:
            bounds.append(np.inf if sign > 0 else constant / (2 * middle) if middle else 0.0)
    return float(bounds[0]), float(bounds[1])


def jackknife_interval(value: float, left_out: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of any statistic, such as an IoU over pairs of subsets (Tukey 1958); NaN for fewer than two units.

    Args:
        left_out: the statistic without each of the n independent units in turn: without all pairs of a subset, say.
    """
    from scipy.stats import t

    n = len(left_out)
    if n < 2:
        return np.nan, np.nan
    half = float(t.ppf(0.5 + level / 2, n - 1) * np.sqrt((n - 1) * np.var(left_out)))
    return float(value) - half, float(value) + half


def auc_interval(area: float, positives: int, negatives: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an area under an ROC curve from how many cases it is of (Newcombe 2006, method 5).

    Its ends are the areas that differ from `area` by as much as their own error allows, which has a width at 1 too.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, n = norm.ppf(0.5 + level / 2), (positives + negatives) / 2 - 1

    def beyond(end: float) -> float:
        others = n * ((1 - end) / (2 - end) + end / (1 + end))
        return (end - area) ** 2 - z**2 * end * (1 - end) * (1 + others) / (positives * negatives)

    low = brentq(beyond, 0.0, area - 1e-9) if area > 0 else 0.0  # at 1 itself, where no error is left, it is 0 too
    high = brentq(beyond, area + 1e-9, 1.0) if area < 1 else 1.0
    return float(low), float(high)


def _checked(a: Values, b: Values, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: paired ones belong to one unit each.")
    return np.asarray(a), np.asarray(b)


def _rate(hits: np.ndarray, level: float) -> Estimate:
    return (float(hits.mean()), *interval(int(hits.sum()), len(hits), level))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of paired outcomes (phi); 0 where one of them is always the same."""
    return 0.0 if len(set(a)) < 2 or len(set(b)) < 2 else float(np.corrcoef(a, b)[0, 1])


def _spread(x: float, y: float, correlation: float) -> float:
    return float(np.sqrt(max(0.0, x**2 + y**2 - 2 * correlation * x * y)))


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], paired: bool, level: float
) -> tuple[float, float]:
    """Percentiles of a seeded bootstrap (scipy), which resamples the units of each sample, of paired ones together."""
    from scipy.stats import bootstrap

    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "method": "percentile", "vectorized": True}
    rng, numbers = np.random.default_rng(0), [x.astype(float) for x in samples]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = bootstrap(numbers, statistic, paired=paired, confidence_level=level, random_state=rng, **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
