"""Intervals of rates.

interval(19, 20)                        # Wilson: lower and upper bound
rate("exact", hits)                     # {"exact_rate": ..., "exact_low": ..., "exact_high": ...}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate (Wilson 1927), by scipy: lower and upper bound."""
    from scipy.stats import binomtest  # takes a second to import

    bounds = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def rate(name: str, hits: Sequence[bool] | np.ndarray | pd.Series) -> dict[str, float]:
    """The share of hits with its 95 % interval: `<name>_rate`, `<name>_low`, `<name>_high`."""
    hits = np.asarray(hits, bool)
    low, high = interval(int(hits.sum()), len(hits))
    return {f"{name}_rate": float(hits.mean()), f"{name}_low": low, f"{name}_high": high}
