"""Intervals of rates.

interval(19, 20)                        # Wilson: lower and upper bound
clustered(hits, captions)               # the same of images of which several are of one caption
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
"""Of 95 %: `scipy.stats.norm.ppf(0.975)`, which takes a second to import."""


def interval(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (1927): lower and upper bound. `n` may be no whole number (`clustered`)."""
    rate = successes / n
    middle, half = rate + Z**2 / (2 * n), Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
    return low if rate > 0 else 0.0, high if rate < 1 else 1.0  # exactly


def clustered(hits: Outcomes, units: Sequence | np.ndarray | pd.Series) -> tuple[float, float]:
    """Wilson's interval at the effective number of images, that of independent ones whose rate would vary as much.

    Dean and Pagano 2015; Franco et al. 2019, who also take Student's quantile into it. Where all outcomes are equal,
    nothing says how alike the images of a unit are: then the units are counted.

    Args:
        hits: an outcome an image.
        units: what each image belongs to, such as its caption. Images of different units are independent.
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
    """The share of hits and its 95 % interval: `<name>_rate`, `<name>_low`, `<name>_high`; units as of `clustered`."""
    hits = np.asarray(hits, bool)
    low, high = clustered(hits, range(len(hits)) if units is None else units)
    return {f"{name}_rate": float(hits.mean()), f"{name}_low": low, f"{name}_high": high}
