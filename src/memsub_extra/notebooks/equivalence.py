"""Is a model equivalent to another, by a margin that is stated beforehand? And several tests that are read together.

    equivalence(p_of_ours, p_of_twin, "mean p")            # Equivalence(verdict="inconclusive", value=-0.07, ...)
    equivalence(hits, hits_of_twin, "rate")                # (captions, seeds) of outcomes
    equivalence(alignments, alignments_of_twin, "alignment")
    holm({"twin": 0.01, "other": 0.04})                 # adjusted p-values, of the same names

That no test tells two models apart is no evidence that they are alike: with few pairs no test tells anything. The
verdict is that of the whole 95 % interval of the paired difference (the unit is the pair, or the caption):

- *equivalent*: it lies within the margin;
- *different*: it does not, and it does not hold the value of equal models either;
- *inconclusive*: neither; more pairs would decide it. The power says how likely two equal models would have been called
  equivalent, and `needed` with how many pairs in 80 % of cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .intervals import Values, difference_interval, ratio_interval

Verdict = Literal["equivalent", "different", "inconclusive"]


@dataclass(frozen=True)
class Margin:
    """How far from another a model may lie and be equivalent to it.

    Attributes:
        low, high: of the difference, or of the ratio.
        ratio: of means, instead of their difference.
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
    """What a comparison of two models says.

    Attributes:
        value, low, high: the paired difference (or ratio) and its 95 % interval.
        n: independent units, pairs or captions.
        power: how likely two equal models are called equivalent, at this n and spread.
        needed: units at which they are in 80 % of cases.
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
        ours, theirs: a value a unit, or (units, images) with the same noises in both; outcomes (bool) or numbers.
        margin: or its name in `MARGINS`.

    Raises:
        KeyError: no such margin.
        ValueError: numbers of values differ.
    """
    within = MARGINS[margin] if isinstance(margin, str) else margin
    interval = ratio_interval if within.ratio else difference_interval
    low, high = interval(ours, theirs, paired=True)
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    return judged(a / b if within.ratio else a - b, low, high, len(ours), within)


def judged(value: float, low: float, high: float, n: int, within: Margin) -> Equivalence:
    """The same of a difference (or ratio) whose interval is known, of n units."""
    return Equivalence(verdict(low, high, within), value, low, high, n, *_power(within, low, high, n))


def verdict(low: float, high: float, within: Margin) -> Verdict:
    """The verdict of an interval; one that is not a number is inconclusive."""
    if within.low <= low and high <= within.high:
        return "equivalent"
    return "different" if high < within.equal or low > within.equal else "inconclusive"


def _power(within: Margin, low: float, high: float, n: int) -> tuple[float, float]:
    """Chance that equal models are called equivalent, with a normal error; and units for 80 %.

    Equal ones are if their difference d keeps d + 1.96 e and d - 1.96 e within the margin, e being its error.
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
    """P-values adjusted for being read together (Holm 1979): below a level, the chance of any false one is below it."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}
