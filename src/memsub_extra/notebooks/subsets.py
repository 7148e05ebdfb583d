"""Values of subsets of prompts, or of pairs of subsets, with intervals over subsets, the independent units.

density = Measured(values, [(i,) for i in range(10)])           # values (subsets, steps, layers)
overlap = Measured(iou, disjoint_pairs(members))                # values (pairs, steps, layers)
profile(density).overall                                        # mean, and the ends of its 95 % interval
profile(overlap, twins_overlap, by=np.subtract).layers          # the effect of memorization: (3, layers)
profiles({"model": {"memorized": density}, "twin": {"memorized": twins_density}}, steps=10)
table(profiles(models, steps=10) | differences(models, steps=10))    # one column per model and difference

Subsets of the smallest size share no prompts. Larger subsets do, so their values have no such interval. Models are
compared on the same subsets with the same noise, subset by subset, or pair by pair. The intervals do not include the
variation between trainings of the same recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .intervals import Span


@dataclass(frozen=True)
class Measured:
    """Measured values of subsets of prompts, at every step and layer.

    Attributes:
        values: (n, steps, layers).
        units: n entries: the subset (i,) or the pair (i, j) of each value.
        independent: whether no two subsets share a prompt; otherwise there is no interval.
    """

    values: np.ndarray
    units: Sequence[tuple[int, ...]]
    independent: bool = True

    @property
    def subsets(self) -> int:
        """The number of subsets."""
        return 1 + max(max(each) for each in self.units)

    def mean(self, without: int | None = None) -> np.ndarray:
        """The mean (steps, layers) over values that do not involve subset `without`; NaN if there are none."""
        kept = self.values[[without not in each for each in self.units]]
        return kept.mean(0) if len(kept) else np.full(self.values.shape[1:], np.nan)

    def first(self, steps: int) -> Measured:
        """The values at the first steps."""
        return replace(self, values=self.values[:, :steps])

    def among(self, subsets: int) -> Measured:
        """The values of the first `subsets` subsets."""
        kept = [max(each) < subsets for each in self.units]
        return replace(self, values=self.values[kept], units=[each for each in self.units if max(each) < subsets])


@dataclass(frozen=True)
class Profile:
    """A quantity per layer, per step and overall. The first axis has its value and the ends of its 95 % interval.

    Attributes:
        layers: (3, layers), of the mean over steps.
        steps: (3, steps), of the mean over layers.
        overall: (3,), of the mean over both.
    """

    layers: np.ndarray
    steps: np.ndarray
    overall: np.ndarray


def profile(*measured: Measured, by: Callable[..., np.ndarray] = lambda mean: mean) -> Profile:
    """A quantity with jackknife intervals over subsets (Tukey 1958): a mean, or a function `by` of several means.

    Args:
        measured: values of the same subsets, one entry for each argument of `by`.
        by: function of their means, such as `np.subtract`. The jackknife omits subset i from all of them at once.
    """
    subsets = min(each.subsets for each in measured) if all(each.independent for each in measured) else 0
    means = [[each.mean(left_out) for each in measured] for left_out in (None, *range(subsets))]
    over: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 1))
    return Profile(*(_jackknife(np.stack([by(*(m.mean(axes) for m in row)) for row in means])) for axes in over))


def _jackknife(values: np.ndarray) -> np.ndarray:
    """(1 + n, ...), a statistic with all and without each of n units, to (3, ...); for n < 2 the interval is NaN."""
    from scipy.stats import t

    value, left_out = values[0], values[1:]
    n = len(left_out)
    half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) * left_out.var(0)) if n > 1 else np.full_like(value, np.nan)
    return np.stack([value, value - half, value + half])


def profiles(models: Mapping[str, Mapping[str, Measured]], steps: int) -> dict[str, dict[str, Profile]]:
    """Profiles at the first steps, by model and name."""
    return {model: {name: profile(m.first(steps)) for name, m in named.items()} for model, named in models.items()}


def differences(models: Mapping[str, Mapping[str, Measured]], steps: int) -> dict[str, dict[str, Profile]]:
    """The effect of memorization: the first model minus each other, by subset; empty for a single model."""
    (model, ours), *controls = models.items()
    return {
        f"{model} − {control}": {
            name: profile(ours[name].first(steps), m.first(steps), by=np.subtract) for name, m in theirs.items()
        }
        for control, theirs in controls
    }


def by_name(models: Mapping[str, Mapping[str, Profile]]) -> dict[str, dict[str, Profile]]:
    """Reorders to name, then model: one panel per quantity, one line per model."""
    return {name: {model: named[name] for model, named in models.items()} for name in next(iter(models.values()))}


def table(columns: Mapping[str, Mapping[str, Profile]], form: str = ".3f") -> pd.DataFrame:
    """Overall values with 95 % intervals, as text: a row for each quantity, a column for each entry of `columns`."""
    shown: dict[str, dict[str, str]] = {}
    for name, rows in columns.items():
        shown[name] = {row: between(each.overall, form) for row, each in rows.items()}
    return pd.DataFrame(shown).fillna("")


def between(estimate: Sequence[float] | np.ndarray, form: str = ".3f") -> str:
    """ "0.485 (0.461 to 0.509)": a value and the ends of its interval; without an interval the value alone."""
    value, low, high = estimate
    return f"{Span(value, low, high):{form}}" if np.isfinite(low) else f"{value:{form}}"
