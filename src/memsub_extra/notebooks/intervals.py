"""Intervals of means, differences and ratios over captions and seeds.

mean_interval(alignments)                               # one value per caption
mean_interval(hits)                                     # (captions, images of each)
difference_interval(before, after, paired=True)         # of mean(before) - mean(after)
share_difference_interval(before, after)                # the same for shares, one per caption
ratio_interval(after, before, paired=True)              # of mean(after) / mean(before)
smallest_share(p, 1 / 32)                               # share of exact tests with the smallest possible p
auc_interval(0.97, 28, 28), difference_of(a, b), ratio_of(a, b)

A unit is what was sampled independently: a caption with all its images, not a single image. For numbers, a bootstrap
resamples units. Outcomes (bool) have Wilson's interval at an effective number of images; unlike a bootstrap, it has a
width at 0 of n and n of n. Captions are independent, because each image has its own noise (`noise_seeds`). The coverage
of these intervals is in docs/benchmarks.md (`python -m tools.coverage`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from memsub.measure.intervals import Z, clustered, interval

RESAMPLES = 2000
"""Number of resamples of a bootstrap."""
Values: TypeAlias = Sequence[float] | np.ndarray | pd.Series
"""One value per unit, or an array (units, images) with one value per image."""
Estimate = tuple[float, float, float]
"""Value, lower and upper bound."""


class Span(NamedTuple):
    """A value with its 95 % interval, written as one: f"{span:.0%}" is "71% (57% to 82%)"."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"

    def columns(self, name: str) -> dict[str, float]:
        """The span as columns of a table: `name`, `name_low` and `name_high`."""
        return {name: float(self.value), f"{name}_low": float(self.low), f"{name}_high": float(self.high)}


def mean_interval(values: Values, *, bounds: tuple[float, float] | None = None) -> tuple[float, float]:
    """Interval of the mean; NaN for fewer than two units.

    Args:
        bounds: smallest and largest possible value of a number. If all values equal one of them, they are treated as
            outcomes, so that the interval has a width.
    """
    x = _units(values)
    if x.dtype == bool:
        return _rate(x)[1:]
    if bounds and np.ptp(x) == 0 and x[0, 0] in bounds:
        low, high = _rate(x == bounds[1])[1:]
        return bounds[0] + low * (bounds[1] - bounds[0]), bounds[0] + high * (bounds[1] - bounds[0])
    return _bootstrap([x], lambda mean: mean, paired=False)


def difference_interval(a: Values, b: Values, *, paired: bool) -> tuple[float, float]:
    """Interval of mean(a) - mean(b): a bootstrap; for outcomes (bool), `difference_of` of the intervals of both rates.

    Args:
        a: values, one per unit, or (units, images).
        b: values to compare with, in the same form.
        paired: whether a[i] and b[i] belong to the same unit, such as a caption that two models sample from the same
            noises.

    Raises:
        ValueError: paired values differ in the number of units.
    """
    x, y = _checked(a, b, paired)
    if x.dtype == y.dtype == bool:
        return difference_of(_rate(x), _rate(y), _correlation(x, y) if paired else 0.0)
    return _bootstrap([x, y], lambda mean, other: mean - other, paired)


def share_difference_interval(a: Values, b: Values) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) for paired shares, one per unit: `difference_interval`.

    If no unit differs, a bootstrap has no width, even for few units. Its ends then are plus and minus the upper
    end of Wilson's interval for 0 of n.
    """
    differing = np.asarray(a, float) != np.asarray(b, float)
    if differing.any():
        return difference_interval(a, b, paired=True)
    high = mean_interval(differing)[1]
    return -high, high


def ratio_interval(a: Values, b: Values, *, paired: bool) -> tuple[float, float]:
    """Interval of mean(a) / mean(b): a bootstrap; for outcomes (bool), `ratio_of` of the intervals of both rates.

    Arguments and errors as in `difference_interval`.
    """
    x, y = _checked(a, b, paired)
    if x.dtype == y.dtype == bool:
        return ratio_of(_rate(x), _rate(y), _correlation(x, y) if paired else 0.0)
    return _bootstrap([x, y], lambda mean, other: mean / other, paired)


def difference_of(a: Estimate, b: Estimate, correlation: float = 0.0) -> tuple[float, float]:
    """Interval of a - b from the intervals of both (MOVER: Zou 2007; of independent rates: Newcombe 1998)."""
    (p, low_p, high_p), (q, low_q, high_q) = a, b
    below, above = _spread(p - low_p, high_q - q, correlation), _spread(high_p - p, q - low_q, correlation)
    return float(p - q) - below, float(p - q) + above


def ratio_of(a: Estimate, b: Estimate, correlation: float = 0.0) -> tuple[float, float]:
    """Interval of a / b, b not negative, from the intervals of both (MOVER-R: Donner and Zou 2012).

    The bounds are the ratios R at which the interval of a - R b ends at zero. The upper bound is infinite if the
    interval of b contains zero.
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


def smallest_share(p: Values, step: float) -> dict[str, float]:
    """The share of exact tests with the smallest possible p-value: least, and its interval least_low, least_high.

    Args:
        p: p-values, one per unit, such as a pair or a canary.
        step: the smallest possible p-value, 1 / (alternatives + 1).
    """
    least = np.asarray(p, float) <= step + 1e-9
    return Span(float(least.mean()), *interval(int(least.sum()), len(least))).columns("least")


def auc_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """Interval of an area under an ROC curve from its numbers of cases (Newcombe 2006, method 5).

    Its ends are the areas whose distance from `area` is 1.96 of their own standard errors; it has a width also at 1.
    """
    from scipy.optimize import brentq

    n = (positives + negatives) / 2 - 1

    def beyond(end: float) -> float:
        others = n * ((1 - end) / (2 - end) + end / (1 + end))
        return (end - area) ** 2 - Z**2 * end * (1 - end) * (1 + others) / (positives * negatives)

    low = brentq(beyond, 0.0, area - 1e-9) if area > 0 else 0.0  # not 1: `beyond` is 0 there if `area` is 1
    high = brentq(beyond, area + 1e-9, 1.0) if area < 1 else 1.0
    return float(low), float(high)


def _units(values: Values) -> np.ndarray:
    """Values as an array (units, images).

    Raises:
        ValueError: the array has more than two axes.
    """
    x = np.asarray(values)
    if x.ndim not in (1, 2):
        raise ValueError(f"values of shape {x.shape}: one a unit, or (units, images) expected.")
    return x[:, None] if x.ndim == 1 else x


def _checked(a: Values, b: Values, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = _units(a), _units(b)
    if paired and len(x) != len(y):
        raise ValueError(f"{len(x)} values against {len(y)}: paired ones belong to one unit each.")
    return x, y


def _rate(hits: np.ndarray) -> Estimate:
    """A rate of outcomes (units, images) with Wilson's interval at the effective number of images (`clustered`)."""
    return float(hits.mean()), *clustered(hits.ravel(), np.repeat(np.arange(len(hits)), hits.shape[1]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the mean outcomes of the same units in two arrays; 0 if one of them is constant."""
    x, y = a.mean(1), b.mean(1)
    if len(x) < 2 or not np.ptp(x) or not np.ptp(y):
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _spread(x: float, y: float, correlation: float) -> float:
    return float(np.sqrt(max(0.0, x**2 + y**2 - 2 * correlation * x * y)))


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], paired: bool
) -> tuple[float, float]:
    """Percentiles of a seeded bootstrap that resamples the units of each sample, and paired units together.

    Plain percentiles are too narrow for few units, like a normal interval that divides by n. They are therefore
    widened by the ratio to Student's interval ("expanded percentiles", Hesterberg 2015).

    Args:
        samples: (units, images) each; the value of a unit is the mean of its images.
        statistic: function of the means of the samples, each (resamples,).
    """
    from scipy.stats import norm, t

    n = min(map(len, samples))
    if n < 2:
        return np.nan, np.nan
    rng, means, chosen = np.random.default_rng(0), [], None
    for x in samples:
        if chosen is None or not paired:
            chosen = rng.integers(0, len(x), (RESAMPLES, len(x)))
        means.append(x.astype(float).mean(1)[chosen].mean(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(*means)
    tail = float(norm.sf(np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
