"""Row width against sparsity: at which share of a row does an edit leave half of the memorized images?

    table = measured()                     # the shipped table: models of several widths
    half_sparsity(table)                   # the sparsity that leaves 50 %, of each width and training
    law(table, widths=(1280, 5120))        # log sparsity as a line in log width: its slope, and what it says elsewhere
    stored_law(run, widths)                # the same of the shipped table, computed once in a run's folder

The models of other widths do not ship; `python -m tools.widths` measures them and writes the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from memsub.testbed.dataset import weights_folder
from memsub_extra.store import Kind

if TYPE_CHECKING:
    from memsub_extra.run.run import Run

TABLE = "widths.parquet"
"""Columns row (mean weights in a row), training (0 for those beside the model that ships, then others of such rows),
sparsity, density, caption, replicated, alignment (relative to the twin's)."""
LAW = Kind("width-law")


@cache
def measured() -> pd.DataFrame:
    """The shipped table.

    Raises:
        FileNotFoundError: it was not measured.
    """
    return pd.read_parquet(weights_folder() / TABLE)


def half_sparsity(table: pd.DataFrame, column: str = "sparsity") -> pd.Series:
    """By row width and training the sparsity (or density) at which half of the images are still replicated.

    A logistic regression of `replicated` on the logarithm of `column`. NaN where more of it does not replicate less.
    """
    edited = table[table["sparsity"] > 0].groupby(["row", "training"])
    half = {key: _half(part[column].to_numpy(), part["replicated"].to_numpy()) for key, part in edited}
    return pd.Series(half).rename_axis(["row", "training"])


def _half(share: np.ndarray, replicated: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression

    if replicated.min() == replicated.max():
        return np.nan
    fitted = LogisticRegression(C=1e6).fit(np.log(share)[:, None], replicated)
    slope = fitted.coef_[0, 0]
    return float(np.exp(-fitted.intercept_[0] / slope)) if slope < 0 else np.nan


def law(
    table: pd.DataFrame, widths: Sequence[float], column: str = "sparsity", draws: int = 300, seed: int = 0
) -> pd.DataFrame:
    """A line through log half-sparsity of each training over log row width, and what it says of other widths.

    Args:
        widths: rows to extrapolate to.
        draws: of the bootstrap over captions: the same captions for all models, which were measured on the same ones.

    Returns:
        Rows "slope" (of the exponent: -1 were a fixed number of weights a row) and each width; columns value, low, high
        (95 % interval of the bootstrap: it holds what scatters between captions, neither what scatters between
        trainings nor whether the line is straight).
    """
    value = _line(half_sparsity(table, column), widths)
    others = np.array([_line(half_sparsity(part, column), widths) for part in _resampled(table, draws, seed)])
    low, high = np.quantile(others, (0.025, 0.975), axis=0)  # NaN if one of them is
    return pd.DataFrame({"value": value, "low": low, "high": high}, index=["slope", *widths])


def stored_law(run: Run, widths: Sequence[int]) -> pd.DataFrame:
    """`law` of the shipped table; its bootstrap is computed once."""
    table = measured()

    def make() -> dict[str, np.ndarray]:
        return {"law": law(table, widths).to_numpy()}

    values = run.store.arrays(LAW, make, table=table.to_numpy(float), rows=list(widths))["law"]
    return pd.DataFrame(values, index=["slope", *widths], columns=["value", "low", "high"])


def half_interval(table: pd.DataFrame, draws: int = 300, seed: int = 0) -> tuple[float, float, float]:
    """`half_sparsity` of one model, and its 95 % interval by the bootstrap over captions."""
    halves = [half_sparsity(part).item() for part in _resampled(table, draws, seed)]
    low, high = np.quantile(halves, (0.025, 0.975))
    return half_sparsity(table).item(), float(low), float(high)


def _resampled(table: pd.DataFrame, draws: int, seed: int) -> Iterator[pd.DataFrame]:
    """The table with as many captions, resampled with replacement."""
    captions, rng = table["caption"].unique(), np.random.default_rng(seed)
    by_caption = dict(list(table.groupby("caption")))
    for _ in range(draws):
        yield pd.concat([by_caption[c] for c in rng.choice(captions, len(captions))])


def _line(half: pd.Series, widths: Sequence[float]) -> np.ndarray:
    known = half.dropna()
    rows = known.index.get_level_values("row").to_numpy(float)
    if len(set(rows)) < 2:
        return np.full(1 + len(widths), np.nan)
    slope, intercept = np.polyfit(np.log(rows), np.log(known.to_numpy()), 1)
    return np.array([slope, *np.exp(intercept + slope * np.log(np.asarray(widths, float)))])
