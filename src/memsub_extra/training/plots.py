"""Figures on the training of the embedded model, for notebook 00.

share_of_pairs(rates(measured()))           # replication against exposures, one line a share
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..notebooks.plots.style import finished, label_ends

_APART = 1.03
"""Factor between the positions of two shares at the same exposures, so that their intervals do not overlap."""


def share_of_pairs(rates: pd.DataFrame) -> Figure:
    """Replication against exposures of a pair, with 95 % intervals; one line for each share of memorized pairs.

    Args:
        rates: as from `training.shares.rates`.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    shares = sorted(rates["share"].unique())
    names = {share: f"{100 * share:g} %" for share in shares}
    tones = dict(zip(names.values(), sns.color_palette("flare", len(shares)), strict=True))
    ends = {}
    for place, share in enumerate(shares):
        line, name = rates[rates["share"] == share].sort_values("exposures"), names[share]
        at = line["exposures"].to_numpy() * _APART ** (place - (len(shares) - 1) / 2)
        value, low, high = (100 * line[column].to_numpy() for column in ("value", "low", "high"))
        errors = np.clip([value - low, high - value], 0, None)
        axis.errorbar(at, value, errors, color=tones[name], marker="o", capsize=3)
        ends[name] = value[-1]
    exposures = sorted(rates["exposures"].unique())
    axis.set(xscale="log", ylim=(-3, 103), xlabel="exposures of a pair", ylabel="replicated by the exact test (%)")
    axis.set_xticks(exposures, [f"{number:,}" for number in exposures])
    axis.xaxis.set_minor_locator(NullLocator())
    label_ends(axis, ends, tones)
    fewest, most = rates["pairs"].min(), rates["pairs"].max()
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    axis.set_title(f"share of memorized pairs in training, by colour; {number} pairs a point", fontsize=10)
    return finished(figure)
