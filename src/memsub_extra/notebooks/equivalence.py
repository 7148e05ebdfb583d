"""Equivalence of two models within a margin that is fixed in advance; and correction for multiple tests.

    equivalence(p_of_ours, p_of_twin, "mean p")            # Equivalence(verdict="inconclusive", value=-0.07, ...)
    equivalence(hits, hits_of_twin, "rate")                # outcomes (captions, seeds)
    equivalence(alignments, alignments_of_twin, "alignment")
    holm({"twin": 0.01, "other": 0.04})                 # adjusted p-values, by the same names

A test that finds no difference is no evidence of equivalence: with few pairs, no test finds a difference. The verdict
depends on the 95 % interval of the paired difference (the unit is the pair, or the caption):

- *equivalent*: the interval lies within the margin;
- *different*: it does not, and it does not contain the value of equal models;
- *inconclusive*: neither, or fewer than `FEWEST` pairs: a bootstrap of so few has no reliable interval. More pairs are
  required. The power is the probability that two equal models are called equivalent; `needed` is the number of pairs
  for a power of 80 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .intervals import Values, difference_interval, ratio_interval

Verdict = Literal["equivalent", "different", "inconclusive"]
FEWEST = 8
"""Number of units below which every verdict is inconclusive."""


@dataclass(frozen=True)
class Margin:
    """The largest deviation at which two models count as equivalent.

    Attributes:
        low, high: bounds of the difference, or of the ratio.
        ratio: compare the ratio of means instead of their difference.
    """

    low: float
    high: float
    ratio: bool = False

    @property
    def equal(self) -> float:
        """The value of equal models."""
        return 1.0 if self.ratio else 0.0


MARGINS = {"mean p": Margin(-0.10, 0.10), "rate": Margin(-0.05, 0.05), "alignment": Margin(0.97, np.inf, ratio=True)}
"""Stated before anything was measured: mean p of the exact membership test, rates, alignment of unseen captions."""


@dataclass(frozen=True)
class Equivalence:
    """The result of a comparison of two models.

    Attributes:
        value, low, high: the paired difference (or ratio) and its 95 % interval.
        n: number of independent units: pairs or captions.
        power: probability that two equal models are called equivalent, at this n and spread.
        needed: number of units for a power of 80 %.
    """

    verdict: Verdict
    value: float
    low: float
    high: float
    n: int
    power: float
    needed: float


def equivalence(ours: Values, theirs: Values, margin: Margin | str) -> Equivalence:
    """Compares two models on the same units.

    Args:
        ours, theirs: one value per unit, or (units, images) with the same noises in both; outcomes (bool) or numbers.
        margin: a margin, or its name in `MARGINS`.

    Raises:
        KeyError: there is no such margin.
        ValueError: the numbers of values differ.
    """
    within = MARGINS[margin] if isinstance(margin, str) else margin
    interval = ratio_interval if within.ratio else difference_interval
    low, high = interval(ours, theirs, paired=True)
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    return judged(a / b if within.ratio else a - b, low, high, len(ours), within)


def judged(value: float, low: float, high: float, n: int, within: Margin) -> Equivalence:
    """`equivalence` for a known interval of a difference (or ratio), over n units."""
    if n < FEWEST:
        return Equivalence("inconclusive", value, low, high, n, np.nan, np.nan)
    return Equivalence(verdict(low, high, within), value, low, high, n, *_power(within, low, high, n))


def verdict(low: float, high: float, within: Margin) -> Verdict:
    """The verdict of an interval; inconclusive for NaN."""
    if within.low <= low and high <= within.high:
        return "equivalent"
    return "different" if high < within.equal or low > within.equal else "inconclusive"


def _power(within: Margin, low: float, high: float, n: int) -> tuple[float, float]:
    """Probability that equal models are called equivalent, for a normal error; and the number of units for 80 %.

    They are called equivalent if d - 1.96 e and d + 1.96 e lie within the margin, for a difference d with error e.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = norm.ppf(0.975)
    error = (high - low) / (2 * z)
    if not np.isfinite(error):
        return np.nan, np.nan

    def called(at: float) -> float:
        ends = (within.high - within.equal) / at - z, (within.low - within.equal) / at + z
        return max(0.0, float(norm.cdf(ends[0]) - norm.cdf(ends[1])))

    if error == 0:
        return 1.0, float(n)
    nearest = min(within.high - within.equal, within.equal - within.low)
    wanted = brentq(lambda at: called(at) - 0.8, nearest / 10, nearest / z)
    return called(error), float(np.ceil(n * (error / wanted) ** 2))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for multiple tests (Holm 1979): at level a, the chance of any false rejection is at most a."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}
