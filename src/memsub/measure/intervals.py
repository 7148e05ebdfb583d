"""Intervals of rates.

interval(19, 20)                        # Wilson: lower and upper bound
clustered(hits, captions)               # the same for several images a caption
rate("exact", hits, captions)           # {"exact_rate": ..., "exact_low": ..., "exact_high": ...}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

Outcomes: TypeAlias = Sequence[bool] | np.ndarray | pd.Series
Z = 1.959963984540054
"""The normal quantile of 95 % intervals: `scipy.stats.norm.ppf(0.975)`, without a second of importing."""


def interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (1927): lower and upper bound. `n` may be a fraction (see `clustered`).

    Raises:
        ValueError: n is 0, or there are more successes.
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"a rate of {successes} of {n} has no interval.")
    rate = successes / n
    middle, half = rate + Z**2 / (2 * n), Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
    return low if rate > 0 else 0.0, high if rate < 1 else 1.0  # exactly


def clustered(hits: Outcomes, units: Sequence | np.ndarray | pd.Series) -> tuple[float, float]:
    """Wilson's interval at the effective sample size: the number of independent images whose rate has this variance.

    Sources: Dean and Pagano 2015; Franco et al. 2019 for Student's quantile. If all outcomes are equal, the variance
    within units cannot be estimated; the number of units then is the sample size.

    Args:
        hits: outcome of each image.
        units: the unit of each image, such as its caption. Images of different units are independent.
    """
    outcomes, labels = np.asarray(hits, bool), np.unique(np.asarray(units), return_inverse=True)[1]
    share, n = float(outcomes.mean()), int(labels.max()) + 1
    effective = float(n)
    if 0 < share < 1 and 1 < n < len(outcomes):
        from scipy.stats import t  # takes a second to import

        residuals = np.bincount(labels, outcomes - share)
        variance = n / (n - 1) * float((residuals**2).sum()) / len(outcomes) ** 2
        effective = float(np.clip(share * (1 - share) / max(variance, 1e-12), n, len(outcomes)))
        effective *= (Z / float(t.ppf(0.975, n - 1))) ** 2
    return interval(share * effective, effective)


def rate(name: str, hits: Outcomes, units: Sequence | np.ndarray | pd.Series | None = None) -> dict[str, float]:
    """The share of hits and its 95 % interval: `<name>_rate`, `<name>_low`, `<name>_high`. Units as in `clustered`."""
    hits = np.asarray(hits, bool)
    low, high = clustered(hits, range(len(hits)) if units is None else units)
    return {f"{name}_rate": float(hits.mean()), f"{name}_low": low, f"{name}_high": high}
